"""What Pillow and libtiff say of an image on their own: heard and counted, not printed among our lines."""

import ctypes
import functools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import PIL

_heard = threading.local()


@contextmanager
def listening() -> Iterator[list[str]]:
    """Warnings of Pillow's that this thread raises inside; nothing of them is printed."""
    _install()
    before, _heard.texts = getattr(_heard, "texts", None), []
    try:
        yield _heard.texts
    finally:
        _heard.texts = before


def _install() -> None:
    """Threads share Python's filters, so they cannot be set for one image at a time; whoever else set them meanwhile has ours set again."""
    if getattr(warnings.showwarning, "of_images", False):
        return
    _silence_libtiff()
    show = warnings.showwarning

    def hear(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
        texts = getattr(_heard, "texts", None)
        if texts is not None and Path(filename).is_relative_to(Path(PIL.__file__).parent):
            texts.append(str(message))
        else:
            show(message, category, filename, *rest, **more)

    hear.of_images = True  # type: ignore[attr-defined]
    warnings.showwarning = hear
    warnings.filterwarnings("always", module=r"PIL(\..*)?$")  # each time: another image's warning is another one


@functools.cache
def _silence_libtiff() -> None:
    """What libtiff writes to the terminal Pillow raises as well: the library inside Pillow's wheel loses its two printers."""
    for path in (Path(PIL.__file__).parents[1] / "pillow.libs").glob("libtiff-*"):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                setter = getattr(library, name)
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)
