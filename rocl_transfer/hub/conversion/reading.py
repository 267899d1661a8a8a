"""A foreign file to named tensors. Nothing in it is executed: ``weights_only=True``, or safetensors."""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
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
        sha256: Of its bytes.
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
        raise UserError(f"{path} is no complete safetensors file ({error}): download or copy it again") from error
    tensors: dict[str, Tensor] = {}
    set_aside: list[str] = []
    _flatten(content, "", 0, tensors, set_aside)
    if not tensors:
        raise UserError(f"{path} holds no named tensors: name a file that was written with torch.save(model.state_dict(), ...) or the like")
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
    try:
        with _nothing_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces pickle protocols that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # Whatever bytes a file holds ends somewhere in torch's readers, in an error of any kind.
    except Exception as error:
        if start[:1] != b"\x80" and not zipfile.is_zipfile(path) and start[:2] != b"PK":
            raise UserError(f"{path} is no checkpoint: name a file of torch.save or safetensors") from error
        if refused := _refused(path, str(error)):
            raise UserError(f"{path} is refused, for loading it may run any code: {refused} {_remedy(path)}") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:150]
        raise UserError(f"{path} is damaged or incomplete ({reason}): download or copy it again") from error


def _refused(path: Path, message: str) -> str | None:
    """What a pickle asks for beyond tensors and plain values; None where the error has another cause."""
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
