"""Adversaries in pixel space: threat models, projected gradient ascent, and the frozen state they see a network in."""

from rocl_transfer.attacks.frozen import frozen
from rocl_transfer.attacks.pgd import PGD, Ascent
from rocl_transfer.attacks.threat_models import L2, Linf, ThreatModel, threat_model

__all__ = ["L2", "PGD", "Ascent", "Linf", "ThreatModel", "frozen", "threat_model"]
