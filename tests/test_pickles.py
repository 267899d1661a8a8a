"""A pickle runs code when it is read: given to every door of the project, this one never does, and each door says why."""

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from compare import CompareConfig
from rocl_transfer import UserError, load_backbone, load_classifier
from rocl_transfer.config import parse
from rocl_transfer.data import load_images, store_splits
from rocl_transfer.hub import load_projector
from rocl_transfer.training import Checkpoints

MODEL = Path(__file__).parents[1] / "model_cards" / "resnet8_cifar.r_le_digits"


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()


@pytest.fixture
def evil(marker):
    return pickle.dumps(Evil(marker))


def test_the_evil_pickle_runs_code_when_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))  # noqa: S301 the one that is to be kept out
    assert (tmp_path / "ran").exists()


def saved(evil_object, legacy):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"fc.weight": evil_object}}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize("load", [load_backbone, load_classifier])
@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "model.pkl", "model.safetensors"])
def test_weights_in_a_pickle_are_refused_by_name(tmp_path, marker, load, name):
    path = tmp_path / name
    path.write_bytes(saved(Evil(marker), legacy=False))
    with pytest.raises(UserError, match=r"recipes/convert\.py"):
        load(str(path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_folder_that_holds_only_a_pickle_is_refused(tmp_path, marker, name):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(saved(Evil(marker), legacy=False))
    with pytest.raises(UserError, match=r"has no model\.safetensors.*is a pickle, which can run code"):
        load_classifier(str(folder))


@pytest.mark.parametrize("file", ["model.safetensors", "probe.safetensors", "projector.safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_named_safetensors_is_refused(tmp_path, marker, file, legacy):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / file).write_bytes(saved(Evil(marker), legacy))
    config = json.loads((folder / "config.json").read_text())
    config["rocl_transfer"].pop("sha256")  # the attacker's own folder: nothing to compare with, or the right hash
    config["rocl_transfer"]["projector_sha256"] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="damaged"):
        load_projector(str(folder), 64) if file.startswith("projector") else load_classifier(str(folder))


@pytest.mark.parametrize("name", ["data.pkl", "data.pt", "data.npy", "data.npz", "data.safetensors", "data.csv"])
def test_a_data_file_that_is_a_pickle_is_refused(tmp_path, evil, name, marker):
    (tmp_path / name).write_bytes(evil)
    with pytest.raises(UserError, match="cannot be read" if name.endswith(("csv", "safetensors")) else "is a pickle, which can run code"):
        load_images(str(tmp_path / name))


@pytest.mark.parametrize("name", ["data.pkl", "data.pickle", "train.pt", "data.npy", "train.parquet", "train.arrow"])
def test_a_data_folder_that_holds_a_pickle_is_refused(tmp_path, evil, name, marker):
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(evil)
    known = name.endswith((".parquet", ".arrow"))
    with pytest.raises(UserError, match="cannot be opened" if known else f"{name} is a pickle, which can run code"):
        load_images(str(tmp_path / "data"))


def test_pickles_in_a_webdataset_are_not_unpickled(tmp_path, evil, marker, noise_image):
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "train.tar", "w") as shard:
        for number in range(8):
            image = io.BytesIO()
            noise_image(number).save(image, "PNG")
            for name, content in ((f"{number}.png", image.getvalue()), (f"{number}.pkl", evil), (f"{number}.pyd", evil)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    with pytest.raises(UserError):
        load_images(str(tmp_path / "data"))


def test_an_image_that_is_a_pickle_counts_as_unreadable(class_folder, evil, marker):
    (class_folder / "b" / "evil.png").write_bytes(evil)
    data, _ = store_splits(load_images(str(class_folder)), ("train", "validation", "test"), torch.device("cpu"), max_unreadable=0.5)
    assert any("evil.png" in line for line in data.unreadable)


def test_a_datasets_script_is_not_run(tmp_path, marker):
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    with pytest.raises(UserError):
        load_images(str(tmp_path / "data"))


def test_yaml_tags_in_a_configuration_are_refused(tmp_path, marker):
    (tmp_path / "evil.yaml").write_text(f"output_dir: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(UserError, match="python/object"):
        parse(CompareConfig, ["--config", str(tmp_path / "evil.yaml"), "a", "b"])


def test_a_checkpoint_that_is_a_pickle_is_refused(tmp_path, marker):
    folder = tmp_path / "run" / "checkpoints" / "step-1"
    folder.mkdir(parents=True)
    for name in ("objective.safetensors", "optimizer.safetensors", "optimizer.pt"):
        (folder / name).write_bytes(saved(Evil(marker), legacy=True))
    (folder / "state.json").write_text(json.dumps({"format": 1, "identity": {}, "optimizer": {}}))
    checkpoints, layer = Checkpoints(tmp_path / "run", 2, {}), torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="is whole"):
        checkpoints.find("auto")
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.load(folder, layer, torch.optim.SGD(layer.parameters()))
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.load_weights(folder, layer)
    (folder / "state.json").write_bytes(saved(Evil(marker), legacy=True))
    with pytest.raises(UserError, match="is whole"):
        checkpoints.find("auto")
