"""From the words on the command line to a checked configuration, and from a user's mistake to one sentence and status 2."""

import atexit
import dataclasses
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import torch.distributed as dist
import yaml
from jsonargparse import SUPPRESS, ArgumentParser, Namespace, get_loader, set_loader
from jsonargparse.typing import register_type
from safetensors import SafetensorError

from rocl_transfer.config.methods import find_method, given_method
from rocl_transfer.config.presets import remember, with_fitting_warmup
from rocl_transfer.config.sentences import sentence, wrong
from rocl_transfer.errors import Interrupted, UserError, one_line, tell_launcher
from rocl_transfer.options import Number, default_of, require

Config = TypeVar("Config")
_DEEPEST = 32  # levels of a YAML file; the reader in C falls over its own stack at some ten thousand
_LONGEST = 3000  # letters of a word; Python refuses to print whole numbers of more than 4,300 digits
_load = get_loader("yaml")


def _load_shallow(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"lists and tables exceed a nesting depth of {_DEEPEST}")
        if isinstance(event, yaml.AliasEvent):  # nine of them nine deep are a thousand million words, and one in itself has no end
            raise yaml.YAMLError(f"*{event.anchor} stands for another part of the file: write that part out")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST:
            raise yaml.YAMLError(f"a value has more than {_LONGEST:,} letters")
    try:
        return _load(text)
    except ValueError as error:  # a whole number of thousands of digits, a date that is none
        raise yaml.YAMLError(str(error)) from error


set_loader("yaml", _load_shallow, (yaml.YAMLError,))


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str) and value.count("/") == 1:
            numerator, denominator = value.split("/")
            number = Number(float(numerator) / float(denominator))
        else:
            number = Number(value)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"value: {value}") from error
    if not math.isfinite(number):
        raise ValueError(f"value: {value}")
    return number


register_type(Number, serializer=float, deserializer=_number)


class _Parser(ArgumentParser):
    """Says one sentence on an error, where jsonargparse prints its whole usage."""

    positional: tuple[str, str] | None = None  # the field that takes words without an option, and what those are
    foreign: dict[str, str]  # options that other methods have, each with the method that was chosen

    def add_methods(self, group: str, method: str, choices: Mapping[str, Any]) -> None:
        """The options of ``method`` as ``group``; those that only other ``choices`` have are read too, for the sentence that refuses them."""
        options = find_method(choices, method).Options
        self.add_class_arguments(options, group)
        known = {field.name for field in dataclasses.fields(options)}
        self.foreign = {}
        before = len(self._actions)
        for other in choices.values():
            hints = get_type_hints(other.Options)
            for option in dataclasses.fields(other.Options):
                if option.name not in known:
                    known.add(option.name)
                    self.foreign[f"{group}.{option.name}"] = method
                    self._add_hidden(f"{group}.{option.name}", hints[option.name], default_of(option))
        for action in self._actions[before:]:
            action.help = SUPPRESS

    def _add_hidden(self, name: str, kind: Any, default: Any) -> None:
        if dataclasses.is_dataclass(kind):
            self.add_class_arguments(kind, name)
            self.set_defaults({f"{name}.{key}": value for key, value in dataclasses.asdict(default).items()})
        else:
            self.add_argument(f"--{name}", type=kind, default=default)

    def drop_foreign(self, parsed: Namespace) -> None:
        """Take the options of other methods out of what was parsed.

        Raises:
            UserError: One differs from its default, so that it was meant to do something.
        """
        foreign = getattr(self, "foreign", {})
        # A group among them would be instantiated all the same.
        self._action_groups = [group for group in self._action_groups if getattr(group, "dest", None) not in foreign]
        for name, method in foreign.items():
            if name in parsed:
                value, default = parsed.pop(name), self.get_defaults().get(name)
                require(value == default, f"--{name} has no effect with --{name.split('.')[0]}.method {method}: leave it out")

    def refuse_flat(self, parsed: Namespace) -> None:
        """Refuse a single value in place of a group's options.

        Raises:
            UserError: There is one.
        """
        for name in (str(getattr(group, "dest", "")) for group in self._action_groups):
            if name in parsed and not isinstance(parsed[name], Namespace):
                raise UserError(wrong(name, parsed[name], None))

    def dump(self, cfg: Namespace, **options: Any) -> str:
        """See jsonargparse; without the options of other methods."""
        cfg = cfg.clone()
        for name in getattr(self, "foreign", {}):
            cfg.pop(name, None)
        return str(super().dump(cfg, **options))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(self.sentence(message)) from ex

    def sentence(self, message: str) -> str:
        """Jsonargparse's message as one sentence with a remedy."""
        return sentence(message, self.kinds(), self.positional)

    def kinds(self) -> dict[str, Any]:
        """Every option's annotation by its dotted name; None for a group."""
        return {action.dest: getattr(action, "_typehint", None) for action in self._actions if action.option_strings}


def _parser_of(config_class: Callable[..., Any], words: Sequence[str]) -> tuple[_Parser, Sequence[str]]:
    """A parser of all options of ``config_class``, and the words it is to read."""
    parser = _Parser(description=(config_class.__doc__ or "").split("\n")[0], exit_on_error=True, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of options; options given after it win.")
    parser.positional = _positional(config_class)
    chosen = {field.name: field.metadata for field in dataclasses.fields(config_class) if "methods" in field.metadata}  # type: ignore[arg-type]
    positional = set(parser.positional[:1] if parser.positional else ())
    parser.add_class_arguments(config_class, skip={*positional, *chosen})
    for name in positional:
        parser.add_argument(name, nargs="+", type=str, help=_described(config_class, name))
    for group, metadata in chosen.items():
        method = given_method(words, group, _load_shallow) or metadata["default"]
        parser.add_methods(group, method, metadata["methods"])
        words = [f"--{group}.method", method, *words]  # of a user's own class it has no default
    return parser, words


def _refuse_spent(parsed: Namespace, given: Iterable[str]) -> None:
    """Refuse a number of steps that was given for an attack which takes one; what was not given is another attack's default.

    Raises:
        UserError: There is one.
    """
    for name in given:
        owner, _, option = name.rpartition(".")
        spent = option == "steps" and owner and parsed.get(f"{owner}.kind") == "nfgsm"
        sentence = f"--{name} {parsed.get(name)} has no effect with --{owner}.kind nfgsm, which takes one: leave it out, or give kind pgd"
        require(not spent or parsed.get(name) == 1, sentence)


def parse(config_class: Callable[..., Config], words: Sequence[str] | None = None) -> Config:
    """Read ``--config FILE``, dotted overrides and ``--print_config`` into a checked ``config_class``.

    A tuple of strings with ``positional`` in its field's metadata takes the words that belong to no option; what it says there is what they are.

    Raises:
        UserError: An option is unknown, ineffective, missing or has a value that cannot be meant.
    """
    words = sys.argv[1:] if words is None else words
    long = next((word for word in words if len(word) > _LONGEST), "")
    require(not long, f"{long[:100]!r}... has more than {_LONGEST:,} letters: no option, number or name has")
    parser, words = _parser_of(config_class, words)
    names = set(parser.positional[:1] if parser.positional else ())
    try:
        words = _spelled_out(parser, words)
        parsed, given = parser.parse_args(words), frozenset(parser.parse_args(words, defaults=False).keys())
        parser.drop_foreign(parsed)
        _refuse_spent(parsed, given)
        parser.refuse_flat(parsed)
        values = vars(parser.instantiate(parsed))
    except UnicodeDecodeError as error:
        raise UserError(f"the file given to --config is not UTF-8 ({error.reason} at byte {error.start}): save it as such") from error
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:  # jsonargparse stumbles over tables where none belong
        raise UserError(f"the options cannot be understood ({error}): write a group's options below it as NAME: VALUE, --help lists them") from error
    values.pop("config", None)
    foreign = sorted(values.keys() - {field.name for field in dataclasses.fields(config_class)})  # type: ignore[arg-type]
    require(not foreign, f"unknown option {', '.join(foreign)} in the configuration: leave it out")
    hints = get_type_hints(config_class)
    empty = next((name for name, value in values.items() if value is None and type(None) not in get_args(hints[name])), None)
    require(empty is None, f"--{empty} is null: leave it out, or give a value")
    config = config_class(**{name: tuple(value) if name in names else value for name, value in values.items()})
    wrong = next((text for text in _texts(vars(config)) if "\0" in text or len(text) > _LONGEST), "")
    require(not wrong, f"{wrong[:100]!r} has a character of code 0, or more than {_LONGEST:,}: no name has")
    written = [value for name, value in vars(config).items() if name not in names]  # into config.yaml
    bytes_only = next((text for text in _texts(written) if re.search("[\ud800-\udfff]", text)), "")
    require(not bytes_only, f"{bytes_only!r} is not UTF-8, so config.yaml cannot name it: rename it")
    config = with_fitting_warmup(config, given)
    remember(config, given)
    return config


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _texts(vars(value))
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


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


# What the kernel says when nothing more can be written: safetensors hands on its words without the number.
_STORAGE = re.compile("No space left on device|Disk quota exceeded|File too large|Read-only file system|Input/output error")


def _end(sentence: str, status: int) -> NoReturn:
    sys.stdout.flush()  # tqdm and loggers write to stderr as well: this keeps the sentence last
    sentence = one_line(sentence)
    print(sentence, file=sys.stderr, flush=True)
    tell_launcher(sentence)
    leave(status)


def command_line(main: Callable[[Config], Any], config_class: Callable[..., Config]) -> NoReturn:
    """Run a recipe as a command: status 0 only when the job was done, one sentence and status 2 on what a user can mend, 128 + N after signal N."""
    try:
        main(parse(config_class))
    except UserError as error:
        _end(f"error: {error}", 2)
    except KeyboardInterrupt as error:
        interruption = error if isinstance(error, Interrupted) else Interrupted()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers send more than one
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end(str(interruption), interruption.status)
    except (OSError, SafetensorError) as error:
        if (found := _STORAGE.search(str(error))) is None:
            raise
        name = getattr(error, "filename", None)
        _end(f"error: {name or 'a file'} cannot be written ({found[0]}): make room there, and give the same command again", 2)
    leave(0)


def leave(status: int) -> NoReturn:
    """End this process; one of several without the interpreter's own end.

    Two processes whose job was done were seen to abort ("terminate called") while the interpreter took itself down.
    """
    if not dist.is_initialized():
        sys.exit(status)
    if status == 0:  # else another one may wait in a collective, and would be waited for
        dist.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
