"""What the parser says of a mistake, as one sentence that names the option and what is wanted of it."""

import dataclasses
import math
import re
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin

from rocl_transfer.errors import did_you_mean

_PLAIN: dict[Any, tuple[str, str]] = {  # one of them, and several
    int: ("a whole number", "whole numbers"),
    bool: ("true or false", "of true or false"),
    str: ("text", "words"),
    float: ("a number or a fraction such as 8/255", "numbers"),
}
_COUNTS = {2: "two", 3: "three"}


def wanted(kind: Any) -> str:
    """What an option of the annotation ``kind`` takes, in words that follow "give"."""
    if kind is None or dataclasses.is_dataclass(kind):
        return "its options as a table, or each by its own name"
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return str(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(repr, choices))}"
    if get_origin(kind) in (Union, types.UnionType):
        return ", or ".join(wanted(part) for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        count = "" if rest == [...] else f"{_COUNTS.get(len(rest) + 1, len(rest) + 1)} "
        return f"a list of {count}{_plain(first)[1]}, such as {'[A, B]' if first is str else '[0.5, 1]'}"
    return _plain(kind)[0]


def _plain(kind: Any) -> tuple[str, str]:
    return next(words for known, words in _PLAIN.items() if kind is known or (known is float and issubclass(kind, float)))


def sentence(message: str, kinds: Mapping[str, Any], positional: tuple[str, str] | None) -> str:
    """Jsonargparse's message as one sentence with a remedy.

    Args:
        message: What it says.
        kinds: Every option's annotation by its dotted name; None for a group.
        positional: The field that takes words without an option, and what those are.
    """
    if found := re.search(r"unrecognized arguments: (.*)", message):
        word = (found[1].split() or ["''"])[0]
        if positional and not word.startswith("-"):
            return f"{word} stands apart from the other {positional[0]}: name {positional[1]} side by side"
        return f"unknown option {word}{_alike(word.lstrip('-').split('=')[0], list(kinds))}"
    if found := re.search(r"arguments are required: (.*)", message):
        missing = found[1].split(",")[0]
        if positional and positional[0] == missing:
            return f"there are no {positional[0]}: name {positional[1]}"
        return f"--{missing} is missing: give it on the command line or in --config"
    if positional and "'str' object does not support item assignment" in message:
        # What jsonargparse 4.53 makes of one word in the YAML where several are taken.
        return f"{positional[0]} in the configuration is not a list: write {positional[1]} as [FIRST, SECOND]"
    if found := re.search(r"File does not exist: '?([^']*)'?", message):
        return f"there is no file {found[1]}: check the path given to --config"
    return _of_an_option(message, kinds) or re.sub(r"\s+", " ", re.sub(r'Parser key "([\w.]+)":', r"--\1:", message)).strip()


def _of_an_option(message: str, kinds: Mapping[str, Any]) -> str | None:
    """The sentence where one option's name or value is wrong."""
    if found := re.search(r"Errors:\s*- (--|unknown option )([\w.]+)(.*)", message):  # of a part that may be left out: its own parser's sentence
        part = re.search(r'Parser key "([\w.]+)"', message)
        return f"{found[1]}{part[1] if part else ''}.{found[2]}{found[3]}"
    if found := re.search(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'|Option '(?P<only>[\w.]+)' is not", message):
        name = found["only"] or f"{found['group']}.{found['key']}"
        return f"unknown option {name} in the configuration{_alike(name, list(kinds))}"
    found = re.search(r"Parser key \"([\w.]+)\":(?s:.*)(?:[Vv]alue: |Unable to load config ['\"])(.*)", message)
    if found is None or found[1] not in kinds or found[1] == "config":
        return None
    return wrong(found[1], found[2].rstrip("'\""), kinds[found[1]])


def wrong(name: str, value: Any, kind: Any) -> str:
    """That the option ``name`` of the annotation ``kind`` cannot have this value."""
    words = wanted(kind)
    with suppress(ValueError, TypeError):
        if not math.isfinite(float(value)):
            words = words.replace("a number", "a finite number")
    return f"--{name} is {value}: give {words}"


def _alike(name: str, options: Sequence[str]) -> str:
    return did_you_mean(name, options) or "; --help lists them all"
