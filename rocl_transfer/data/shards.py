"""Folders of webdataset shards: tar files whose members share one key per sample. They are indexed once and read where they lie, never unpacked."""

import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rocl_transfer.data.inventory import counted, files_below, image_extensions
from rocl_transfer.data.listing import value_of
from rocl_transfer.data.local import group_by_split
from rocl_transfer.data.sources import RawSplit, Source
from rocl_transfer.errors import UserError, did_you_mean, one_line

log = logging.getLogger("rocl_transfer")
_NAME = re.compile(r"(?P<key>(.*/)?[^./][^./]*)\.(?P<extension>[^/]*)", re.DOTALL)  # webdataset's rule: the extension begins at the first dot
_INCOMPLETE = 0.05  # largest share of samples without an image that is left out; one always may be
_LONGEST = 65536  # bytes of a label
IMAGE = "image"  # what the column is called where datasets streams shards
Place = tuple[int, int]  # offset and size


@dataclass
class _Sample:
    key: str
    members: dict[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class _Shard:
    path: Path
    samples: list[_Sample]
    notes: list[str]

    @property
    def layout(self) -> tuple[str, ...]:
        """The extensions that most samples have, images of any kind as one."""
        kinds = Counter(tuple(sorted({"image" if _is_image(name) else name for name in sample.members})) for sample in self.samples)
        return kinds.most_common(1)[0][0] if kinds else ()

    @property
    def spelled(self) -> str:
        """The extensions of its commonest sample as they are."""
        kinds = Counter(tuple(sorted(sample.members)) for sample in self.samples)
        return ", ".join(one_line(name) for name in kinds.most_common(1)[0][0]) if kinds else "nothing"


class TarRows:
    """Images inside tar files, by shard, offset and size.

    Args:
        found: Shard, key and place of each.
    """

    def __init__(self, found: Iterable[tuple[Path, str, Place]]) -> None:
        rows = list(found)
        self.paths = list(dict.fromkeys(path for path, _, _ in rows))
        number = {path: at for at, path in enumerate(self.paths)}
        self._shards = np.array([number[path] for path, _, _ in rows], dtype=np.int32)
        self._places = np.array([place for _, _, place in rows], dtype=np.int64).reshape(-1, 2)
        keys = [key.encode(errors="surrogateescape") for _, key, _ in rows]
        self._keys, self._ends = b"".join(keys), np.cumsum([0, *map(len, keys)])  # one buffer, as in FileRows

    def __len__(self) -> int:
        return len(self._shards)

    def encoded(self, index: int) -> bytes:
        """See :class:`~rocl_transfer.data.sources.Rows`."""
        offset, size = self._places[index].tolist()
        return _read(self.paths[self._shards[index]], (offset, size))

    def where(self, index: int) -> str:
        """See :class:`~rocl_transfer.data.sources.Rows`."""
        key = self._keys[self._ends[index] : self._ends[index + 1]].decode(errors="surrogateescape")
        return f"sample {one_line(key)} of {one_line(str(self.paths[self._shards[index]]))}"


def open_shards(folder: Path, image_column: str | None = None, label_column: str | None = None) -> Source:
    """Samples of the tar files below ``folder``: the one member that is an image, and the label in ``cls``.

    Members need not lie side by side. A shard is of the split that it, or its folder, is called as.

    Args:
        folder: Where the shards are.
        image_column: Extension of the images, where samples hold several.
        label_column: Extension of the labels (default: cls).

    Raises:
        UserError: A shard is damaged, samples have no image or several, or there is no such extension.
    """
    files = files_below(folder)
    paths = [path for path in files if path.suffix.lower() == ".tar"]
    others = [path for path in files if path.suffix.lower() != ".tar"]
    notes = [counted(others, "file", "is not a shard and is left out", "are not shards and are left out", folder)] if others else []
    shards = {path: _index(path) for path in paths}
    notes += [note for shard in shards.values() for note in shard.notes]
    extensions = list(dict.fromkeys(name for shard in shards.values() for sample in shard.samples for name in sample.members))
    for wanted in (image_column, label_column):
        if wanted is not None and wanted not in extensions:
            raise UserError(f"no sample of {folder} has a member {wanted!r}{did_you_mean(wanted, extensions)}: there are {_listed(extensions)}")
    label = label_column or ("cls" if "cls" in extensions else None)
    notes += _layouts(folder, list(shards.values()), label)
    splits = {}
    for split, names in group_by_split(folder, paths).items():
        chosen, left = _images([shards[Path(name)] for name in names], image_column)
        notes += left
        labels = None if label is None else [_label(path, sample.members.get(label)) for path, sample, _ in chosen]
        rows = TarRows((path, sample.key, place) for path, sample, place in chosen)
        splits[split] = RawSplit(rows, labels, _remedy(folder, shards.values(), label, extensions))
    return Source(splits, notes=tuple(notes))


def images_of(paths: Sequence[str], image_column: str | None) -> Iterator[dict[str, dict[str, Any]]]:
    """Rows for ``datasets``: the image of each sample, one shard after another.

    Raises:
        UserError: See :func:`open_shards`.
    """
    for path in paths:
        found, left = _images([_index(Path(path))], image_column)
        for note in left:
            log.warning("data: %s", note)
        for shard, sample, place in found:
            yield {IMAGE: {"bytes": _read(shard, place), "path": f"sample {sample.key} of {shard}"}}


def _index(path: Path) -> _Shard:
    """Where each sample's members lie; nothing is unpacked, links are not followed."""
    samples, beside, doubled, end = dict[str, _Sample](), list[str](), list[str](), 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512 if member.isreg() else member.offset_data
                name = _NAME.fullmatch(member.name)
                if member.isdir():
                    continue
                if name is None or not member.isreg():
                    beside.append(member.name)
                    continue
                sample = samples.setdefault(name["key"], _Sample(name["key"]))
                if sample.members.setdefault(name["extension"].lower(), (member.offset_data, member.size)) != (member.offset_data, member.size):
                    doubled.append(member.name)
    except (tarfile.TarError, OSError, EOFError) as error:
        where = f" after sample {one_line(next(reversed(samples)))}" if samples else ""
        raise UserError(f"the shard {path} is cut or damaged{where} ({one_line(str(error))}): write or download it anew") from error
    if doubled:
        raise UserError(f"the shard {path} has two members {one_line(doubled[0])}: write it anew with one key per sample")
    notes = _after(path, end, samples)
    if beside:
        named = one_line(beside[0])
        notes.append(f"{len(beside):,} members of {path.name} are not files of a sample (KEY.EXTENSION) and are left out, the first is {named}")
    return _Shard(path, list(samples.values()), notes)


def _after(path: Path, end: int, samples: dict[str, _Sample]) -> list[str]:
    """What follows the last member: tarfile takes a damaged header, and a file that was cut between members, for the end."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(512)
    last = one_line(next(reversed(samples))) if samples else "its beginning"
    if block.strip(b"\0"):
        raise UserError(f"the shard {path} is damaged after sample {last}: write or download it anew")
    return [] if len(block) == 512 else [f"the shard {path} has no end mark after sample {last}: it may have been cut there"]


def _is_image(extension: str) -> bool:
    return f".{extension.rsplit('.', 1)[-1]}" in image_extensions()


def _images(shards: Sequence[_Shard], wanted: str | None) -> tuple[list[tuple[Path, _Sample, Place]], list[str]]:
    """The image of each sample, and what is said of samples without one."""
    found, without = list[tuple[Path, _Sample, Place]](), list[str]()
    for shard in shards:
        for sample in shard.samples:
            names = [name for name in sample.members if (_is_image(name) if wanted is None else name == wanted)]
            if len(names) > 1:
                raise UserError(
                    f"sample {one_line(sample.key)} of {shard.path} has more than one image ({_listed(names)}): name one with --data.image_column"
                )
            if names:
                found.append((shard.path, sample, sample.members[names[0]]))
            else:
                without.append(f"sample {one_line(sample.key)} of {one_line(str(shard.path))}, which has {_listed(sample.members)}")
    if not without:
        return found, []
    count = len(found) + len(without)
    said = f"{len(without):,} of {count:,} samples have no image" if len(without) > 1 else f"1 of {count:,} samples has no image"
    if len(without) > max(1, _INCOMPLETE * count):
        raise UserError(f"{said}, the first is {without[0]}: complete or remove them")
    return found, [f"{said} and {'are' if len(without) > 1 else 'is'} left out: {without[0]}"]


def _layouts(folder: Path, shards: Sequence[_Shard], label: str | None) -> list[str]:
    """Which shards are built differently from most."""
    counts = Counter(shard.layout for shard in shards)
    usual = next(shard for shard in shards if shard.layout == counts.most_common(1)[0][0])
    notes = []
    for shard in shards:
        if shard.layout != usual.layout:
            name = one_line(str(shard.path.relative_to(folder)))
            notes.append(f"the shard {name} has samples of {shard.spelled}, where {one_line(usual.path.name)} has {usual.spelled}")
    return notes


def _remedy(folder: Path, shards: Iterable[_Shard], label: str | None, extensions: Sequence[str]) -> str:
    if label is None:
        others = [name for name in extensions if not _is_image(name)]
        return f"the samples have no member cls: name another with --data.label_column ({_listed(others)})" if others else "add a member cls to each"
    whole = [note for note in _layouts(folder, list(shards), label) if label]
    return f"{whole[0]}: make them alike" if whole else f"complete the member {label}, or remove the sample"


def _label(path: Path, place: Place | None) -> Any:
    if place is None:
        return None
    text = _read(path, (place[0], min(place[1], _LONGEST))).decode("utf-8", errors="backslashreplace").strip()
    return value_of(text) if text else None


def _read(path: Path, place: Place) -> bytes:
    with path.open("rb") as file:
        file.seek(place[0])
        return file.read(place[1])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(one_line(name) for name in names) or "nothing"
