"""The first hour with a folder as people have it: every image is used, or left out and named, and nothing said is untrue."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from rocl_transfer.data import load_images

SHORT = ["--model.name", "resnet8_cifar", "--data.image_size", "16", "--method", "standard", "--epochs", "4", "--batch_size", "8",
         "--evaluation.steps", "2", "--optimizer.lr", "3e-3"]  # fmt: skip


@pytest.fixture
def messy(tmp_path, noise_image):
    """40 photographs, a fifth called test_*; a metadata file, two GIFs, a stray image, a 16-bit PNG, a contradictory copy, and other files."""
    data = tmp_path / "messy"
    for number in range(40):
        path = data / "br"[number % 2] / f"{'test_' if number % 5 == 0 else 'photo '}{number}.{'JPG' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(number, (30 + number % 4, 24)).save(path)
    (data / "metadata.csv").write_text("file_name,camera\n" + "".join(f"b/test_{number}.png,x\n" for number in (0, 30)))
    for number in (50, 51):
        frames = [noise_image(number + 2 * more) for more in range(3)]
        frames[0].save(data / "br"[number % 2] / f"moving_{number}.gif", save_all=True, append_images=frames[1:])
    noise_image(60).save(data / "stray.jpg")
    Image.fromarray(np.asarray(noise_image(61).convert("L")).astype(np.uint16) * 257).save(data / "r" / "deep.png")
    shutil.copy(data / "b" / "photo 2.JPG", data / "r" / "copy of 2.JPG")
    (data / "Thumbs.db").write_bytes(b"x")
    (data / "b" / "notes.txt").write_text("x")
    (data / "b" / ".hidden.jpg").write_bytes(b"x")
    return data


def test_every_image_of_a_messy_folder_is_used_or_named(command, messy, tmp_path):
    done = command("finetune.py", *SHORT, "--data.name", messy, "--output_dir", "ft", check=0)
    notes = [line.removeprefix("data: ") for line in done.stderr.splitlines() if line.startswith("data: ")]
    assert len(notes) == len(set(notes))  # each is said once
    images = [path for path in messy.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".gif") and not path.name.startswith(".")]
    assert len(images) == 45
    test, validation = (int(re.search(rf"there is no {split} split: (\d+) images", done.stderr)[1]) for split in ("test", "validation"))
    data = load_images(str(messy), image_size=16)
    assert (len(data.test), len(data.validation)) == (test, validation)
    assert len(data.train) + validation + test == 44
    for words in (
        "1 image lies in no class folder and is left out: stray.jpg",
        "2 files are not images and are left out, such as ",
        "1 file is hidden and is left out: b/.hidden.jpg",
        "metadata.csv has no column label or labels (others: camera",
        "43 images have no row in the metadata, such as ",
        "1 of 44 images looked at hold integers of more than 8 bits",
    ):
        assert sum(words in note for note in notes) == 1, words
    moving = [re.match(r"(\d+) of \d+ images of \w+ (is|are) animated", note) for note in notes]
    assert sum(int(found[1]) for found in moving if found) == 2
    assert any("there under two labels" in note or "another label there" in note for note in notes)
    assert "Warning" not in done.stderr
    record = json.loads((tmp_path / "ft" / "results.json").read_text())
    told = [re.sub(r"\S*/(?=messy/)", "", note) for note in notes]  # what is published names no folder of this machine
    assert record["dataset"]["notes"] == told
    assert record["dataset"]["n"] == test
    assert record["dataset"]["value_range"] == {"integers": [0, 65535]}

    done = command("predict.py", "--model.name", "ft", messy, "--robustness", "false", "--output", "p.csv", check=0)
    with (tmp_path / "p.csv").open(newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == set(map(str, images))
    assert "2 of 45 images are animated or of several pages" in done.stderr


def test_a_model_reads_other_images_by_the_range_it_was_trained_with(command, tmp_path):
    """Twelve bits in sixteen: class a is dark, class b light, by the values and not by each image's own largest."""
    rng = np.random.default_rng(0)
    for number in range(40):
        for folder, scale in (("train", 1), ("dim", 0.25)):
            values = rng.integers(*((0, 1200) if number % 2 else (2800, 4000)), (16, 16)) * scale
            path = tmp_path / folder / "ba"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint16)).save(path)
    command("finetune.py", *SHORT, "--data.name", "train", "--output_dir", "ft", check=0)
    facts = json.loads((tmp_path / "ft" / "config.json").read_text())["rocl_transfer"]
    assert facts["value_range"] == {"integers": [0, 4095]}
    record = json.loads((tmp_path / "ft" / "results.json").read_text())
    assert record["evaluations"][0]["accuracy"] == 1
    # A quarter of the light is dark: the dim folder alone would be taken for 10 bits, and its light images for light.
    command("predict.py", "--model.name", "ft", "dim", "--robustness", "false", "--output", "dim.csv", check=0)
    with (tmp_path / "dim.csv").open(newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"a"}
    (tmp_path / "lone").mkdir()
    (tmp_path / "dim").rename(tmp_path / "lone" / "test")
    words = ["--model.name", "ft", "--data.name", "lone", "--attacks", "fast", "--report", "none"]
    done = command("evaluate.py", *words, "--output_dir", "ev", check=0)
    found = json.loads((tmp_path / "ev" / "results.json").read_text())
    assert (found["dataset"]["n"], found["dataset"]["value_range"]) == (40, {"integers": [0, 4095]})
    assert found["evaluations"][0]["accuracy"] == 0.5
    assert "0 is read as black and 4095 as white in all splits; as given" in done.stderr
    done = command("evaluate.py", *words, "--output_dir", "ev2", "--data.value_range", "[0, 1023]", check=0)
    assert json.loads((tmp_path / "ev2" / "results.json").read_text())["evaluations"][0]["accuracy"] == 1
    assert "value_range:\n  - 0" in (tmp_path / "ev2" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("[5, 5]", r"--data.value_range is .*: give the values of black and of white, such as \[0,4095\]"),
        ("[1, 2, 3]", "value_range"),
        ("x", "value_range"),
    ],
)
def test_a_value_range_that_is_none_is_refused(command, class_folder, value, sentence):
    done = command("finetune.py", *SHORT, "--data.name", class_folder, "--output_dir", "ft", "--data.value_range", value, check=2)
    assert re.search(sentence, done.stderr)
