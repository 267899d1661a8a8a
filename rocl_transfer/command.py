"""``rocl``: the recipes by name, from a checkout or an installed package.

rocl ls                    the recipes, one line each
rocl finetune ...          run one in this process; --help lists its options
rocl path finetune         its file, for: accelerate launch --quiet --config_file FILE $(rocl path finetune) ...
rocl cp finetune FOLDER    copy it, with its configurations, to change it
"""

import ast
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rocl_transfer.errors import UserError, did_you_mean, one_line, path_of

_PLACES = (Path(__file__).parent / "recipes", Path(__file__).parents[1] / "recipes")  # in a wheel, in a checkout
_SHORT = {"probe": "linear_probe"}


def recipes() -> dict[str, Path]:
    """Every recipe's file by its name.

    Raises:
        UserError: There is none, so the installation is not whole.
    """
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        raise UserError("the recipes are missing from the installation of rocl_transfer: install the package again")
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def recipe(name: str) -> Path:
    """The file of the recipe ``name``.

    Raises:
        UserError: There is none.
    """
    known = recipes()
    if _SHORT.get(name, name) not in known:
        raise UserError(f"there is no recipe {name}{did_you_mean(name, [*known, *_SHORT, 'ls', 'path', 'cp']) or '; rocl ls lists them'}")
    return known[_SHORT.get(name, name)]


def listing() -> str:
    """The recipes, one line each: name and what it does."""
    shown = {file.stem: name for name, file in ((short, recipes()[long]) for short, long in _SHORT.items())}
    lines = [(shown.get(name, name), _summary(path)) for name, path in recipes().items()]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {summary}" for name, summary in lines)


def copy(name: str, folder: Path) -> list[Path]:
    """Copy the recipe ``name`` into ``folder``, with the recipes that it imports and the configurations that are meant for it.

    Raises:
        UserError: A file of that name is there already, or the folder cannot be written.
    """
    source = recipe(name)
    parts = _with_imports(source)
    configs = [path for path in sorted((source.parent / "configs").glob("*.yaml")) if _is_meant_for(path, parts)]
    targets = {part: folder / part.name for part in parts} | {path: folder / "configs" / path.name for path in configs}
    if standing := [target for target in targets.values() if target.exists()]:
        raise UserError(f"{standing[0]} is there already: name another folder, or remove it")
    try:
        for path, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written ({error.strerror}): name another folder") from error
    return list(targets.values())


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def _with_imports(source: Path) -> list[Path]:
    """The recipe and those beside it that it imports, at any depth."""
    found, waiting = [], [source]
    while waiting:
        path = waiting.pop()
        found.append(path)
        imports = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Import)]
        beside = {path.with_name(f"{alias.name}.py") for node in imports for alias in node.names}
        waiting += sorted(other for other in beside if other.is_file() and other not in (*found, *waiting))
    return found


def _is_meant_for(config: Path, parts: Sequence[Path]) -> bool:
    text = config.read_text(encoding="utf-8")
    return any(f"recipes/{part.name}" in text for part in parts)


def run(path: Path, words: Sequence[str]) -> None:
    """Run a recipe in this process, as ``python FILE WORDS`` would."""
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def main() -> NoReturn:
    """The command; status 2 and one sentence on a mistake."""
    words = sys.argv[1:]
    try:
        match words:
            case [] | ["-h" | "--help"]:
                print(f"{__doc__}\n{listing()}")
            case ["ls"]:
                print(listing())
            case ["path", name]:
                print(recipe(name))
            case ["cp", name] | ["cp", name, _]:
                print("\n".join(map(str, copy(name, path_of(words[2] if len(words) > 2 else ".")))))
            case ["ls" | "path" | "cp" as verb, *_]:
                raise UserError(f"rocl {verb} takes {'nothing more' if verb == 'ls' else 'the name of one recipe'}: rocl --help shows how")
            case [name, *rest]:
                run(recipe(name), rest)
    except UserError as error:
        print(one_line(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
