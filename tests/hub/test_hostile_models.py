"""Models made to harm: refused by name, or harmless; nothing that comes with a model is ever run."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import timm

from rocl_transfer import UserError, load_backbone, load_classifier
from rocl_transfer.data import load_images
from rocl_transfer.hub import find

MODEL = Path(__file__).parents[2] / "model_cards" / "resnet8_cifar.r_le_digits"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MODEL, tmp_path / "model")


def change(folder, inside=None, **more):
    config = json.loads((folder / "config.json").read_text())
    (config if inside is None else config[inside]).update(more)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"checkpoint_path": "/etc/passwd"}, "has checkpoint_path among its model_args"),
        ({"pretrained_cfg": {"file": "/etc/passwd"}}, "has pretrained_cfg among its model_args"),
        ({"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x.pth"}}, "has pretrained_cfg_overlay among its model_args"),
        ({"pretrained_filter_fn": "os.system"}, "has pretrained_filter_fn among its model_args"),
        ({"pretrained_strict": False}, "has pretrained_strict among its model_args"),
        ({"features_only": True}, "has features_only among its model_args"),
        ({"cache_dir": "/"}, "has cache_dir among its model_args"),
        ({"pruned": True}, "has pruned among its model_args"),
        ({"block": "os.system"}, "does not fit resnet8_cifar"),
        ({"norm_layer": "os.system"}, "does not fit resnet8_cifar"),
        ({"unheard_of": 1}, "does not fit resnet8_cifar"),
        (["x"], "has model_args without names"),
    ],
)
def test_arguments_that_are_no_architectures_are_refused(folder, arguments, sentence):
    change(folder, model_args=arguments)
    for load in (load_classifier, load_backbone):
        with pytest.raises(UserError, match=sentence):
            load(str(folder))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "hf-hub:user/x", "local-dir:/", "os.system", "torchvision.models.resnet18", "", "resnet8_cifar/../x"]
)
def test_an_architecture_that_is_a_path_is_refused(folder, name):
    change(folder, architecture=name)
    with pytest.raises(UserError, match="which neither timm .* nor this package knows"):
        load_classifier(str(folder))


@pytest.mark.parametrize(
    ("inside", "more", "sentence"),
    [
        ("pretrained_cfg", {"input_size": [3, 10**6, 10**6]}, "has the input_size"),
        ("pretrained_cfg", {"input_size": [3, "16", None]}, "has the input_size"),
        ("pretrained_cfg", {"mean": [float("nan")] * 3}, "has the mean"),
        ("pretrained_cfg", {"std": ["a", "b", "c"]}, "has the std"),
        (None, {"label_names": {"0": "zero"}}, "has label_names that are not a list of names"),
        (None, {"label_names": [None] * 10}, "has label_names that are not a list of names"),
        (None, {"architecture": ["resnet8_cifar"]}, "names no architecture"),
        ("rocl_transfer", {"trained_on": 3}, "names no data and cut"),
    ],
)
def test_values_of_a_configuration_that_make_no_sense_are_refused(folder, inside, more, sentence):
    change(folder, inside, **more)
    for use in (load_classifier, find):
        with pytest.raises(UserError, match=sentence):
            use(str(folder))


def test_other_weights_that_a_configuration_names_are_not_read(folder, tmp_path, monkeypatch):
    wanted = load_classifier(str(folder)).state_dict()
    elsewhere = {"url": "http://127.0.0.1:9/x.pth", "file": str(tmp_path / "x.pth"), "hf_hub_id": "user/x", "source": "hf-hub", "custom_load": True}
    change(folder, "pretrained_cfg", **elsewhere)
    for name in ("load_state_dict_from_url", "load_state_dict_from_hf", "download_cached_file", "load_custom_from_hf"):
        monkeypatch.setattr(timm.models._builder, name, None)
    found = load_classifier(str(folder)).state_dict()
    assert all((found[name] == value).all() for name, value in wanted.items())


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    code = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
    for name in ("modeling.py", "__init__.py", "resnet8_cifar.py", "configuration.py", "setup.py", "conftest.py"):
        (folder / name).write_text(code)
    change(folder, auto_map={"AutoModel": "modeling.Evil"}, custom_pipelines={"x": {"impl": "modeling.Evil"}}, trust_remote_code=True)
    assert load_classifier(str(folder)).class_names == tuple("0123456789")
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_data_is_not_run(class_folder, tmp_path):
    code = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
    for name in ("classes.py", "dataset.py", "__init__.py"):
        (class_folder / name).write_text(code)
    data = load_images(str(class_folder))
    assert any("3 files are not images and are left out" in note for note in data.notes)
    (class_folder / "metadata.csv").write_text("file_name,kind\nb/0.png,x\n")
    assert load_images(str(class_folder)).class_names == ("b", "r")
    for path in class_folder.rglob("*.png"):
        path.unlink()
    (class_folder / "data.json").write_text('{"file_name": "b/0.png", "kind": "x"}\n')  # from here on it is read by datasets
    with pytest.raises(UserError, match="scripts are no longer supported"):
        load_images(str(class_folder), labels_needed=True)
    assert not (tmp_path / "ran").exists()


def header_of(path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def overlap(header, body):
    names = sorted(name for name in header if name != "__metadata__")
    header[names[1]] = dict(header[names[0]])
    return header, body


def beyond(header, body):
    header["fc.weight"]["data_offsets"][1] = 10**12
    return header, body


def hole(header, body):
    return header, body + b"code that nobody reads"


def wrong_length(header, body):
    header["fc.weight"]["shape"] = [10**6, 10**6]
    return header, body


def overflow(header, body):
    header["fc.weight"]["shape"] = [2**62, 2**62]
    return header, body


@pytest.mark.parametrize("harm", [overlap, beyond, hole, wrong_length, overflow])
@pytest.mark.parametrize("file", ["model.safetensors", "data.safetensors"])
def test_harmed_headers_of_safetensors_are_refused(folder, tmp_path, harm, file):
    header, body = harm(*header_of(folder / "model.safetensors"))
    text = json.dumps(header).encode()
    (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + body)
    change(folder, "rocl_transfer", sha256=None)
    with pytest.raises(UserError, match="is damaged|cannot be read"):
        load_classifier(str(folder)) if file.startswith("model") else load_images(str(folder / file))


@pytest.mark.parametrize("length", [0, 100_000_001, 2**40, 2**64 - 1])
@pytest.mark.parametrize("file", ["model.safetensors", "data.safetensors"])
def test_safetensors_headers_of_false_lengths_are_refused(folder, length, file):
    """A header of more than 100 MB is not read, whether it is there (as a hole in the file) or only said to be."""
    with (folder / file).open("wb") as out:
        out.write(struct.pack("<Q", length))
        out.truncate(min(length, 2**30) + 8)
    change(folder, "rocl_transfer", sha256=None)
    with pytest.raises(UserError, match="is damaged|cannot be read"):
        load_classifier(str(folder)) if file.startswith("model") else load_images(str(folder / file))
