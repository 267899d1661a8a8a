"""A fingerprint tells a user's images from others of the same name, and does not change where they are only moved."""

import csv
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rocl_transfer.data import fingerprint, load_images, open_stream
from tests.conftest import two_classes


def of(name, **options):
    return fingerprint(load_images(str(name), **options))


def as_folder(folder):
    return two_classes(folder / "data")


def as_table(folder):
    images = two_classes(folder / "data")
    with (images / "list.csv").open("w", newline="") as file:
        rows = sorted((path.relative_to(images).as_posix(), path.parent.name) for path in images.rglob("*.png"))
        csv.writer(file).writerows([("file", "label"), *rows])
    return images / "list.csv"


def as_parquet(folder):
    datasets = pytest.importorskip("datasets")
    paths = sorted(two_classes(folder / "images").rglob("*.png"))
    rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in paths], "label": [path.parent.name for path in paths]}
    (folder / "data").mkdir()
    datasets.Dataset.from_dict(rows, datasets.Features(image=datasets.Image(), label=datasets.Value("string"))).to_parquet(
        folder / "data" / "train.parquet"
    )
    return folder / "data"


def as_pixels(folder):
    folder.mkdir(exist_ok=True)
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"images": images, "labels": torch.arange(40) % 2}, folder / "data.safetensors")
    return folder / "data.safetensors"


@pytest.mark.parametrize("kind", [as_folder, as_table, as_parquet, as_pixels])
def test_moved_data_is_the_same_and_another_cut_is_not(tmp_path, kind):
    first, second = kind(tmp_path), kind(tmp_path / "elsewhere")
    assert of(first) == of(second)
    assert of(first) != of(first, split_seed=1)
    assert of(first).startswith("28 to train on, 4 to validate on, 8 to test on (digest ")


def test_what_is_added_renamed_rewritten_or_sorted_anew_is_seen(tmp_path, noise_image):
    data = as_folder(tmp_path)
    found = {of(data)}
    changes = {
        "added": lambda: noise_image(50).save(data / "b" / "50.png"),
        "renamed": lambda: (data / "b" / "0.png").rename(data / "b" / "renamed.png"),
        "rewritten": lambda: [noise_image(number, (22, 22)).save(data / "r" / f"{number}.png") for number in range(1, 40, 2)],
        "another class": lambda: [shutil.move(data / "b" / "2.png", data / "r"), shutil.move(data / "r" / "1.png", data / "b")],
    }
    for number, change in enumerate(changes.values(), 2):
        change()
        found.add(of(data))
        assert len(found) == number


def test_pixels_in_memory_count_one_by_one(tmp_path):
    pixels = load_images(str(as_pixels(tmp_path)))
    before = fingerprint(pixels)
    pixels.train.rows.arrays[int(pixels.train.indices[17])].flat[5] ^= 1
    assert fingerprint(pixels) != before
    assert np.array_equal(np.sort(pixels.train.indices), pixels.train.indices)


def test_unreadable_images_do_not_end_it_before_they_are_listed(tmp_path):
    data = load_images(str(as_folder(tmp_path)), image_size=16)
    (tmp_path / "data" / "b" / "0.png").unlink()
    assert fingerprint(data)


def test_of_a_stream_shards_are_counted(tmp_path):
    data = as_parquet(tmp_path)
    first = fingerprint(open_stream(str(data), images=40, image_size=16)[0])
    shutil.copy(data / "train.parquet", data / "train-2.parquet")
    assert first == "40 images streamed from 1 shards"
    assert fingerprint(open_stream(str(data), images=40, image_size=16)[0]) == "40 images streamed from 2 shards"
