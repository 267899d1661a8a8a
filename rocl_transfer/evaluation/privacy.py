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
_CLASS_NAMES = ("class_names", "label_names")  # what records and configurations call them


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


def class_names(value: Any) -> set[str]:
    """The class names that a record or a configuration lists: a class may be called like a folder."""
    if isinstance(value, Mapping):
        lists = [value[key] for key in _CLASS_NAMES if isinstance(value.get(key), list | tuple)]
        listed = {name for names in lists for name in names if isinstance(name, str)}
        return listed.union(*map(class_names, value.values()))
    return set().union(*map(class_names, value)) if isinstance(value, list | tuple) else set()


def scrub(value: Any, known: Iterable[str] = ()) -> Any:
    """``value`` with every local path in its strings shortened to its last part; the class names that it lists stay wherever they stand.

    Args:
        value: What JSON or YAML holds.
        known: Paths of this run, which may hold spaces; in sentences what lies below one keeps its place below.
    """
    roots = sorted({root for name in known for root in _spellings(name)}, key=len, reverse=True)
    return _scrub(value, [(root, shorten(root)) for root in roots], _ClassNames(class_names(value)))


def revealed(value: Any, names: Iterable[str] = ()) -> str | None:
    """The first local path in a text, or in the strings of what JSON holds; None if there is none.

    Args:
        value: The text, or what JSON holds.
        names: Class names, which are no paths whatever they look like; those that ``value`` lists are known.
    """
    return _revealed(value, _ClassNames({*names, *class_names(value)}))


class _ClassNames:
    """Class names, which are told from the rest of a sentence: bare, or as ``repr`` writes them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        like_paths = {spelled for name in self.names if _places_in(name) for spelled in (name, repr(name)[1:-1])}
        any_of = "|".join(map(re.escape, sorted(like_paths, key=len, reverse=True)))
        self.pattern = re.compile(rf"(?<![\w/.:~\\-])({any_of})(?![\w/\\-])") if like_paths else None

    def apart(self, text: str) -> list[str]:
        """``text`` in pieces, of which every second is a class name."""
        return self.pattern.split(text) if self.pattern else [text]


def _places_in(text: str) -> list[str]:
    found = _PLACE.finditer(re.sub(r"\b(?!file:)[a-z][\w+.-]*://\S+", "", text))
    return [place[0] for place in found if _lies_here(place[0])]


def _revealed(value: Any, kept: _ClassNames) -> str | None:
    if isinstance(value, Mapping | list | tuple):
        inner = value.values() if isinstance(value, Mapping) else value
        return next(filter(None, (_revealed(one, kept) for one in inner)), None)
    pieces = kept.apart(value)[::2] if isinstance(value, str) else []
    return next((place for piece in pieces for place in _places_in(piece)), None)


def _spellings(name: str) -> set[str]:
    plain = name.rstrip("/\\")
    try:
        resolved = {str(Path(name).expanduser()), str(Path(name).expanduser().resolve())}
    except (OSError, RuntimeError):
        resolved = set()
    return {root for root in {plain, *resolved} if len(root) > 3 and is_local(root)}


def _scrub(value: Any, roots: list[tuple[str, str]], kept: _ClassNames) -> Any:
    if isinstance(value, Mapping):
        return {key: _scrub(inner, roots, kept) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_scrub(inner, roots, kept) for inner in value]
    return _text(value, roots, kept) if isinstance(value, str) and value not in kept.names else value


def _text(text: str, roots: list[tuple[str, str]], kept: _ClassNames) -> str:
    if "\n" not in text and is_local(text) and (" " not in text or text in dict(roots) or os.path.lexists(text)):
        return shorten(text)
    pieces = kept.apart(text)
    for number in range(0, len(pieces), 2):
        for root, short in roots:
            pieces[number] = re.sub(rf"(?<![\w/.~-]){re.escape(root)}(?![\w-])", lambda _, short=short: short, pieces[number])  # type: ignore[misc]
        pieces[number] = _PLACE.sub(lambda found: shorten(found[0]) if _lies_here(found[0]) else found[0], pieces[number])
    return "".join(pieces)


def _lies_here(name: str) -> bool:
    """Whether what looks like a path is one: ``/m/01g317`` is a class, ``/home/x`` is not."""
    if not name.startswith("/"):
        return True
    parts = name.strip("/").split("/")
    return len(parts) > 1 and (parts[0] in _TOPS or Path("/", parts[0]).is_dir())
