"""Options that depend on the method they belong to: ``--objective.method`` says which class's options the group has."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Any

from rocl_transfer.errors import UserError, did_you_mean, path_of


def by_method(choices: Mapping[str, Any], default: str) -> Any:
    """A field of a configuration for the options of one of ``choices``, classes with ``Options``, or of a class of the user's own."""
    return field(default_factory=choices[default].Options, metadata={"methods": choices, "default": default})


def given_method(words: Sequence[str], group: str, load: Callable[[str], Any]) -> str | None:
    """The last method of ``GROUP`` among the words of a command line and the files they name; what cannot be read is for the parser to refuse.

    It is given as ``--GROUP.method NAME``, within a table or file as ``--GROUP TABLE``, or in a file as ``--config FILE``.

    Args:
        words: The command line's.
        group: The group whose method it is.
        load: YAML to a table.
    """
    found: str | None = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, given, value = word.partition("=")
        value = value if given else following
        if name == f"--{group}.method":
            found = value
        elif name == f"--{group}":
            with suppress(Exception):
                table = load(value)
                found = str((table if isinstance(table, dict) else load(path_of(value).read_text(encoding="utf-8")))["method"])
        elif name == "--config":
            with suppress(Exception):
                table = load(path_of(value).read_text(encoding="utf-8"))
                part = table.get(group)
                found = str(part["method"] if isinstance(part, dict) else table[f"{group}.method"])
    return found


def find_method(choices: Mapping[str, Any], name: str) -> Any:
    """The class that ``name`` means: one of ``choices``, or ``FILE.py:Class`` or ``package.module:Class``.

    Raises:
        UserError: There is no such class, or it is of another kind.
    """
    if name in choices:
        return choices[name]
    place, _, attribute = name.rpartition(":")
    if not place:
        raise UserError(f"--objective.method is {name}: give one of {', '.join(choices)}, or FILE.py:Class{did_you_mean(name, choices)}")
    try:
        found = getattr(_module(place), attribute)
    except UserError:
        raise
    except Exception as error:  # whatever a user's file raises
        raise UserError(f"--objective.method {name} cannot be imported ({type(error).__name__}: {error}): check the file and the name") from error
    kind = _common_base(choices)
    if not (isinstance(found, type) and issubclass(found, kind) and hasattr(found, "Options")):
        raise UserError(f"--objective.method {name} is no {kind.__name__} with a class Options in it: see docs/extending.md")
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    path = path_of(place).resolve()
    if not path.is_file():
        raise UserError(f"there is no file {place}: check the path given to --objective.method")
    name = f"rocl_transfer_method_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _common_base(choices: Mapping[str, Any]) -> type:
    """The class that asks for ``Options`` and all choices come from; where several do, the one that asks least."""
    first, *rest = choices.values()
    asking = (kind for kind in reversed(first.__mro__[1:]) if "Options" in getattr(kind, "__annotations__", {}))
    found: type = next(kind for kind in asking if all(issubclass(other, kind) for other in rest))
    return found
