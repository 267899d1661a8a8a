"""Images that are none, that are bombs, and files with names and places nobody expects: left out by name, soon, in little memory."""

import inspect
import io
import os
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from rocl_transfer import UserError
from rocl_transfer.config.cli import command_line
from rocl_transfer.data import decode as decode_module
from rocl_transfer.data import load_images, store_splits, value_range
from rocl_transfer.data.decode import LARGEST, UnreadableImageError, decode
from rocl_transfer.data.inventory import files_below

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ALL = ("train", "validation", "test")
ODD_NAMES = [
    "two\nlines.png",
    "\x1b[2J.png",
    "😀👩‍👩‍👧.png",
    "ünï code.png",
    "-rf.png",
    "$(touch ran).png",
    "a;b|c&d.png",
    "\u202egnp.exe.png",
    "%s%n.png",
]


def png_of(width, height):
    """A sound PNG of one colour, 1 bit a pixel, compressed: 20,000 x 20,000 are 49 kB."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer, row = zlib.compressobj(), bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def says(width, height):
    """A tiny PNG that says it is of this size."""
    whole = bytearray(png_of(1, 1))
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


def archive(noise_image):
    """A ZIP of a ZIP of a picture."""
    inner, outer, picture = io.BytesIO(), io.BytesIO(), io.BytesIO()
    noise_image(1).save(picture, "PNG")
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("../../out.png", picture.getvalue())
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr("inner.zip", inner.getvalue())
    return outer.getvalue()


@pytest.fixture
def folder(tmp_path, noise_image):
    """30 images to train on and 10 to test on, and whatever a test puts beside them."""
    for number in range(40):
        place = tmp_path / "data" / ("train" if number < 30 else "test") / "br"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise_image(number).save(place / f"{number}.png")
    return tmp_path / "data"


def read(folder, in_memory=True):
    return store_splits(load_images(str(folder)), ALL, CPU, in_memory=in_memory, max_unreadable=0.5)[0]


@pytest.mark.parametrize("in_memory", [True, False], ids=["resident", "streamed"])
def test_each_is_left_out_by_name_with_its_reason(folder, noise_image, in_memory):
    whole = (folder / "train" / "b" / "0.png").read_bytes()
    hostile = {
        "empty.png": (b"", "empty"),
        "cut.png": (whole[: len(whole) // 2], ""),
        "bomb.png": (says(60_000, 60_000), "pixels"),
        "wide.png": (says(2**31 - 1, 1), "pixels"),
        "large.png": (png_of(20_000, 20_000), "pixels"),
        "flat.png": (says(0, 5), ""),
        "text.png": (b"this is no image\n" * 9, "of no format that Pillow reads"),
        "page.jpg": (b"<!doctype html><html></html>", "of no format that Pillow reads"),
        "zip.png": (archive(noise_image), "of no format that Pillow reads"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "EPS is read by running"),
    }
    for name, (content, _) in hostile.items():
        (folder / "train" / "b" / name).write_bytes(content)
    (folder / "train" / "b" / "one.png").write_bytes(png_of(1, 1))
    (folder / "train" / "b" / "jpeg.png").write_bytes(b"")
    noise_image(1).save(folder / "train" / "b" / "jpeg.png", "JPEG")  # what is inside counts, not what it is called
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = read(folder, in_memory)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB
    left_out = {line.split(" (")[0].rsplit("/", 1)[1]: line for line in data.unreadable}
    assert set(left_out) == set(hostile)
    for name, (_, reason) in hostile.items():
        assert reason in left_out[name]
        assert left_out[name].isprintable()


def test_the_limit_is_ours_whatever_others_set(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImageError, match=r"20,000 x 20,000 pixels are more than the 178,956,970 that are read"):
        decode(png_of(20_000, 20_000), 8, "x")
    assert decode(png_of(9_000, 9_000), 8, "x").shape == (3, 8, 8)
    assert LARGEST > 9_000**2


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_images_are_converted_in_parts(mode, monkeypatch, noise_image):
    values = torch.arange(60 * 40).reshape(40, 60) * (27 if mode != "F" else 1 / 2400)
    image = Image.fromarray(values.numpy().astype({"I;16": "uint16", "I": "int32", "F": "float32"}[mode]))
    whole = decode_module.to_rgb(image.copy()).tobytes()
    monkeypatch.setattr(value_range, "_PART", 100)
    assert decode_module.to_rgb(image.copy()).tobytes() == whole


def test_no_program_is_run_for_postscript(folder, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    wrapped = (
        b"\x1c\x03\x14\0\x01\0"
        + b"\x1c\x03\x3c\0\x02\x01\x01"
        + b"\x1c\x03\x41\0\x01\x01"
        + b"\x1c\x08\x0a"
        + struct.pack(">H", len(script))
        + script
    )
    for name, content in (("a.eps", script), ("a.png", script), ("a.iim", wrapped)):
        (folder / "train" / "b" / name).write_bytes(content)
    data = read(folder)
    assert {"a.eps", "a.png"} <= {line.split(" (")[0].rsplit("/", 1)[1] for line in data.unreadable}
    assert not (tmp_path / "ran").exists()
    with pytest.raises(Exception, match=r".*"), Image.open(io.BytesIO(script)) as image:  # whoever lets Pillow read it runs the program
        image.load()
    assert (tmp_path / "ran").exists()


def test_files_with_odd_names_are_read_and_named(folder, noise_image):
    for number, name in enumerate(ODD_NAMES):
        noise_image(100 + 2 * number).save(folder / "train" / "b" / name)
        (folder / "train" / "b" / f"broken {name}").write_text("no image")
    Path(os.fsdecode(os.fsencode(folder / "train" / "b") + b"/\xff\xfe.png")).write_text("no image")
    data = read(folder)
    assert len(data.train.labels) == 27 + len(ODD_NAMES)  # 3 of 30 are held out
    assert len(data.unreadable) >= len(ODD_NAMES)
    for line in (*data.unreadable, *data.notes):
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
        assert "\u202e" not in line
        line.encode()
    listed = "\n".join(data.unreadable)
    assert r"broken two\nlines.png" in listed
    assert "broken 😀👩‍👩‍👧.png" in listed
    assert r"\udcff\udcfe.png" in listed


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "\u202eevil", os.fsdecode(b"\xff")])
def test_a_class_whose_name_cannot_be_printed_is_refused(folder, noise_image, name):
    for split in ("train", "test"):
        (folder / split / "b").rename(folder / split / name)
    with pytest.raises(UserError, match="^[^\n\x1b]*rename") as refused:
        load_images(str(folder))
    str(refused.value).encode()
    assert len(load_images(str(folder), labels_needed=False).train) > 0


def test_the_end_of_a_command_is_one_line_whatever_a_file_is_called(tmp_path, monkeypatch, capsys):
    from compare import CompareConfig

    def refuse(config):
        raise UserError(f"there is no folder {config.runs[0]}: look again")

    monkeypatch.setattr(sys, "argv", ["compare.py", "two\nlines\x1b[2J", "b"])
    with pytest.raises(SystemExit):
        command_line(refuse, CompareConfig)
    assert capsys.readouterr().err == "error: there is no folder two\\nlines\\x1b[2J: look again\n"


def test_folders_deeper_than_functions_may_call_each_other(tmp_path):
    (deepest := tmp_path.joinpath(*["d"] * 150)).mkdir(parents=True)
    (deepest / "a.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert files_below(tmp_path) == [deepest / "a.png"]
    finally:
        sys.setrecursionlimit(limit)


def test_links_in_loops_pipes_and_devices_are_not_opened(folder, tmp_path):
    place = folder / "train" / "b"
    (place / "loop").symlink_to(folder / "train")
    (place / "self").symlink_to("self")
    (place / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (place / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(place / "pipe.png")
    (place / "folder.png").mkdir()
    data = read(folder)
    assert not data.unreadable
    assert len(data.train.labels) + len(data.validation.labels) == 30


@pytest.mark.parametrize("name", ["pipe.png", "zero.png", "tty.png"])
def test_a_table_that_names_a_pipe_or_a_device(tmp_path, noise_image, name):
    lines = ["file,label"]
    for number in range(30):
        noise_image(number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{number % 2}")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "tty.png").symlink_to("/dev/tty")
    (tmp_path / "table.csv").write_text("\n".join([*lines, *[f"{name},{label}" for label in (0, 1) for _ in range(4)]]))
    with pytest.raises(UserError, match=rf"{name} \((no regular file|.*No such device.*)\)"):
        store_splits(load_images(str(tmp_path / "table.csv"), validation_fraction=0), ("train", "test"), CPU, in_memory=True, max_unreadable=0.5)


def test_archives_beside_images_are_never_opened(folder, noise_image, tmp_path):
    (folder / "train" / "b" / "more.zip").write_bytes(archive(noise_image))
    with tarfile.open(folder / "train" / "b" / "more.tar", "w") as shard:
        shard.add(folder / "train" / "b" / "0.png", "../../out.png")
    data = read(folder)
    assert any("2 files are not images and are left out, such as train/b/more." in note for note in data.notes)
    assert not list(tmp_path.rglob("out.png"))
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "a.zip").write_bytes(archive(noise_image))
    with pytest.raises(UserError, match="has no images"):
        load_images(str(tmp_path / "zips"))


def test_a_folder_without_permission_is_a_sentence(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        load_images(str(folder))


@pytest.mark.parametrize("name", ["x" * 300, "./" + "x" * 5000, "a/" * 3000])
def test_names_that_are_too_long(name):
    with pytest.raises(UserError, match=r"cannot be (read|opened)|no folder"):
        load_images(name)


def test_a_child_with_little_memory_refuses_what_is_too_large(tmp_path):
    """20,000 x 20,000 pixels are 1.6 GB as Pillow holds them: it is refused before they are."""
    (tmp_path / "large.png").write_bytes(png_of(20_000, 20_000))
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom rocl_transfer.data.decode import decode\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))\n"
        "try:\n    decode(Path(sys.argv[1]), 32, 'this')\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    if sys.platform != "linux":
        pytest.skip("limits are set as on Linux")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "large.png")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("UnreadableImageError this is not a readable image ("), done.stderr
    assert "pixels" in done.stdout
