"""What lies in a folder: image files by extension or content, and everything else by name, so that files found = files used + files left out."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from rocl_transfer.errors import one_line

# Extensions that Pillow registers for what it only writes, or hands to a library that is not there: documents, films, scientific containers.
_NO_IMAGES = {".pdf", ".palm", ".bufr", ".grib", ".h5", ".hdf", ".mpg", ".mpeg", ".wmf", ".emf"}
# Images that Pillow does not read (it would take the thumbnail inside a raw file for the photograph).
_NOT_READ = {
    ".heic", ".heif", ".hif", ".jxl", ".svg", ".exr", ".dcm", ".nii", ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".raw", ".rw2", ".sr2", ".srw", ".x3f",
}  # fmt: skip
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


@functools.cache
def image_extensions() -> frozenset[str]:
    """Extensions of the files that are taken for images, in lower case."""
    return frozenset(set(Image.registered_extensions()) - _NO_IMAGES)


@dataclass(frozen=True)
class Inventory:
    """Files below a folder, each in one list, in the order of their names.

    Attributes:
        images: By extension or by content.
        odd: Those of ``images`` that only their content tells.
        not_read: Images of a kind that is not read, such as HEIC.
        others: No images.
        hidden: Files with an image's extension that are hidden, or lie in a hidden folder; hidden files of other kinds are nowhere.
        broken: Links to nowhere, pipes, devices.
    """

    images: list[Path] = field(default_factory=list)
    odd: list[Path] = field(default_factory=list)
    not_read: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)

    def notes(self, folder: Path, but: Sequence[Path] = ()) -> list[str]:
        """What is not used of ``folder`` and why, one sentence per kind; ``but`` are files that have a use of their own."""
        used = set(but)
        others = [path for path in self.others if path not in used]
        kinds = ", ".join(sorted({path.suffix.lower() for path in self.not_read if path.suffix.lower() in _NOT_READ})) or "HEIC"
        told = [
            (self.odd, "is an image by content, not by extension, and is used", "are images by content, not by extension, and are used"),
            (self.not_read, f"is an image of a kind that is not read ({kinds}) and is left out; convert it to PNG or JPEG",
             f"are images of kinds that are not read ({kinds}) and are left out; convert them to PNG or JPEG"),
            (others, "is not an image and is left out", "are not images and are left out"),
            (self.hidden, "is hidden and is left out", "are hidden and are left out"),
            (self.broken, "is a link to nowhere, a pipe or a device, and is left out", "are links to nowhere, pipes or devices, and are left out"),
        ]  # fmt: skip
        return [counted(paths, "file", one, many, folder) for paths, one, many in told if paths]


def counted(paths: Sequence[Path], thing: str, one: str, many: str, folder: Path | None = None) -> str:
    """``1 file is ...: NAME`` or ``2 files are ..., such as NAME``; names count from ``folder``."""
    first = one_line(str(paths[0].relative_to(folder) if folder is not None and paths[0].is_relative_to(folder) else paths[0]))
    return f"1 {thing} {one}: {first}" if len(paths) == 1 else f"{len(paths):,} {thing}s {many}, such as {first}"


def take_inventory(folder: Path) -> Inventory:
    """Look through all of ``folder``; links are followed, each real folder once. Only files without an image's extension are opened."""
    found = Inventory()
    extensions = image_extensions()
    for path, hidden in _walk(folder):
        suffix = path.suffix.lower()
        if hidden:
            if suffix in extensions and path.is_file():
                found.hidden.append(path)
        elif not path.is_file():
            found.broken.append(path)
        elif suffix in extensions:
            found.images.append(path)
        elif suffix in _NOT_READ or (kind := kind_by_content(path)) == "HEIC":
            found.not_read.append(path)
        elif kind:
            found.images.append(path)
            found.odd.append(path)
        else:
            found.others.append(path)
    return found


def files_below(folder: Path) -> list[Path]:
    """Files below ``folder`` in sorted order, hidden ones left out; links are followed, each real folder once."""
    return [path for path, hidden in _walk(folder) if not hidden and path.is_file()]


def _walk(folder: Path) -> list[tuple[Path, bool]]:
    """Everything below that is no folder, and whether it is hidden."""
    found, seen, ahead = [], set(), [(folder, False)]
    while ahead:
        entry, hidden = ahead.pop()
        if entry.is_dir():
            if (real := entry.resolve()) not in seen:
                seen.add(real)
                # Hidden folders last: what they hold must not stand in for a folder that is not hidden.
                below = [(path, hidden or is_hidden(path)) for path in entry.iterdir() if not (hidden and path.is_symlink())]
                ahead += sorted(below, reverse=True)
        else:
            found.append((entry, hidden))
    return found


def is_hidden(path: Path) -> bool:
    """Whether it is hidden by its name, or what macOS leaves in archives."""
    return path.name.startswith((".", "__MACOSX"))


def kind_by_content(path: Path) -> str:
    """The format that a file's first bytes tell, of those that photographs come in; "" if they tell none, or cannot be read."""
    try:
        with path.open("rb") as file:
            return kind_of(file.read(32))
    except OSError:
        return ""


def kind_of(head: bytes) -> str:
    """The format that the first 32 bytes of a file tell; "" for none."""
    starts = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF",
              b"\0\0\0\x0cjP  ": "JPEG2000"}  # fmt: skip
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and head[15:18] == b"\0\0\0":  # two letters alone would take texts for images
        return "BMP"
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in (b"avif", b"avis") else "HEIC" if head[8:12] in _HEIC else ""
    return ""


def same_place(path: str | Path) -> str:
    """The path without ``.``, ``..`` and doubled slashes, to tell one file under two spellings."""
    return os.path.normpath(path)
