import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from rocl_transfer import UserError, load_backbone, load_classifier
from rocl_transfer.data import ImageOptions
from rocl_transfer.hub import export, find, load_model, load_projector, load_start, look_up, made_from, open_images_for
from rocl_transfer.models import PixelModel, add_head, create_backbone, normalized_projector, projector
from rocl_transfer.training import sha256

FAMILIES = ["resnet8_cifar", "test_resnet", "test_vit", "test_convnext", "test_efficientnet"]


def trained(name, classes=()):
    torch.manual_seed(0)
    model = create_backbone(name, 32)
    model.net.to(memory_format=torch.channels_last)
    if classes:
        add_head(model, classes)
    return model.eval()


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("classes", [(), ("ape", "bee", "cat")])
def test_export_loads_back_and_in_timm_alone(tmp_path, name, classes):
    model = trained(name, classes)
    digest = export(model, tmp_path)
    assert digest == sha256(tmp_path / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "probe.safetensors"]
    loaded = load_classifier(str(tmp_path)) if classes else load_backbone(str(tmp_path))
    assert not loaded.training
    assert loaded.class_names == classes
    assert loaded.input_size == look_up(str(tmp_path)).native_size == 32
    torch.testing.assert_close(loaded(IMAGES), model(IMAGES))
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(plain(IMAGES), model(IMAGES))  # trained without normalisation
    assert plain.pretrained_cfg["mean"] == (0.0, 0.0, 0.0) or list(plain.pretrained_cfg["mean"]) == [0, 0, 0]


def test_a_classifier_gives_its_backbone(tmp_path):
    model = trained("resnet8_cifar", ("a", "b"))
    export(model, tmp_path)
    torch.testing.assert_close(load_backbone(str(tmp_path))(IMAGES), model.features(IMAGES))


def test_a_fresh_process_sees_the_same_features(tmp_path):
    model = trained("resnet8_cifar")
    export(model, tmp_path)
    code = (
        "import torch, timm, rocl_transfer as rt;"
        "x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0));"
        f"a = timm.create_model('local-dir:{tmp_path}', pretrained=True).eval()(x); b = rt.load_backbone('{tmp_path}')(x);"
        "assert torch.equal(a, b); print(a.double().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(model(IMAGES).double().sum().item(), rel=1e-5)


def test_normalisation_travels(tmp_path):
    net = timm.create_model("test_resnet", num_classes=0)
    model = PixelModel(net, "test_resnet", 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)).eval()
    export(model, tmp_path)
    torch.testing.assert_close(load_backbone(str(tmp_path))(IMAGES), model(IMAGES))
    cfg = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).pretrained_cfg
    assert tuple(cfg["mean"]) == (0.5, 0.4, 0.3)


def test_the_pretrained_cfg_is_our_own(tmp_path):
    export(trained("test_vit"), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert content["model_args"] == {"img_size": 32}
    assert not {"hf_hub_id", "tag", "license", "test_input_size", "url"} & set(content["pretrained_cfg"])
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_cannot_be_loaded_is_one_sentence(tmp_path):
    export(trained("resnet8_cifar"), tmp_path)
    (tmp_path / "run").mkdir()
    cases = [
        (lambda: load_backbone(str(tmp_path / "nowhere")), "there is no folder"),
        (lambda: load_backbone(str(tmp_path / "run")), "no config.json.*training has ended"),
        (lambda: load_backbone(f"local-dir:{tmp_path}/nowhere"), "there is no folder"),
        (lambda: load_backbone("resnet18_cifr"), "did you mean 'resnet18_cifar'"),
        (lambda: load_backbone("resnet18.a1_in1"), "timm has no weights 'resnet18.a1_in1'; did you mean 'resnet18.a1_in1k'"),
        (lambda: load_classifier(str(tmp_path)), "is not a classifier"),
        (lambda: load_classifier("resnet8_cifar"), "no published weights for 'resnet8_cifar'"),
        (lambda: load_backbone(str(tmp_path), pretrained=True), "has no effect"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words):
            call()
    assert find("resnet18") is None


def test_a_model_is_looked_up_read_and_hashed_once_whatever_is_asked_of_it(tmp_path, monkeypatch):
    digest = export(trained("resnet8_cifar", ("a", "b")), tmp_path, {"pretrained_on": {"data": "digits", "cut": "x"}}, projector(64))
    read, hashed = [], []
    monkeypatch.setattr(Path, "read_text", lambda path, **how: (read.append(path.name), path.read_bytes().decode())[1])
    monkeypatch.setattr("rocl_transfer.hub.exported.sha256", lambda path: (hashed.append(path.name), sha256(path))[1])
    model = look_up(str(tmp_path))
    assert hashed == []
    data = open_images_for(model, ImageOptions(name="digits"))
    assert data.image_size == model.native_size == 32
    assert load_start(model, ("a", "b"), 32)[1]
    assert load_projector(model, 64)[1]
    assert load_model(model).class_names == ("a", "b")
    facts = made_from(model, data)
    assert facts["backbone"] == {"name": str(tmp_path), "sha256": digest}
    assert facts["pretrained_on"] == {"data": "digits", "cut": "x"}
    assert model.is_trained
    assert (read.count("config.json"), hashed) == (1, ["model.safetensors"])


def test_a_folder_with_only_a_pickle_is_refused(tmp_path):
    export(trained("resnet8_cifar"), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no model\.safetensors.*pytorch_model\.bin is a pickle"):
        load_backbone(str(tmp_path))
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        load_backbone(str(tmp_path / "pytorch_model.bin"))


def test_another_image_size_is_taken_where_the_network_can(tmp_path):
    for name in ("resnet8_cifar", "test_vit"):
        (tmp_path / name).mkdir()
        export(trained(name), tmp_path / name)
    assert load_backbone(str(tmp_path / "resnet8_cifar"), 48).input_size == 48
    with pytest.raises(UserError, match="only takes images of 32 px"):
        load_backbone(str(tmp_path / "test_vit"), 48)


def test_configurations_of_other_layouts_load(tmp_path):
    model = trained("test_resnet")
    export(model, tmp_path)
    (tmp_path / "probe.safetensors").unlink()
    content = json.loads((tmp_path / "config.json").read_text())
    flat = {**content["pretrained_cfg"], "architecture": "test_resnet", "num_classes": 0}
    (tmp_path / "config.json").write_text(json.dumps(flat))  # timm's older layout
    torch.testing.assert_close(load_backbone(str(tmp_path))(IMAGES), model(IMAGES))
    for wrong in ({"pretrained_cfg": None}, {"pretrained_cfg": {**content["pretrained_cfg"], "mean": [0.5]}}):
        (tmp_path / "config.json").write_text(json.dumps({**content, **wrong}))
        with pytest.raises(UserError, match="is not timm's"):
            load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ViTModel"], "hidden_size": 768}))
    with pytest.raises(UserError, match="is not timm's"):
        find(str(tmp_path))


def test_a_model_that_does_otherwise_than_when_it_was_exported_is_refused(tmp_path):
    model = trained("test_resnet", ("a", "b"))
    export(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    # Its weights are whole, but what is built around them is another function: as after an unlucky update of timm.
    (tmp_path / "config.json").write_text(json.dumps({**content, "model_args": {"act_layer": "gelu"}}))
    with pytest.raises(UserError, match="does not give what it gave when it was exported"):
        load_classifier(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_classifier(str(tmp_path)).class_names == ("a", "b")
    (tmp_path / "probe.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"probe\.safetensors is damaged"):
        load_classifier(str(tmp_path))


def test_names_that_are_not_one_a_class_are_refused(tmp_path):
    export(trained("resnet8_cifar", ("a", "b", "c")), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "label_names": ["a", "b"]}))
    with pytest.raises(UserError, match="names 2 classes and its network has 3"):
        load_classifier(str(tmp_path))


def test_a_dead_model_is_not_exported(tmp_path):
    model = trained("resnet8_cifar")
    model.net.conv1.weight.data[0] = torch.nan
    with pytest.raises(UserError, match="not finite, so it is not exported"):
        export(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_projector_is_kept_apart(tmp_path):
    model = trained("resnet8_cifar")
    head = projector(64)
    export(model, tmp_path, projector=head)
    loaded, kept = load_projector(str(tmp_path), 64)
    assert kept
    for name, tensor in head.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not any(name == "0.weight" for name in load_backbone(str(tmp_path)).net.state_dict())
    with pytest.raises(UserError, match="no projector of 32 features"):
        load_projector(str(tmp_path), 32)
    saved = (tmp_path / "projector.safetensors").read_bytes()
    (tmp_path / "projector.safetensors").write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the file that was exported"):
        load_projector(str(tmp_path), 64)
    export(model, tmp_path)  # of a model without one: the other's does not stay
    assert not (tmp_path / "projector.safetensors").exists()
    (tmp_path / "projector.safetensors").write_bytes(saved)
    assert not load_projector(str(tmp_path), 64)[1]
    assert not load_projector("resnet8_cifar", 64)[1]


def test_a_projector_of_another_method_is_not_taken_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level("INFO")
    head = normalized_projector(64)
    export(trained("resnet8_cifar"), tmp_path, projector=head)
    loaded, kept = load_projector(str(tmp_path), 64, normalized_projector)
    assert kept
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in head.state_dict().items())
    assert "another method" not in caplog.text
    other, kept = load_projector(str(tmp_path), 64)
    assert not kept
    assert other.state_dict().keys() == projector(64).state_dict().keys()
    assert f"the projector of {tmp_path} was made for another method: a new one is learned" in caplog.text
    with pytest.raises(UserError, match="no projector of 32 features"):
        load_projector(str(tmp_path), 32, normalized_projector)


def test_the_pipeline_of_transformers_gives_the_same(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = Path(__file__).parents[2] / "model_cards" / "resnet8_cifar.r_le_digits"
    image = Image.fromarray((255 * IMAGES[0, :, :16, :16]).byte().permute(1, 2, 0).numpy())
    answers = transformers.pipeline("image-classification", model=str(folder))(image, top_k=10)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    model = load_classifier(str(folder))
    expected = dict(zip(model.class_names, model(pixels).softmax(1)[0].tolist(), strict=True))
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, abs=1e-5)


def test_damaged_weights_are_refused(tmp_path):
    export(trained("resnet8_cifar"), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="is not the file that was exported"):
        load_backbone(str(tmp_path))
    for place in (10, len(weights) // 3, len(weights) - 1):  # header, weights, the last byte
        flipped = bytearray(weights)
        flipped[place] ^= 1
        (tmp_path / "model.safetensors").write_bytes(flipped)
        with pytest.raises(UserError, match="is not the file that was exported"):
            load_backbone(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert load_backbone(str(tmp_path), sha256=sha256(tmp_path / "model.safetensors").upper()).num_features == 64
    with pytest.raises(UserError, match="is not the file that was asked for"):
        load_backbone(str(tmp_path), sha256="0" * 64)
    with pytest.raises(UserError, match="leave out --model.sha256"):
        load_backbone("resnet8_cifar", 32, sha256="0" * 64)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_backbone(str(tmp_path))
    export(trained("resnet8_cifar"), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "architecture": "os.system"}))
    with pytest.raises(UserError, match="neither timm"):
        load_backbone(str(tmp_path))
