"""A Space for the Hub: the demo's page with its models, images and this package's own source, so that nothing else has to be published first."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from rocl_transfer.errors import UserError, path_of
from rocl_transfer.evaluation.privacy import places, revealed, scrub
from rocl_transfer.hub.demo import Settings, titles
from rocl_transfer.hub.export import CONFIG, OUTPUT_CHECK, WEIGHTS
from rocl_transfer.hub.exported import find
from rocl_transfer.hub.publish import Published, PublishOptions
from rocl_transfer.hub_failures import patiently

APP, REQUIREMENTS, CARD = "app.py", "requirements.txt", "README.md"
GRADIO = "6.31.0"  # that the page was tried in a browser with
_PACKAGE = Path(__file__).parents[1]
_OF_RECIPES = ("jsonargparse", "datasets")  # what only recipes and training data use

_APP = '''"""The demo of rocl_transfer as a Space; locally: pip install -r requirements.txt, then python app.py."""

from pathlib import Path

from rocl_transfer import load_classifier
from rocl_transfer.hub.demo import Settings, interface, serve

HERE = Path(__file__).parent
MODELS = {models}
SETTINGS = Settings({settings})


def find(name: str) -> str:
    """A model of this folder, or one of the Hub or timm."""
    return str(HERE / name) if name.startswith("models/") else name


models = [(title, load_classifier(find(name))) for title, name in MODELS.items()]
images = sorted(path for path in (HERE / "images").glob("*") if path.is_file())

if __name__ == "__main__":
    serve(interface(models, images, SETTINGS))
'''

_CARD = """# How robust is it?

Choose an image or upload one, and let the perturbation grow: the clean and the adversarial image, the perturbation enlarged, probabilities as epsilon
grows, and the smallest epsilon at which PGD flips the answer, which is an upper bound.

Models: {names}. Made by `rocl_transfer` {version}, whose source is in this folder.
"""


def export_space(folder: Path, names: Sequence[str], images: Sequence[Path], settings: Settings) -> Path:
    """Write a Space's files: ``app.py``, ``requirements.txt``, ``README.md`` with its header, models, images and the package.

    Args:
        folder: New, or empty.
        names: One or two classifiers; a folder's weights are copied, a model of the Hub or of timm is fetched by the Space.
        images: To choose from.
        settings: What the sliders begin with.

    Raises:
        UserError: The folder is not empty or cannot be written, or a model's configuration shows where something lies on this machine.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there already and not empty: name another folder, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        models = {title: _model(name, number, folder) for number, (title, name) in enumerate(zip(titles(names), names, strict=True))}
        _copy_images(images, folder / "images")
        _copy_package(folder / "rocl_transfer")
        options = ", ".join(f"{name}={value!r}" for name, value in _plain(settings).items())
        (folder / APP).write_text(_APP.format(models=json.dumps(models, indent=4), settings=options), encoding="utf-8")
        (folder / REQUIREMENTS).write_text("\n".join([*requirements(), f"gradio=={GRADIO}"]) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card(list(models)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written ({error.strerror}): name another folder") from error
    return folder


def card(titles: Sequence[str]) -> str:
    """The Space's README.md, whose header tells the Hub how to start it."""
    header = {"title": "How robust is it?", "sdk": "gradio", "sdk_version": GRADIO, "app_file": APP, "pinned": False, "tags": ["robustness"]}
    listed = ", ".join(f"`{title.replace('`', '')}`" for title in titles)
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{_CARD.format(names=listed, version=_version())}"


def requirements() -> list[str]:
    """What the page needs of this package's dependencies, each with its lower bound."""
    needed = [line for line in metadata.requires("rocl-transfer") or [] if "extra ==" not in line]
    return sorted(line for line in needed if re.split(r"[^\w-]", line)[0] not in _OF_RECIPES)


def _version() -> str:
    from rocl_transfer.version import __version__

    return __version__


def _plain(settings: Settings) -> dict[str, Any]:
    return {name: float(value) if isinstance(value, float) else value for name, value in asdict(settings).items()}


def _model(name: str, number: int, folder: Path) -> str:
    """Where the Space finds the model; a local one is copied, without what its configuration says of this machine."""
    source = None if name.startswith("hf-hub:") else find(name)
    if source is None:
        return name
    target = folder / "models" / str(number)
    target.mkdir(parents=True, exist_ok=True)
    for file in (WEIGHTS, OUTPUT_CHECK):
        if (source.folder / file).is_file():
            shutil.copyfile(source.folder / file, target / file)
    content = scrub(source.content, places(source.content))
    if place := revealed(content):
        raise UserError(f"{source.folder / CONFIG} would show {place}, a place on this machine: correct it by hand")
    (target / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return f"models/{number}"


def _copy_images(images: Sequence[Path], folder: Path) -> None:
    """Under their own names, and a number before those that two of them have."""
    for number, path in enumerate(images):
        folder.mkdir(exist_ok=True)
        name = path.name if sum(other.name == path.name for other in images) == 1 else f"{number}_{path.name}"
        shutil.copyfile(path, folder / name)


def _copy_package(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "recipes", "config", "*.pyc")
    shutil.copytree(_PACKAGE, folder, ignore=ignored)


def files_of(folder: Path) -> Mapping[str, Path]:
    """What of a Space's folder is sent, by its path there.

    Raises:
        UserError: The folder is no Space that was exported.
    """
    for name in (APP, REQUIREMENTS, CARD):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: name a folder that recipes/demo.py --export_space wrote")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path for path in paths if not path.relative_to(folder).parts[0].startswith(".")}


def publish_space(folder: str | Path, options: PublishOptions) -> Published:
    """Send an exported Space as one commit; what an earlier one left there and this one lacks is removed.

    Args:
        folder: From :func:`export_space`.
        options: Which Space, and whether a new one is private.

    Raises:
        UserError: It is no Space's folder, or there is no token, no right or no network.
    """
    files, api, repo_id = files_of(path_of(folder)), HfApi(), options.repo_id
    what = f"the Space {repo_id} cannot be published"

    def begin() -> str:
        try:
            return str(api.repo_info(repo_id, repo_type="space").sha)
        except RepositoryNotFoundError:
            api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=options.private, exist_ok=True)
            return str(api.repo_info(repo_id, repo_type="space").sha)

    def send() -> tuple[str, str]:
        there = api.list_repo_files(repo_id, repo_type="space")
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in there if name not in files and name != ".gitattributes"]
        commit = api.create_commit(repo_id, operations, commit_message="A demo, by rocl_transfer", repo_type="space")
        return commit.oid, str(commit.commit_url)

    before = patiently(begin, what)
    commit, url = patiently(send, what)
    return Published(url, commit, commit != before)
