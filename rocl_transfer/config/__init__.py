"""What a user may set: typed, checked, one YAML. Only recipes import this floor; each has its own configuration beside its main."""

from rocl_transfer.config.cli import command_line, parse
from rocl_transfer.config.methods import by_method, find_method
from rocl_transfer.config.parts import ClassifierConfig
from rocl_transfer.config.presets import laid_over, note_radius, sized, with_earlier_defaults

__all__ = ["ClassifierConfig", "by_method", "command_line", "find_method", "laid_over", "note_radius", "parse", "sized", "with_earlier_defaults"]
