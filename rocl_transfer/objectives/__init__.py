"""What is minimised: modules that own the networks and turn a batch into losses."""

from rocl_transfer.objectives.adversarial import AdversarialTraining, Adversary, Contrast
from rocl_transfer.objectives.contrastive import nt_xent
from rocl_transfer.objectives.objective import Objective
from rocl_transfer.objectives.probe import LinearProbe, RobustProbe
from rocl_transfer.objectives.robust_losses import class_weights
from rocl_transfer.objectives.rocl import RoCL

__all__ = ["AdversarialTraining", "Adversary", "Contrast", "LinearProbe", "Objective", "RoCL", "RobustProbe", "class_weights", "nt_xent"]
