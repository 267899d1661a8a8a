"""What validates a training: a classifier's accuracies, neighbours that share a class, a student's likeness to its teacher."""

from rocl_transfer.evaluation.monitors.agreement import BeforeAfter, StudentMonitor, Watched
from rocl_transfer.evaluation.monitors.classifier import ClassifierMonitor, HeadMonitor, choose_watched
from rocl_transfer.evaluation.monitors.features import NeighbourMonitor, compute_features, knn_accuracy

__all__ = [
    "BeforeAfter", "ClassifierMonitor", "HeadMonitor", "NeighbourMonitor", "StudentMonitor", "Watched", "choose_watched", "compute_features",
    "knn_accuracy",
]  # fmt: skip
