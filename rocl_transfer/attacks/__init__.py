"""Adversaries in pixel space: threat models, projected gradient ascent, the parts of AutoAttack, and the frozen state they see a network in."""

from rocl_transfer.attacks.apgd import APGD
from rocl_transfer.attacks.fab import FAB
from rocl_transfer.attacks.frozen import frozen
from rocl_transfer.attacks.gate import admit, ask, check_classes, check_images, check_labels, device_of, untouched
from rocl_transfer.attacks.margins import margin
from rocl_transfer.attacks.options import AttackOptions, share_of_radius
from rocl_transfer.attacks.pgd import PGD, GradientAscent, against_labels
from rocl_transfer.attacks.search import Attack, Network, Outcome
from rocl_transfer.attacks.square import Square
from rocl_transfer.attacks.threat_models import L1, L2, Linf, ThreatModel, threat_model

__all__ = [
    "APGD", "FAB", "L1", "L2", "PGD", "Attack", "AttackOptions", "GradientAscent", "Linf", "Network", "Outcome", "Square", "ThreatModel",
    "admit", "against_labels", "ask", "check_classes", "check_images", "check_labels", "device_of", "frozen", "margin", "share_of_radius",
    "threat_model", "untouched",
]  # fmt: skip
