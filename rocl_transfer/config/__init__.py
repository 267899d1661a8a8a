"""What a user may set: typed, checked, one YAML. Only recipes import this floor."""

from rocl_transfer.config.cli import command_line, parse, write_config
from rocl_transfer.config.number import Number
from rocl_transfer.config.parts import AttackConfig, DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig, RoCLConfig, ViewsConfig
from rocl_transfer.config.recipes import PretrainConfig, ProbeConfig, QuickstartConfig, RunConfig

__all__ = [
    "AttackConfig", "DataConfig", "EvaluationConfig", "ModelConfig", "Number", "OptimizerConfig", "PretrainConfig", "ProbeConfig", "QuickstartConfig",
    "RoCLConfig", "RunConfig", "ViewsConfig", "command_line", "parse", "write_config",
]  # fmt: skip
