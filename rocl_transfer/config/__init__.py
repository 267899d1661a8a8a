"""What a user may set: typed, checked, one YAML. Only recipes import this floor."""

from rocl_transfer.config.cli import command_line, parse, write_config
from rocl_transfer.config.comparison import CompareConfig
from rocl_transfer.config.conversion import ConvertConfig
from rocl_transfer.config.data import DataConfig
from rocl_transfer.config.evaluation import EvaluateConfig
from rocl_transfer.config.finetuning import FinetuneConfig
from rocl_transfer.config.number import Number
from rocl_transfer.config.parts import AttackConfig, EvaluationConfig, ModelConfig, OptimizerConfig, RoCLConfig, ViewsConfig
from rocl_transfer.config.publishing import PublishConfig
from rocl_transfer.config.recipes import ClassifierConfig, PredictConfig, PretrainConfig, ProbeConfig, QuickstartConfig, RunConfig

__all__ = [
    "AttackConfig", "ClassifierConfig", "CompareConfig", "ConvertConfig", "DataConfig", "EvaluateConfig", "EvaluationConfig", "FinetuneConfig",
    "ModelConfig", "Number", "OptimizerConfig", "PredictConfig", "PretrainConfig", "ProbeConfig", "PublishConfig", "QuickstartConfig",
    "RoCLConfig", "RunConfig", "ViewsConfig", "command_line", "parse", "write_config",
]  # fmt: skip
