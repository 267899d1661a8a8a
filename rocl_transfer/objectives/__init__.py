"""What is minimised: modules that own the networks and turn a batch into losses. A method is one file, and one row here."""

from rocl_transfer.objectives.acl import ACL
from rocl_transfer.objectives.adversarial import AdversarialTraining, ContrastiveTerm
from rocl_transfer.objectives.contrastive import nt_xent
from rocl_transfer.objectives.distillation import Distillation
from rocl_transfer.objectives.dynacl import DynACL
from rocl_transfer.objectives.objective import Objective, ObjectiveOptions
from rocl_transfer.objectives.probe import LinearProbe, Probe, RobustProbe
from rocl_transfer.objectives.robust_losses import class_weights
from rocl_transfer.objectives.rocl import RoCL
from rocl_transfer.objectives.simclr import SimCLR

PRETRAINING: dict[str, type[Objective]] = {"rocl": RoCL, "acl": ACL, "dynacl": DynACL, "simclr": SimCLR}

__all__ = [
    "ACL", "PRETRAINING", "AdversarialTraining", "ContrastiveTerm", "Distillation", "DynACL", "LinearProbe", "Objective", "ObjectiveOptions", "Probe",
    "RoCL", "RobustProbe", "SimCLR", "class_weights", "nt_xent",
]  # fmt: skip
