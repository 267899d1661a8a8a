"""The configuration of ``recipes/publish.py``."""

import re
from dataclasses import dataclass

from rocl_transfer.options.checks import require, require_untouched


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """A run to a model on the Hub, its weights with the record and the card that speak of them.

    Args:
        run: A run folder.
        repo_id: USER/NAME on the Hub.
        dry_run: Say what would be sent, and send nothing.
        private: Whether a new repository is private (default: as the account has it); one that exists stays as it is.
        revision: Branch to send to, made where there is none (default: main).
        tag: Name for the commit, such as v1.
        license: Licence of the weights by the Hub's identifier, such as apache-2.0.
    """

    run: str
    repo_id: str
    dry_run: bool = False
    private: bool | None = None
    revision: str | None = None
    tag: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.run), "--run is empty: name a run folder, such as runs/ft")
        named = re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id, re.ASCII) is not None
        require(named, f"--repo_id is {self.repo_id}: write USER/NAME, of letters, digits, '-', '_' and '.'")
        for name in ("revision", "tag", "license"):
            value = getattr(self, name)
            plain = value is None or re.fullmatch(r"[\w./-]+", value, re.ASCII) is not None
            require(plain, f"--{name} is {value!r}: write letters, digits, '-', '_', '.'")
        if self.dry_run:
            require_untouched(self, ("private", "tag"), "with --dry_run, which sends nothing")
