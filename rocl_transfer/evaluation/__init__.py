"""What a model is worth, measured: robustness that can be believed, with intervals, the record of it, comparison; neighbours, figures."""

from rocl_transfer.evaluation.agreement import BeforeAfter, StudentMonitor, Watched
from rocl_transfer.evaluation.checks import inspect_model
from rocl_transfer.evaluation.comparison import compare
from rocl_transfer.evaluation.features import NeighbourMonitor, compute_features, knn_accuracy
from rocl_transfer.evaluation.margin import FlipOptions, smallest_epsilon
from rocl_transfer.evaluation.monitor import ClassifierMonitor, HeadMonitor
from rocl_transfer.evaluation.options import Context, SearchOptions
from rocl_transfer.evaluation.pictures import choose_pictures
from rocl_transfer.evaluation.protocols import AdaptationPGDOptions, Ensemble, PGDOptions, named_attacks
from rocl_transfer.evaluation.report import assemble, measure_corruptions, measure_smoothed, report_attacks, say_report
from rocl_transfer.evaluation.results import Evaluation, Results, wilson_interval
from rocl_transfer.evaluation.robustness import borderline, evaluate
from rocl_transfer.evaluation.smoothing import Smoothing

__all__ = [
    "AdaptationPGDOptions", "BeforeAfter", "ClassifierMonitor", "Context", "Ensemble", "Evaluation", "FlipOptions", "HeadMonitor",
    "NeighbourMonitor", "PGDOptions", "Results", "SearchOptions", "Smoothing", "StudentMonitor", "Watched", "assemble", "borderline",
    "choose_pictures", "compare", "compute_features", "evaluate", "inspect_model", "knn_accuracy", "measure_corruptions", "measure_smoothed",
    "named_attacks", "report_attacks", "say_report", "smallest_epsilon", "wilson_interval",
]  # fmt: skip
