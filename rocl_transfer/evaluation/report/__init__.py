"""The report: what is measured beside the headline so that it can be believed, and how it is shown, in figures and on a page."""

from rocl_transfer.evaluation.report.closeup import Closeup, close_up
from rocl_transfer.evaluation.report.figures import can_draw, draw_adversarial, draw_robustness, draw_training
from rocl_transfer.evaluation.report.page import render_page
from rocl_transfer.evaluation.report.pictures import Pictures, choose_pictures
from rocl_transfer.evaluation.report.report import assemble, measure_corruptions, measure_smoothed, report_attacks, say_report
from rocl_transfer.evaluation.report.smoothing import Smoothing

__all__ = [
    "Closeup", "Pictures", "Smoothing", "assemble", "can_draw", "choose_pictures", "close_up", "draw_adversarial", "draw_robustness",
    "draw_training", "measure_corruptions", "measure_smoothed", "render_page", "report_attacks", "say_report",
]  # fmt: skip
