"""Options as a YAML file that a recipe's ``--config`` reads back."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Puts a folder called 1e5 into quotes: PyYAML does not take it for a number, jsonargparse does."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9._]+[eE][-+]?[0-9]+$"), list("-+.0123456789"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, float) else value


def dotted(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested ``options`` as the command line names them: ``data.name``.

    Args:
        options: What a configuration holds, or its YAML file.
        prefix: What stands before each name.
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def write_options(options: Any, path: Path) -> None:
    """Write all of ``options``, a dataclass, resolved."""
    path.write_text(yaml.dump(_plain(dataclasses.asdict(options)), Dumper=_Dumper, sort_keys=False), encoding="utf-8")
