"""What is minimised: modules that own the networks and turn a batch into losses."""

from rocl_transfer.objectives.contrastive import nt_xent
from rocl_transfer.objectives.probe import LinearProbe, RobustProbe
from rocl_transfer.objectives.rocl import RoCL

__all__ = ["LinearProbe", "RoCL", "RobustProbe", "nt_xent"]
