"""What a model is worth, measured: accuracy under attack with intervals, the results record, neighbours, figures."""

from rocl_transfer.evaluation.features import NeighbourMonitor, compute_features, knn_accuracy
from rocl_transfer.evaluation.margin import smallest_epsilon
from rocl_transfer.evaluation.monitor import ClassifierMonitor
from rocl_transfer.evaluation.results import Evaluation, Results, sha256, wilson_interval
from rocl_transfer.evaluation.robustness import evaluate, named_attacks

__all__ = [
    "ClassifierMonitor", "Evaluation", "NeighbourMonitor", "Results", "compute_features", "evaluate", "knn_accuracy", "named_attacks", "sha256",
    "smallest_epsilon", "wilson_interval",
]  # fmt: skip
