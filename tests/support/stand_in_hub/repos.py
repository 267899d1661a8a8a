"""Repositories as the Hub keeps them: commits of files, branches, tags."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
# The Hub's own messages: huggingface_hub and others look for some of them.
MESSAGES = {
    "RepoNotFound": "Repository not found",
    "RevisionNotFound": "Invalid rev id",
    "EntryNotFound": "Entry not found",
    "GatedRepo": "Access to this repository is restricted and you are not in the authorized list",
}


class HubError(Exception):
    """An answer that is an error: status, X-Error-Code, X-Error-Message."""

    def __init__(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        self.status, self.code, self.commit = status, code, commit
        self.message = message or MESSAGES.get(code, "")
        super().__init__(f"{status} {code} {self.message}")


def needs_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file apart from git, by name or, like git, by a NUL byte among its first bytes."""
    return path.endswith((".safetensors", ".parquet")) or (size > 10_000 and b"\0" in sample)


@dataclass(frozen=True)
class File:
    """A file's content and where it is kept."""

    data: bytes
    lfs: bool

    @classmethod
    def of(cls, path: str, data: bytes) -> "File":
        return cls(data, bool(data) and needs_lfs(path, len(data), data[:512]))

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def blob(self) -> str:
        """Git's name of what git keeps: the content, or the pointer to it."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob


@dataclass(frozen=True)
class Commit:
    """All files at one point of a history."""

    id: str
    parent: str | None
    title: str
    files: Mapping[str, File]


@dataclass
class Repo:
    """A repository of a model or a dataset."""

    id: str
    type: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or an id means."""
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        if found not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[found]

    def commit(self, files: Mapping[str, File], title: str, branch: str = "main") -> Commit:
        """Put a commit of exactly ``files`` on a branch."""
        parent = self.branches.get(branch)
        facts = [self.type, self.id, parent, title, sorted((path, file.blob) for path, file in files.items())]
        commit = Commit(hashlib.sha1(json.dumps(facts).encode(), usedforsecurity=False).hexdigest(), parent, title, dict(files))
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit

    def history(self, revision: str = "main") -> list[Commit]:
        """The newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits
