"""recipes/predict.py as a user runs it, with the trained classifier of the repository."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rocl_transfer as rt
from rocl_transfer.data.decode import decode
from rocl_transfer.evaluation import FlipOptions, smallest_epsilon

MODEL = Path(__file__).parents[2] / "model_cards" / "resnet8_cifar.r_le_digits"


def predict(command, *words, check=0):
    done = command("predict.py", "--model.name", MODEL, *words, check=check)
    assert "Traceback" not in done.stderr
    return done


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def digits(tmp_path):
    """Six digits in nested folders, their classes in their names; beside them what is no image and what is hidden."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    folder = tmp_path / "digits"
    (folder / "deep" / "er").mkdir(parents=True)
    for i in range(6):
        pixels = (data.images[10 + i] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / ("deep/er" if i % 2 else "") / f"{data.target[10 + i]}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image either")
    return folder


def test_a_folder_becomes_a_csv_that_says_what_the_library_says(command, digits, tmp_path):
    done = predict(command, digits, "--output", "out/predictions.csv", "--max_epsilon", "1/8", "--seed", "4")
    table = rows(tmp_path / "out" / "predictions.csv")
    assert list(table[0]) == ["image", "class", "probability", "flips_at", "error"]
    assert [Path(row["image"]).stem for row in table] == ["0", "2", "4", "1", "3", "5"]
    assert [row["class"] for row in table] == ["0", "2", "4", "1", "3", "5"]
    assert "1 file is not an image and is left out: notes.txt" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]

    model = rt.load_classifier(str(MODEL))
    images = torch.stack([decode(Path(row["image"]), 16, "") for row in table]) / 255
    probability, label = model(images).softmax(1).max(1)
    found = smallest_epsilon(model, images, label, FlipOptions(max_epsilon=1 / 8), seed=[4] * 6)
    assert [float(row["probability"]) for row in table] == pytest.approx(probability.tolist(), abs=1e-4)
    assert [float(row["flips_at"]) for row in table] == pytest.approx(found.tolist(), rel=1 / 32)
    assert any(math.isinf(value) for value in found)
    assert any(math.isfinite(value) for value in found)


def test_a_table_without_output_and_rows_that_do_not_depend_on_the_others(command, digits):
    images = [digits / "0.png", digits / "deep" / "er"]
    done = predict(command, *images, digits / "0.png", "--batch_size", "2")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "class", "probability", "flips_at"]
    assert len({len(line) for line in lines[:5]}) == 1  # aligned
    assert [line.split()[1] for line in lines[1:5]] == ["0", "1", "3", "5"]  # 0.png once
    assert "upper bound" in lines[-1]
    alone = predict(command, digits / "deep" / "er" / "3.png")
    assert float(alone.stdout.splitlines()[1].split()[3]) == pytest.approx(float(lines[3].split()[3]), rel=1 / 32)


def test_images_that_never_flip_are_said_and_robustness_can_be_left_out(command, digits):
    done = predict(command, digits, "--norm", "l2", "--max_epsilon", "0.01", "--steps", "2")
    assert all(line.endswith("> 0.0100") for line in done.stdout.splitlines()[1:7])
    done = predict(command, digits, "--robustness", "false")
    assert done.stdout.splitlines()[0].split() == ["image", "class", "probability"]
    assert len(done.stdout.splitlines()) == 7


def test_a_broken_image_has_a_row_and_the_others_are_done(command, digits, tmp_path):
    (digits / "1_broken.png").write_bytes((digits / "0.png").read_bytes()[:60])
    (digits / "3_broken.jpg").write_text("no image")
    (tmp_path / "p.csv").write_text("an older one")
    done = predict(command, digits, "--robustness", "false", "--output", "p.csv", check=2)
    table = rows(tmp_path / "p.csv")
    assert list(table[0]) == ["image", "class", "probability", "error"]
    assert [row["class"] for row in table] == ["0", "", "2", "", "4", "1", "3", "5"]
    assert "not a readable image" in table[1]["error"]
    assert not table[0]["error"]
    last = done.stderr.splitlines()[-1]
    assert last == f"error: 2 of 8 images could not be read, the first is {digits / '1_broken.png'}: repair or remove them"
    done = predict(command, digits / "3_broken.jpg", check=2)
    assert done.stdout.splitlines()[0].split() == ["image", "class", "probability", "flips_at", "error"]


def test_images_whose_names_are_no_utf8_are_predicted(command, digits, tmp_path):
    odd = bytes(digits) + b"/\xff.png"
    try:
        Path(odd.decode(errors="surrogateescape")).write_bytes((digits / "0.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    predict(command, digits, "--robustness", "false", "--output", "p.csv")
    assert b"\xff.png" in (tmp_path / "p.csv").read_bytes()
    assert "?.png" in predict(command, digits, "--robustness", "false").stdout


MISTAKES = {
    "nothing": ([], "there are no images: name image files or folders"),
    "a path that is not there": (["{digits}", "nowhere.png"], "there is no file or folder nowhere.png"),
    "a folder without images": (["{empty}"], "has no images"),
    "a folder as output": (["{digits}", "--output", "{folder}"], "is a folder: name a file in it"),
    "an output that cannot be": (["{digits}", "--output", "{digits}/notes.txt/p.csv"], "cannot be written"),
    "a model that is no classifier": (["{digits}", "--model.name", "resnet8_cifar"], "resnet8_cifar is not a classifier"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(command, digits, tmp_path, mistake):
    places = {"digits": digits, "empty": tmp_path / "empty", "folder": tmp_path / "folder.csv"}
    places["empty"].mkdir()
    places["folder"].mkdir()
    words, sentence = MISTAKES[mistake]
    done = predict(command, *(word.format(**places) for word in words), check=2)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in done.stderr.splitlines()[-1]
    assert not done.stdout
