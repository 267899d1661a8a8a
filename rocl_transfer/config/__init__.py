"""What a user may set: typed, checked, one YAML. Only recipes import this floor."""

from rocl_transfer.config.cli import command_line, parse
from rocl_transfer.config.comparison import CompareConfig
from rocl_transfer.config.conversion import ConvertConfig
from rocl_transfer.config.evaluation import EvaluateConfig
from rocl_transfer.config.methods import by_method, find_method
from rocl_transfer.config.parts import ModelConfig
from rocl_transfer.config.predicting import PredictConfig
from rocl_transfer.config.presets import note_radius, sized
from rocl_transfer.config.publishing import PublishConfig

__all__ = [
    "CompareConfig", "ConvertConfig", "EvaluateConfig", "ModelConfig", "PredictConfig", "PublishConfig", "by_method", "command_line",
    "find_method", "note_radius", "parse", "sized",
]  # fmt: skip
