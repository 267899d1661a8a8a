"""A run folder to a repository on the Hub: checked first, then sent as one commit."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from rocl_transfer.errors import UserError, one_line, path_of
from rocl_transfer.evaluation.privacy import class_names, places, revealed, scrub
from rocl_transfer.evaluation.results import entry_key
from rocl_transfer.hub.card import CARD, RESULTS, card_text, later_evaluations, public_options
from rocl_transfer.hub.export import CONFIG, OUTPUT_CHECK, PROJECTOR, WEIGHTS
from rocl_transfer.hub.load import load_backbone
from rocl_transfer.hub.named import look_up
from rocl_transfer.hub_failures import patiently
from rocl_transfer.options import require
from rocl_transfer.training import sha256

OPTIONS = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Where a model is put on the Hub, and under which licence.

    Args:
        repo_id: USER/NAME on the Hub.
        private: Whether a new repository is private (default: the account's setting); one that exists stays as it is.
        revision: Branch to send to, created if there is none (default: main).
        tag: Name for the commit, such as v1.
        license: Licence of the weights by the Hub's identifier, such as apache-2.0.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    tag: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        named = re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id, re.ASCII) is not None
        require(named, f"--repo_id is {self.repo_id}: write USER/NAME, of letters, digits, '-', '_' and '.'")
        for name in ("revision", "tag", "license"):
            value = getattr(self, name)
            plain = value is None or re.fullmatch(r"[\w./-]+", value, re.ASCII) is not None
            require(plain, f"--{name} is {value!r}: write letters, digits, '-', '_', '.'")


@dataclass(frozen=True)
class Publication:
    """What would be sent.

    Attributes:
        files: Path in the repository -> a file, or the bytes that are made for it.
        card: Text of the card.
        warnings: What a reader of the card will miss, one sentence each.
    """

    files: Mapping[str, Path | bytes]
    card: str
    warnings: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: len(what) if isinstance(what, bytes) else what.stat().st_size for name, what in self.files.items()}


@dataclass(frozen=True)
class Published:
    """Where it is now.

    Attributes:
        url: The commit's.
        commit: 40 hexadecimal digits.
        changed: False where the repository held all of it already.
    """

    url: str
    commit: str
    changed: bool


def prepare(run: str | Path, options: PublishOptions) -> Publication:
    """Check a run folder and gather what belongs on the Hub: weights, configuration, card, results record and figures, nothing else.

    Args:
        run: A folder that pre-training, a probe, fine-tuning or a conversion left.
        options: Repository and branch, which the card's commands name, and the licence.

    Raises:
        UserError: Something is missing, the weights are not those that were measured, or the card says other things than the record.
    """
    folder = path_of(run)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name a run folder with --run")
    model = look_up(f"local-dir:{folder}")
    assert model.exported is not None
    for name in (RESULTS, OPTIONS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: name a run whose training has ended, and which measured what it made")
    results = _read(folder / RESULTS)
    sha = model.exported.sha256
    if (measured := results.get("model", {}).get("sha256")) != sha:
        raise UserError(f"{folder / RESULTS} is of other weights (sha256 {measured}) than {WEIGHTS} ({sha}): measure these, or export those again")
    _check_verdicts(folder, results)
    load_backbone(model)  # whole, and still what was exported
    _check_card(folder)
    texts = _public(folder)
    config: dict[str, Any] = json.loads(texts[CONFIG])
    license = options.license or config["pretrained_cfg"].get("license")
    config["pretrained_cfg"] |= {"license": license} if license else {}
    place = f"hf-hub:{options.repo_id}" + (f"@{options.revision}" if options.revision else "")
    card = card_text(folder, license=license, place=place, texts=texts)
    texts |= {CARD: card.encode(), CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    _refuse_places(folder, texts)
    files: dict[str, Path | bytes] = dict(texts)
    files |= {name: folder / name for name in (WEIGHTS, OUTPUT_CHECK, PROJECTOR) if (folder / name).is_file()}
    files |= {f"figures/{path.name}": path for path in sorted((folder / "figures").glob("*.png"))}
    shown = ["figures/adversarial.png shows a few of the test images"] if "figures/adversarial.png" in files else []
    return Publication(files, card, (*_missing(results, config, license), *shown))


def _check_card(folder: Path) -> None:
    plain = card_text(folder)
    written = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else plain
    if written != plain:
        line = next((n for n, (a, b) in enumerate(zip(written.splitlines(), plain.splitlines(), strict=False), 1) if a != b), "last")
        raise UserError(
            f"{folder / CARD} is not what {RESULTS} and the template make of it (line {line}): what a card says comes from its record; "
            f"remove {CARD} to have it made again"
        )


def _public(folder: Path) -> dict[str, bytes]:
    """The record and the configurations as they may leave: of local paths the last part alone. They are sent as they are where they name none."""
    texts = {name: (folder / name).read_bytes() for name in (RESULTS, OPTIONS, CONFIG)}
    known = places(yaml.safe_load(texts[OPTIONS]))
    texts[OPTIONS] = public_options(texts[OPTIONS].decode()).encode()
    for name, indent in ((RESULTS, 1), (CONFIG, 2)):
        content = _read(folder / name)
        if (public := scrub(content, known | places(content))) != content:
            texts[name] = (json.dumps(public, indent=indent) + "\n").encode()
    return texts


def _refuse_places(folder: Path, texts: Mapping[str, bytes]) -> None:
    """Nothing is sent that still says where something lies on this machine."""
    contents = {name: json.loads(text) if name.endswith(".json") else text.decode() for name, text in texts.items()}
    classes = class_names(list(contents.values()))  # the card names some without listing them
    for name, content in contents.items():
        if place := revealed(content, classes):
            raise UserError(
                f"{name} of {folder} would show {one_line(place)}, a place on this machine: call the data by --data.title, or correct {name} by hand"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): measure or export again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a record: measure or export again")
    return content


def _check_verdicts(folder: Path, results: Mapping[str, Any]) -> None:
    """Every accuracy in the record is the share of the samples that stand beside it."""
    path = folder / "verdicts.jsonl"
    if not path.is_file():
        return
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for entry in results["evaluations"]:
            column = entry_key(entry)
            share = sum(line[column] for line in lines) / entry["n"]
            if len(lines) != entry["n"] or abs(share - entry["accuracy"]) > 1e-9:
                says = f"{entry['accuracy']} of {entry['n']} for {column}"
                raise UserError(f"{folder / RESULTS} says {says}, the {len(lines)} samples in {path.name} say {share}: measure again")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} does not belong to {RESULTS} or is damaged ({type(error).__name__}: {error}): measure again") from error


def _missing(results: Mapping[str, Any], config: Mapping[str, Any], license: str | None) -> list[str]:
    missing = []
    if license is None:
        missing.append("no licence was given, so nobody may use the weights: give --license, such as apache-2.0")
    later = later_evaluations(results)
    doubts = [doubt for part in (results, *later) for doubt in part.get("doubts") or []]
    missing += [f"the card doubts its accuracy: {doubt}" for doubt in dict.fromkeys(doubts)]
    names = {entry["name"] for part in later for entry in part["evaluations"]}
    if config.get("num_classes") and "autoattack" not in names:
        says = "has AutoAttack's first two parts alone (autoattack-fast)" if "autoattack-fast" in names else "says that AutoAttack was not evaluated"
        missing.append(f"the card {says}: recipes/evaluate.py --model.name RUN --attacks standard adds it")
    if config.get("num_classes") and not any("masking" in part.get("report", {}) for part in later):
        missing.append("the card has no verdict on gradient masking: recipes/evaluate.py --report full adds it")
    return missing


def publish(publication: Publication, options: PublishOptions) -> Published:
    """Make the repository if there is none, send everything as one commit, and see that the Hub holds it.

    Interrupted, it leaves the repository as it was or as it should be; done again, it sends what is not there yet.

    Args:
        publication: From :func:`prepare`.
        options: Those it was prepared with.

    Raises:
        UserError: There is no token, or no right, or no network; the tag belongs to another commit.
    """
    api, what = HfApi(), f"{options.repo_id} cannot be published"
    before = patiently(lambda: _begin(api, options), what)
    commit, url = patiently(lambda: _send(api, publication, options), what)
    return Published(url, commit, commit != before)


def _begin(api: HfApi, options: PublishOptions) -> str:
    """Make repository and branch if there are none; the commit that the branch is on."""
    repo_id, revision = options.repo_id, options.revision
    known = _visibility(api, repo_id)
    if known is None:
        api.create_repo(repo_id, private=options.private, exist_ok=True)
    elif options.private is not None and known != options.private:
        is_now = "private" if known else "public"
        raise UserError(f"{repo_id} exists and is {is_now}: leave out --private, or change it in its settings on the Hub")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return str(api.repo_info(repo_id, revision=revision).sha)


def _send(api: HfApi, publication: Publication, options: PublishOptions) -> tuple[str, str]:
    """The commit, and its address."""
    repo_id, revision = options.repo_id, options.revision
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, what if isinstance(what, bytes) else str(what)) for name, what in publication.files.items()
    ]
    # What another model of ours left there would be taken for this one's.
    there = api.list_repo_files(repo_id, revision=revision)
    ours = [name for name in there if name in (OUTPUT_CHECK, PROJECTOR) or re.fullmatch(r"figures/\w+\.png", name)]
    operations += [CommitOperationDelete(name) for name in ours if name not in publication.files]
    commit = api.create_commit(repo_id, operations, commit_message="Weights, results record and card, by rocl_transfer", revision=revision)
    _compare(api, publication, repo_id, commit.oid)
    if options.tag is not None:
        _tag(api, repo_id, options.tag, commit.oid)
    return commit.oid, str(commit.commit_url)


def _visibility(api: HfApi, repo_id: str) -> bool | None:
    """Whether the repository is private; None if there is none to be seen."""
    try:
        return bool(api.repo_info(repo_id).private)
    except RepositoryNotFoundError:
        return None


def _compare(api: HfApi, publication: Publication, repo_id: str, commit: str) -> None:
    """Whether the commit holds what was sent: sizes of all files, and the SHA-256 of the large ones."""
    there = {file.rfilename: file for file in api.model_info(repo_id, revision=commit, files_metadata=True).siblings or []}
    for name, size in publication.sizes().items():
        what, file = publication.files[name], there.get(name)
        digest = file.lfs.sha256 if file is not None and file.lfs is not None else None
        if file is None or file.size != size or (digest is not None and isinstance(what, Path) and digest != sha256(what)):
            raise UserError(f"the Hub does not hold {name} of {repo_id} as it was sent: publish it again")


def _tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    try:
        api.create_tag(repo_id, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code != 409:
            raise
        there = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
        if there.get(tag) != commit:
            raise UserError(
                f"{repo_id} has the tag {tag} on another commit, {there.get(tag)}: everything was sent; give --tag another name"
            ) from error
