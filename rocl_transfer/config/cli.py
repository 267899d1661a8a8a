"""From the words on the command line to a checked configuration, and from a user's mistake to one sentence and status 2."""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist
import yaml
from jsonargparse import ArgumentParser

from rocl_transfer.errors import UserError, did_you_mean

Config = TypeVar("Config")


class _Parser(ArgumentParser):
    """Says one sentence on an error, where jsonargparse prints its whole usage."""

    positional: tuple[str, str] | None = None  # the field that takes words without an option, and what those are

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(self.sentence(message)) from ex

    def options(self) -> list[str]:
        """Every option's dotted name."""
        return [action.dest for action in self._actions if action.option_strings]

    def sentence(self, message: str) -> str:
        """Jsonargparse's message as one sentence with a remedy."""
        if found := re.search(r"unrecognized arguments: (.*)", message):
            word = found[1].split()[0]
            name = word.lstrip("-").split("=")[0]
            if self.positional and not word.startswith("-"):
                return f"{word} stands apart from the other {self.positional[0]}: name {self.positional[1]} side by side"
            return f"unknown option {word}{did_you_mean(name, self.options()) or '; --help lists them all'}"
        if found := re.search(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'|Option '(?P<only>[\w.]+)' is not", message):
            name = found["only"] or f"{found['group']}.{found['key']}"
            return f"unknown option {name} in the configuration{did_you_mean(name, self.options()) or '; --help lists them all'}"
        if found := re.search(r"arguments are required: (.*)", message):
            if self.positional and self.positional[0] == found[1].split(",")[0]:
                return f"there are no {self.positional[0]}: name {self.positional[1]}"
            return f"--{found[1].split(',')[0]} is missing: give it on the command line or in --config"
        if found := re.search(r'Parser key "([\w.]+)":\s*Expected a typing.Literal\[(.*)\]. Got value: (.*)', message):
            return f"--{found[1]} is {found[3]}: give one of {found[2]}"
        if found := re.search(r'Parser key "([\w.]+)":(?s:.*?)Expected a <class \'(\w+)\'>(?s:.*)[Vv]alue: (.*)', message):
            kind = {"int": "a whole number", "bool": "true or false", "float": "a number", "tuple": "a list, such as [0.5, 1]"}.get(
                found[2], found[2]
            )
            return f"--{found[1]} is {found[3]}: give {kind}"
        if self.positional and "'str' object does not support item assignment" in message:
            # What jsonargparse 4.53 makes of one word in the YAML where several are taken.
            return f"{self.positional[0]} in the configuration is no list: write {self.positional[1]} as [FIRST, SECOND]"
        if found := re.search(r"File does not exist: '?([^']*)'?", message):
            return f"there is no file {found[1]}: check the path given to --config"
        return re.sub(r"\s+", " ", re.sub(r'Parser key "([\w.]+)":', r"--\1:", message)).strip()


def parse(config_class: Callable[..., Config], words: Sequence[str] | None = None) -> Config:
    """Read ``--config FILE``, dotted overrides and ``--print_config`` into a checked ``config_class``.

    A tuple of strings with ``positional`` in its field's metadata takes the words that belong to no option; what it says there is what they are.

    Raises:
        UserError: An option is unknown, ineffective, missing or has a value that cannot be meant.
    """
    parser = _Parser(description=(config_class.__doc__ or "").split("\n")[0], exit_on_error=True, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of options; options given after it win.")
    parser.positional = _positional(config_class)
    names = set(parser.positional[:1] if parser.positional else ())
    parser.add_class_arguments(config_class, skip=names)
    for name in names:
        parser.add_argument(name, nargs="+", type=str, help=_described(config_class, name))
    values = vars(parser.instantiate(parser.parse_args(_spelled_out(parser, sys.argv[1:] if words is None else words))))
    values.pop("config", None)
    return config_class(**{name: tuple(value) if name in names else value for name, value in values.items()})


def _spelled_out(parser: _Parser, words: Sequence[str]) -> list[str]:
    """``--dry_run`` alone means ``--dry_run true``; so for every option that is true or false."""
    flags = {f"--{action.dest}" for action in parser._actions if getattr(action, "_typehint", None) in (bool, bool | None)}
    spelled: list[str] = []
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        spelled += [word, "true"] if word in flags and following.startswith("--") else [word]
    return spelled


def _positional(config_class: Any) -> tuple[str, str] | None:
    return next(((field.name, field.metadata["positional"]) for field in dataclasses.fields(config_class) if "positional" in field.metadata), None)


def _described(config_class: Any, name: str) -> str:
    """What the docstring says of the field ``name``, as jsonargparse reads it."""
    parser = ArgumentParser()
    parser.add_class_arguments(config_class)
    return next(str(action.help) for action in parser._actions if action.dest == name)


def write_config(config: Any, path: Path) -> None:
    """Write the whole resolved configuration as YAML that ``--config`` reads back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return float(value) if isinstance(value, float) else value

    path.write_text(yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False), encoding="utf-8")


def command_line(main: Callable[[Config], Any], config_class: Callable[..., Config]) -> NoReturn:
    """Run a recipe as a command: status 0 only when the job was done, one sentence and status 2 on a user's mistake."""
    try:
        main(parse(config_class))
    except UserError as error:
        # tqdm and loggers write to stderr as well: flushing stdout first keeps the sentence last.
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if dist.is_initialized():  # two-process runs that do not part sometimes abort at exit
        dist.destroy_process_group()
    sys.exit(0)
