"""Images of more than 8 bits: one range of values for a whole data set, found, said, recorded or given; and images with little to see."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rocl_transfer import UserError
from rocl_transfer.data import load_images, store_splits
from rocl_transfer.data.decode import decode
from rocl_transfer.data.value_range import Seen, ValueRange, choose_range

CPU = torch.device("cpu")
ALL = ("train", "validation", "test")


def pattern(number, low, high, size=12):
    """Values from ``low`` to ``high``, no two images the same."""
    values = np.linspace(low, high, size * size)
    return np.roll(values, number).reshape(size, size)


def folder_of(tmp_path, make, count=10, extension="png", splits=("train", "test")):
    """Two classes of images that ``make(number, split)`` gives."""
    for at, split in enumerate(splits):
        for number in range(2 * count):
            path = tmp_path / "data" / split / "ab"[number % 2] / f"{number}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            made = make(number + 2 * count * at, split)
            path.write_bytes(made) if isinstance(made, bytes) else Image.fromarray(made).save(path)
    return tmp_path / "data"


def read(folder, **options):
    data = load_images(str(folder), validation_fraction=0, **options)
    data, stores = store_splits(data, ALL, CPU, max_unreadable=0.5)
    return data, {split: next(iter(store.batches([torch.arange(len(store))]))) for split, store in stores.items()}


def said(data, words):
    return any(words in note for note in data.notes)


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("uint16", 0, 4000, (0, 4095)),  # 12 bits in 16
        ("uint16", 0, 1000, (0, 1023)),
        ("uint16", 0, 16000, (0, 16383)),
        ("uint16", 0, 60000, (0, 65535)),
        ("uint16", 0, 250, (0, 255)),
        ("uint16", 0, 20, (0, 20)),
        ("uint16", 30000, 31000, (30000, 31000)),  # a detector with an offset
        ("int32", -1000, 3000, (-1000, 3000)),  # tomography
        ("int32", 0, 10_000_000, (0, 10_000_000)),
        ("float32", 0, 0.9, (0, 1)),
        ("float32", 0, 1.1, (0, 1.1)),
        ("float32", 0, 240, (0, 255)),
        ("float32", 0, 60000, (0, 65535)),
        ("float32", 0, 0.01, (0, 0.01)),
        ("float32", -1, 1, (-1, 1)),
        ("float32", -3, 3, (-3, 3)),
        ("float32", 290, 310, (290, 310)),  # kelvin
        ("float32", 0, 0, (0, 1)),
        ("float32", 7, 7, (0, 255)),
    ],
)
def test_the_value_range_of_deep_images_is_found(tmp_path, kind, low, high, expected):
    make = lambda number, split: pattern(number, low, high).astype(kind)  # noqa: E731
    data, pixels = read(folder_of(tmp_path, make, extension="tif"))
    name = "floats" if kind == "float32" else "integers"
    assert data.value_range == {name: [pytest.approx(end, rel=1e-5) for end in expected]}
    assert data.facts(data.test, "test")["value_range"] == data.value_range
    assert said(data, "40 of 40 images looked at hold ")
    for split in ("train", "test"):
        if high > low:
            assert pixels[split].min() <= 20
            assert pixels[split].max() >= 200


def test_it_does_not_hang_on_one_image(tmp_path):
    """Test images darker than the training images stay darker, and one image with 1.1 does not make itself black."""
    make = lambda number, split: pattern(number, 0, (0.9 if number else 1.1) if split == "train" else 0.3).astype("float32")  # noqa: E731
    data, pixels = read(folder_of(tmp_path, make, extension="tif"))
    assert data.value_range == {"floats": [0, pytest.approx(1.1)]}
    assert pixels["train"][0].max() == 255
    assert pixels["train"][1].max() == round(0.9 / 1.1 * 255)
    assert pixels["test"].amax((1, 2, 3)).tolist() == [round(0.3 / 1.1 * 255)] * 20


def test_it_can_be_given_and_values_beyond_are_counted(tmp_path):
    make = lambda number, split: pattern(number, 0, 4000 if number % 4 else 2000).astype("uint16")  # noqa: E731
    folder = folder_of(tmp_path, make)
    data, pixels = read(folder, value_range=(0, 2000))
    assert data.value_range == {"integers": [0, 2000], "floats": [0, 2000]}  # floats too, should any come
    assert (pixels["train"].amax((1, 2, 3)) == 255).all()
    assert said(data, "0 is read as black and 2000 as white in all splits; as given")
    assert said(data, "15 of 20 images of train are clipped: values beyond the value range; such as ")
    assert read(folder, known_range={"integers": [0, 4095]})[0].value_range == {"integers": [0, 4095]}
    with pytest.raises(UserError, match=r"--data.value_range is \(5, 5\): give the values of black and of white"):
        load_images(str(folder), value_range=(5, 5))


def test_a_range_for_images_of_8_bits_is_said_to_do_nothing(class_folder):
    data, _ = read(class_folder, value_range=(0, 4095))
    assert said(data, "none of 40 images looked at has more than 8 bits: the value range has no effect on them")
    assert data.value_range == {"integers": [0, 4095], "floats": [0, 4095]}
    assert "value_range" not in load_images(str(class_folder)).facts(data.test, "test")


def test_one_deep_image_among_many(tmp_path):
    make = lambda number, split: pattern(number, 0, 15000).astype("uint16") if number == 3 else pattern(number, 0, 250).astype("uint8")  # noqa: E731
    data, pixels = read(folder_of(tmp_path, make))
    assert data.value_range == {"integers": [0, 65535]}
    assert said(data, "1 of 40 images looked at hold integers of more than 8 bits, from 0 to 15000: 0 is read as black and 65535 as white")
    assert sorted(pixels["train"].amax((1, 2, 3)).tolist())[:2] == [58, 250]


def test_floats_of_no_known_range_and_no_numbers_are_refused(tmp_path):
    make = lambda number, split: pattern(number, 0, 0.9).astype("float32")  # noqa: E731
    folder = folder_of(tmp_path, make, extension="tif")
    bad = pattern(5, 0, 0.9).astype("float32")
    bad[3, 3] = np.nan
    Image.fromarray(bad).save(folder / "train" / "a" / "nan.tif")
    data, _ = read(folder)
    assert data.unreadable == (f"train: {folder}/train/a/nan.tif (it holds values that are not finite numbers)",)
    with pytest.raises(UserError, match="its values lie in 0 to 1.1, and which are black and white is not known: give --data.value_range"):
        decode(folder_of(tmp_path / "b", lambda *_: pattern(1, 0, 1.1).astype("float32"), 1, "tif") / "train" / "a" / "0.tif", 8, "x")


def sixteen_bit_colour(number, high):
    """A PNG of 12 x 12 pixels, 16 bits a channel."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    values = np.repeat(pattern(number, 0, high)[..., None], 3, 2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colour_of_12_bits_in_16_cannot_be_scaled_and_is_refused(tmp_path):
    folder = folder_of(tmp_path, lambda number, split: sixteen_bit_colour(number, 4000))
    with pytest.raises(
        UserError, match=r"40 of 40 images looked at are in colour with 16 bits a channel, .* hold values up to 15 of 255 alone: scale"
    ):
        load_images(str(folder))
    data, pixels = read(folder_of(tmp_path / "whole", lambda number, split: sixteen_bit_colour(number, 65000)))
    assert pixels["train"].max() == 253
    assert data.value_range is None
    (tmp_path / "whole" / "data" / "train" / "a" / "dark.png").write_bytes(sixteen_bit_colour(1, 4000))
    data, _ = read(tmp_path / "whole" / "data")
    assert said(data, "1 of 21 images of train is nearly black: no value above 15 of 255")


def test_images_with_little_to_see_are_counted(class_folder):
    for number, colour in enumerate(["black", "red", "white"]):
        Image.new("RGB", (20, 20), colour).save(class_folder / "b" / f"plain_{number}.png")
    rng = np.random.default_rng(0)
    for number, (low, high) in enumerate([(0, 10), (246, 256), (0, 15)]):
        Image.fromarray(rng.integers(low, high, (20, 20, 3), dtype=np.uint8)).save(class_folder / "r" / f"dim_{number}.png")
    data = load_images(str(class_folder), validation_fraction=0).whole()
    data, _ = store_splits(data, ("test",), CPU)
    assert said(data, "3 of 46 images of test are of one colour; such as ")
    assert said(data, "2 of 46 images of test are nearly black: no value above 15 of 255; such as ")
    assert said(data, "1 of 46 images of test is nearly white: no value below 240 of 255; ")


@pytest.mark.parametrize("in_memory", [True, False], ids=["resident", "streamed"])
def test_animated_images_and_warnings_are_counted_not_printed(class_folder, noise_image, in_memory, capfd, recwarn):
    frames = [noise_image(number) for number in range(0, 8, 2)]
    frames[0].save(class_folder / "b" / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(class_folder / "b" / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(class_folder / "b" / "pages.tif", save_all=True, append_images=frames[1:])
    noise_image(2).convert("P").save(class_folder / "b" / "still.gif")
    noise_image(4).save(class_folder / "b" / "cut.tif", compression="tiff_lzw")
    path = class_folder / "b" / "cut.tif"
    path.write_bytes(bytes([*path.read_bytes()[:200], *[255] * 400, *path.read_bytes()[600:]]))
    odd = class_folder / "b" / "odd.tif"
    noise_image(6).save(odd)
    whole = bytearray(odd.read_bytes())
    at = struct.unpack("<I", whole[4:8])[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack("<H", whole[at : at + 2])[0], 12):
        if struct.unpack("<H", whole[entry : entry + 2])[0] == 0x011C:  # the way its planes lie, of which there is one: now it says two
            whole[entry + 4 : entry + 8] = struct.pack("<I", 2)
    odd.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", module="PIL")
        data = load_images(str(class_folder), validation_fraction=0).whole()
        data = store_splits(_trained_on(data), ("train",), CPU, in_memory=in_memory, max_unreadable=0.5)[0]
    assert said(data, "3 of 45 images of train are animated or of several pages, of which the first is used; such as")
    assert said(data, "1 of 45 images of train is read with a warning of Pillow's")
    assert any("cut.tif" in line for line in data.unreadable)
    assert "tif" not in capfd.readouterr().err.lower()
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


def _trained_on(data):
    from dataclasses import replace

    return replace(data, train=data.test)


def test_one_image_under_two_labels_is_named(class_folder):
    import shutil

    shutil.copy(class_folder / "b" / "2.png", class_folder / "r" / "copy.png")
    data = load_images(str(class_folder), validation_fraction=0).whole()
    data, _ = store_splits(data, ("test",), CPU)
    first, second = class_folder / "b" / "2.png", class_folder / "r" / "copy.png"
    assert said(data, f"1 image of test is there under two labels, the same at 20 px pixel for pixel, such as {first} (b) and {second} (r)")


def test_what_is_read_in_parts_tells_of_nothing_unreadable():
    assert choose_range(Seen.of([]), ValueRange()) == (ValueRange(), [])
