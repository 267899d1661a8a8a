"""What may leave this machine: names of data and models, never where they lie on its disks."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Folders at the root of a file system below which people and clusters keep theirs.
_TOPS = ("home", "Users", "root", "mnt", "media", "Volumes", "data", "datasets", "scratch", "tmp", "var", "opt", "srv", "work", "workspace",
         "projects", "content", "kaggle", "nfs", "gpfs", "lustre", "storage", "private", "net", "shared")  # fmt: skip
_PART = r"[\w.@+=%~-]+"
_PLACE = re.compile(rf"(?<![\w/.:~-])(?:(?:~[\w.-]*|file://)?(?:/{_PART})+/?|[A-Za-z]:[\\/]+{_PART}(?:[\\/]+{_PART})*)")
_KEPT = ("class_names", "label_names")  # a class may be called like a folder


def is_local(name: str) -> bool:
    """Whether ``name`` says where something lies on this machine: an absolute path, one from a home folder, or one out of the working directory."""
    return name.startswith(("/", "~", "file:", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", name) is not None or re.split(r"[\\/]", name)[0] == ".."


def shorten(name: str) -> str:
    """``name`` without the folders above it where it is a local path, else as it is."""
    if not is_local(name):
        return name
    last = re.split(r"[\\/]", name.rstrip("/\\"))[-1]
    if last in ("", ".", "..") or last.startswith("~"):
        try:
            last = Path(name).expanduser().resolve().name
        except (OSError, RuntimeError):
            last = ""
    return last or "local"


def places(value: Any) -> set[str]:
    """The local paths among the strings of a configuration."""
    if isinstance(value, str):
        return {value} if is_local(value) else set()
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return set().union(*map(places, inner))


def scrub(value: Any, known: Iterable[str] = ()) -> Any:
    """``value`` with every local path in its strings shortened to its last part; class names stay.

    Args:
        value: What JSON or YAML holds.
        known: Paths of this run, which may hold spaces; in sentences what lies below one keeps its place below.
    """
    roots = sorted({root for name in known for root in _spellings(name)}, key=len, reverse=True)
    return _scrub(value, [(root, shorten(root)) for root in roots])


def revealed(value: Any) -> str | None:
    """The first local path in a text, or in the strings of what JSON holds; None if there is none."""
    if isinstance(value, Mapping):
        return next(filter(None, (revealed(inner) for key, inner in value.items() if key not in _KEPT)), None)
    if isinstance(value, list | tuple):
        return next(filter(None, map(revealed, value)), None)
    if not isinstance(value, str):
        return None
    places = _PLACE.finditer(re.sub(r"\b(?!file:)[a-z][\w+.-]*://\S+", "", value))
    return next((found[0] for found in places if _lies_here(found[0])), None)


def _spellings(name: str) -> set[str]:
    plain = name.rstrip("/\\")
    try:
        resolved = {str(Path(name).expanduser()), str(Path(name).expanduser().resolve())}
    except (OSError, RuntimeError):
        resolved = set()
    return {root for root in {plain, *resolved} if len(root) > 3 and is_local(root)}


def _scrub(value: Any, roots: list[tuple[str, str]]) -> Any:
    if isinstance(value, Mapping):
        return {key: inner if key in _KEPT else _scrub(inner, roots) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_scrub(inner, roots) for inner in value]
    return _text(value, roots) if isinstance(value, str) else value


def _text(text: str, roots: list[tuple[str, str]]) -> str:
    if "\n" not in text and is_local(text) and (" " not in text or text in dict(roots) or os.path.lexists(text)):
        return shorten(text)
    for root, short in roots:
        text = re.sub(rf"(?<![\w/.~-]){re.escape(root)}(?![\w-])", lambda _, short=short: short, text)  # type: ignore[misc]
    return _PLACE.sub(lambda found: shorten(found[0]) if _lies_here(found[0]) else found[0], text)


def _lies_here(name: str) -> bool:
    """Whether what looks like a path is one: ``/m/01g317`` is a class, ``/home/x`` is not."""
    if not name.startswith("/"):
        return True
    parts = name.strip("/").split("/")
    return len(parts) > 1 and (parts[0] in _TOPS or Path("/", parts[0]).is_dir())
