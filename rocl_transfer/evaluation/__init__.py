"""What a model is worth, measured: robustness that can be believed, with intervals, the record of it, comparison; neighbours, figures."""

from rocl_transfer.evaluation.checks import inspect_model
from rocl_transfer.evaluation.clusters import kmeans, nearest
from rocl_transfer.evaluation.comparison import compare
from rocl_transfer.evaluation.evaluate import borderline, evaluate
from rocl_transfer.evaluation.margin import FlipOptions, smallest_epsilon
from rocl_transfer.evaluation.monitors import (
    BeforeAfter,
    ClassifierMonitor,
    HeadMonitor,
    NeighbourMonitor,
    StudentMonitor,
    Watched,
    choose_watched,
    compute_features,
    knn_accuracy,
)
from rocl_transfer.evaluation.options import Context, SearchOptions
from rocl_transfer.evaluation.protocols import AdaptationPGDOptions, Ensemble, PGDOptions, named_attacks
from rocl_transfer.evaluation.report import (
    Smoothing,
    assemble,
    choose_pictures,
    measure_corruptions,
    measure_smoothed,
    render_page,
    report_attacks,
    say_report,
)
from rocl_transfer.evaluation.results import Evaluation, Results, wilson_interval

__all__ = [
    "AdaptationPGDOptions", "BeforeAfter", "ClassifierMonitor", "Context", "Ensemble", "Evaluation", "FlipOptions", "HeadMonitor",
    "NeighbourMonitor", "PGDOptions", "Results", "SearchOptions", "Smoothing", "StudentMonitor", "Watched", "assemble", "borderline",
    "choose_pictures", "choose_watched", "compare", "compute_features", "evaluate", "inspect_model", "kmeans", "knn_accuracy", "measure_corruptions",
    "measure_smoothed", "named_attacks", "nearest", "render_page", "report_attacks", "say_report", "smallest_epsilon", "wilson_interval",
]  # fmt: skip
