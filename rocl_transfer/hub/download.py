"""An exported model from the Hub to the local cache, once per name, and checked against the Hub's own hashes."""

import functools
import hashlib
import logging
from pathlib import Path

from rocl_transfer.errors import UserError
from rocl_transfer.hub.export import CONFIG, OUTPUT_CHECK, PROJECTOR, WEIGHTS
from rocl_transfer.hub_failures import patiently
from rocl_transfer.training import sha256

log = logging.getLogger("rocl_transfer")
_WANTED = (CONFIG, WEIGHTS, OUTPUT_CHECK, PROJECTOR)


@functools.cache  # a branch may move between two looks at one name
def download(name: str) -> Path:
    """The folder with the model ``name``, USER/NAME or USER/NAME@REVISION; its ``config.json`` is not read.

    Raises:
        UserError: It cannot be fetched, arrived damaged twice, or the repository holds no exported model.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")

    def fetch(again: bool = False) -> Path:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(_WANTED), force_download=again))

    what = f"the model hf-hub:{name} cannot be fetched"
    folder = patiently(fetch, what)
    if damaged := _damaged(folder):
        log.info("%s of hf-hub:%s arrived damaged: fetching it again", damaged, name)
        folder = patiently(lambda: fetch(again=True), what)
        if damaged := _damaged(folder):
            raise UserError(f"{damaged} of hf-hub:{name} arrived damaged twice: check your network and your disk, and try again")
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"hf-hub:{name} has no {file}: only safetensors in timm's layout is read; recipes/convert.py converts a pickle's tensors")
    return folder


def _damaged(folder: Path) -> str | None:
    """The first file that is not what the Hub said it is; the client itself compares lengths alone, and keeps what arrived.

    The cache keeps a file under the hash that the Hub gave: SHA-256, or for small files git's.
    """
    for path in (folder / wanted for wanted in _WANTED if (folder / wanted).is_file()):
        name = path.resolve().name
        if len(name) == 64 and sha256(path) != name:
            return path.name
        if len(name) == 40:
            content = path.read_bytes()
            if hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() != name:
                return path.name
    return None
