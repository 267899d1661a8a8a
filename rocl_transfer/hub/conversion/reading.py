"""A foreign file to named tensors. Nothing in it is executed: ``weights_only=True``, or safetensors."""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rocl_transfer.errors import UserError, path_of
from rocl_transfer.training import sha256

# Entries of a checkpoint that continue a training and hold no weights.
_TRAINING_STATE = re.compile(r"(?i)(l?opt(im)?|\w*optimizer\w*|\w*sched\w*|amp|\w*scaler\w*|\w*rng\w*|callbacks|loops|hyper_parameters|args|config)")
_TENSOR = re.compile(r"torch\.\w+|torch\._utils\._rebuild\w+|torch\.storage\.\w+|torch\.serialization\.\w+|collections\.OrderedDict")
_DEEPEST = 6  # dictionaries in dictionaries; a pickle may also hold a dictionary in itself


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        path: The file.
        sha256: SHA-256 of its bytes.
        tensors: Every tensor that has a name, under its dotted path through the file's dictionaries; sparse and quantised ones are none of ours.
        set_aside: Dotted paths of the training state that was passed over.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    set_aside: tuple[str, ...]


def read_checkpoint(name: str | Path) -> Checkpoint:
    """Read a file of torch.save (zip or legacy) or safetensors; its name's ending says nothing but ``.safetensors``.

    Raises:
        UserError: There is no such file, it is damaged, it holds no tensors, or it is a pickle that needs more than tensors and plain values.
    """
    path = path_of(name)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the checkpoint file in it")
    if not path.exists():
        raise UserError(f"there is no file {path}: check the path")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}): download or copy it again") from error
    tensors: dict[str, Tensor] = {}
    set_aside: list[str] = []
    _flatten(content, "", 0, tensors, set_aside)
    if not tensors:
        aside = f", beside training state ({', '.join(set_aside[:3])})" if set_aside else ""
        raise UserError(
            f"{path} holds no named tensors; what it holds is {held(content)}{aside}: name a file that was written with "
            "torch.save(model.state_dict(), ...) or the like"
        )
    return Checkpoint(path, sha256(path), tensors, tuple(set_aside))


def _flatten(content: Any, place: str, depth: int, tensors: dict[str, Tensor], set_aside: list[str]) -> None:
    if isinstance(content, Tensor):
        plain = content.layout == torch.strided and not (content.is_quantized or content.is_meta or content.is_complex())
        if place and plain:
            tensors[place] = content.detach()
    elif isinstance(content, Mapping) and depth < _DEEPEST:
        for key, value in content.items():
            inner = f"{place}.{key}" if place else str(key)
            if _TRAINING_STATE.fullmatch(str(key)):
                set_aside.append(inner)
            else:
                _flatten(value, inner, depth + 1, tensors, set_aside)
    elif isinstance(content, list | tuple) and depth < _DEEPEST:
        if pairs := _pairs(content):
            _flatten(pairs, place, depth, tensors, set_aside)
        elif all(isinstance(part, Mapping) for part in content):  # networks; a list of tensors is a buffer or a statistic, and names none
            _flatten({str(i): part for i, part in enumerate(content)}, place, depth, tensors, set_aside)


def _pairs(content: Sequence[Any]) -> dict[str, Tensor] | None:
    """A dictionary written as its items."""
    plain = all(isinstance(part, list | tuple) and len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], Tensor) for part in content)
    return dict(content) if content and plain else None


def held(content: Any) -> str:
    """What a file holds, in a few words."""
    if isinstance(content, Tensor):
        return f"one tensor {tuple(content.shape)} without a name"
    if isinstance(content, Mapping):
        inside = ", ".join(f"{str(key)[:40]} ({type(value).__name__})" for key, value in list(content.items())[:4])
        return f"a dictionary of {len(content)}: {inside}{', ...' if len(content) > 4 else ''}" if content else "an empty dictionary"
    if isinstance(content, list | tuple):
        kinds = sorted({type(part).__name__ for part in content})
        return f"a list of {len(content)} without names ({', '.join(kinds)})" if content else "an empty list"
    return f"one value of type {type(content).__name__}"


@contextmanager
def _nothing_allowed() -> Iterator[None]:
    """Take back what anything in this process has allowed pickles to build (torch's own DTensors, at the least)."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    if not start:
        raise UserError(f"{path} is empty: download or copy it again")
    if start[:1] == b"<":
        raise UserError(f"{path} is a web page, not a checkpoint: the download got the page instead of the file")
    if foreign := _foreign(path, start):
        raise UserError(f"{path} {foreign}")
    try:
        with _nothing_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces pickle protocols that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # Whatever bytes a file holds ends somewhere in torch's readers, in an error of any kind.
    except Exception as error:
        if start[:1] != b"\x80" and not zipfile.is_zipfile(path) and start[:2] != b"PK":
            raise UserError(f"{path} is not a checkpoint: name a file written by torch.save or safetensors") from error
        if refused := _refused(path, str(error)):
            raise UserError(f"{path} is refused, because loading it could run any code: {refused} {_remedy(path)}") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:150]
        raise UserError(f"{path} is damaged or incomplete ({reason}): download or copy it again") from error


_ELSEWHERE = "save the weights there as names and tensors (torch.save or safetensors), and convert that"
# First bytes -> what the file is.
_FORMATS = (
    (b"\x89HDF\r\n", f"is an HDF5 file, as Keras writes it: {_ELSEWHERE}"),
    (b"\x93NUMPY", f"is a NumPy array: {_ELSEWHERE}"),
    (b"GGUF", f"is a GGUF file of a language model: {_ELSEWHERE}"),
    (b"\x1f\x8b", "is packed with gzip: unpack it first"),
    (b"BZh", "is packed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is packed with xz: unpack it first"),
    (b"7z\xbc\xaf", "is packed with 7-Zip: unpack it first"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file: fetch it with git lfs pull"),
)
_ONNX = (
    "is an ONNX file, a graph whose weights have lost their modules: save the network it was exported from (torch.save(model.state_dict(), ...)), "
    "and convert that"
)


def _foreign(path: Path, start: bytes) -> str | None:
    """What a file is that torch did not write, and what to do; None if it may be torch's."""
    if told := next((told for magic, told in _FORMATS if start.startswith(magic)), None):
        return told
    if start[4:8] == b"TFL3":
        return f"is a TensorFlow Lite file: {_ELSEWHERE}"
    # An ONNX model is a protobuf that begins with its version (field 1) and who made it (field 2), or its graph (field 7).
    if path.suffix.lower() == ".onnx" or (start[:1] == b"\x08" and 0 < start[1] < 32 and start[2:3] in (b"\x12", b"\x3a")):
        return _ONNX
    if start[:2] == b"PK":
        try:
            names = zipfile.ZipFile(path).namelist()
        except (zipfile.BadZipFile, OSError):
            return None  # torch says what is wrong with it
        if names and all(name.endswith(".npy") for name in names):
            return f"is a file of NumPy arrays: {_ELSEWHERE}"
        if "model.weights.h5" in names:
            return f"is a Keras file: {_ELSEWHERE}"
        if not any(name.endswith(("data.pkl", "constants.pkl")) for name in names):
            return (
                f"is a zip archive without a checkpoint of torch's (it holds {', '.join(names[:3]) or 'nothing'}): unpack it, and name the checkpoint"
            )
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it, and name the checkpoint in it"
    return None


def _refused(path: Path, message: str) -> str | None:
    """What a pickle asks for beyond tensors and plain values; None if the error has another cause."""
    if "TorchScript" in message:
        return "it is a TorchScript archive, which holds code;"
    found = re.search(r"GLOBAL (\S+)", message)
    if found or "Unsupported operand" in message or "Can only" in message:
        names = _globals(path) or ([found[1]] if found else [])
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"it wants to build {shown}, no tensors or plain values;" if names else "torch.load(weights_only=True) does not take its pickle;"
    return None


def _globals(path: Path) -> list[str]:
    """What a pickle wants to build besides tensors, read off its opcodes without executing them."""
    names: dict[str, None] = {}
    with suppress(Exception), path.open("rb") as file:  # at the end, or at the damage, the opcodes end in an error of some kind
        pickles: IO[bytes] = file
        if zipfile.is_zipfile(file):
            archive = zipfile.ZipFile(file)
            pickles = io.BytesIO(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
        pickles.seek(0)
        while True:  # torch's legacy files are several pickles, one after another
            words: list[str] = []
            for opcode, argument, _ in pickletools.genops(pickles):
                if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                    names[str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else ".".join(words[-2:])] = None
                elif isinstance(argument, str):
                    words.append(argument)
    return [name for name in names if not _TENSOR.fullmatch(name)]


def _remedy(path: Path) -> str:
    code = (
        f"import torch; c = torch.load({path.name!r}, map_location='cpu', weights_only=False); "
        "torch.save(c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c.get('model', c)), 'weights.pt')"
    )
    return f'where you trust it, or where nothing can be harmed, save its weights alone with: python -c "{code}"'
