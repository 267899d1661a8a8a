"""Evaluated models beside each other: their runs read back, compared in pairs on the samples they share, and drawn."""

from rocl_transfer.evaluation.comparison.compare import LEVEL, Comparison, Difference, compare
from rocl_transfer.evaluation.comparison.evaluated_run import read_run
from rocl_transfer.evaluation.comparison.figure import draw_comparison

__all__ = ["LEVEL", "Comparison", "Difference", "compare", "draw_comparison", "read_run"]
