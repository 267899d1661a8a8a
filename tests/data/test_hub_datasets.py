"""What is opened with ``datasets``: which commit of a dataset on the Hub was read is known, whatever the network does; shards of tar files."""

import io
import json
import os
import subprocess
import sys
import tarfile

import pytest
import torch
from PIL import Image

from rocl_transfer.data import load_images, store_splits

OPEN = """
import json, sys
from rocl_transfer import UserError
from rocl_transfer.data import load_images
for revision in json.loads(sys.argv[1]):
    try:
        data = load_images("user/pictures", revision=revision)
        print(json.dumps([data.revision, len(data.train) + len(data.test) + len(data.validation)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def pictures(count):
    files = {}
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), ("red", "blue")[number % 2]).save(file, "PNG")
        files[f"train/{number % 2}/{number}.png"] = file.getvalue()
    return files


def test_the_revision_that_was_read_is_recorded(hub, tmp_path):
    old, new = (hub.add_repo("user/pictures", pictures(count), type="dataset").id for count in (20, 30))
    hub.repo("user/pictures", "dataset").tags["v1"] = old

    def load(*revisions, **more):
        words = [sys.executable, "-c", OPEN, json.dumps(revisions)]
        environment = {**os.environ, **hub.environment(tmp_path / "home", **more)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    first = load("v1", old, None, "none")
    assert first[:3] == [[old, 20], [old, 20], [new, 30]]
    assert first[3].endswith("cannot be opened: there is no such revision; check the branch, tag or commit")
    # Without the Hub there is what was prepared last; it is never taken for another revision.
    answers = load(None, new, old, "v1", HF_HUB_OFFLINE="1")
    assert answers[:2] == [[new, 30], [new, 30]]
    for answer, wanted in zip(answers[2:], (old, "v1"), strict=True):
        assert f"revision {wanted} of user/pictures cannot be had, since the Hub cannot be asked, and the cache has {new}" in answer


REFUSED = """
from rocl_transfer import UserError
from rocl_transfer.data import load_images
try:
    load_images("user/nowhere")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, "there is no such repository, or your token does not open it; check the name, or log in with `hf auth login`, or set HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is on; unset HF_HUB_OFFLINE"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_remedy(hub, tmp_path, more, why):
    environment = {**os.environ, **hub.environment(tmp_path / "home"), **more}
    done = subprocess.run([sys.executable, "-c", REFUSED], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"'user/nowhere', taken for a Hub dataset since no such folder exists, cannot be opened: {why}\n"


SAY = """
import json, sys
from rocl_transfer.data import load_images
for name in sys.argv[1:]:
    data = load_images(name, validation_fraction=0)
    print(json.dumps([len(data.train) + len(data.test), [note for note in data.notes if "image files" in note]]))
"""


def test_images_of_a_repository_that_datasets_passes_over_are_counted(hub, tmp_path):
    content, cases = list(pictures(40).values()), {"plain": 40, "names": 8, "metadata": 20, "folders": 30}
    for case in cases:
        prefix = "test_" if case == "names" else ""
        files = {f"{number % 2}/{prefix if number < 8 else ''}{number}.png": data for number, data in enumerate(content)}
        if case == "folders":
            files = {f"{'train' if number < 30 else 'extra'}/{name}": data for number, (name, data) in enumerate(files.items())}
        if case == "metadata":
            files["metadata.csv"] = ("file_name,label\n" + "".join(f"{name},{name[0]}\n" for name in list(files)[:20])).encode()
        hub.add_repo(f"user/{case}", files, type="dataset")
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    words = [sys.executable, "-c", SAY, *(f"user/{case}" for case in cases)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    for (case, wanted), line in zip(cases.items(), done.stdout.splitlines(), strict=True):
        used, notes = json.loads(line)
        assert used == wanted, case
        assert any(f"user/{case} holds 40 image files, of which" in note for note in notes) == (used < 40), case
        assert any(f"of which {used} are used" in note for note in notes) == (used < 40), case


@pytest.mark.parametrize("in_memory", [True, False])
def test_webdataset_shards_with_labels(tmp_path, monkeypatch, noise_image, in_memory):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "shards").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "shards" / f"train-{number:03}.tar", "w") as shard:
            for seed in range(number * 20, number * 20 + 20):
                noise_image(seed).save(file := io.BytesIO(), "JPEG")
                for extension, data in (("jpg", file.getvalue()), ("cls", str(seed % 2).encode())):
                    entry = tarfile.TarInfo(f"{seed:05}.{extension}")
                    entry.size = len(data)
                    shard.addfile(entry, io.BytesIO(data))
    data, stores = store_splits(load_images(str(tmp_path / "shards")), ("train", "test"), torch.device("cpu"), in_memory=in_memory)
    assert data.class_names == ("0", "1")
    assert (len(data.train), len(data.validation), len(data.test)) == (28, 4, 8)
    for split, store in stores.items():
        images = next(store.batches([torch.arange(len(store))])).float().mean((2, 3))
        assert torch.equal(images[:, 0] > images[:, 2], getattr(data, split).labels.bool())  # red images carry the label 1
