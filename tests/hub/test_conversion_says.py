"""What conversion says: what it found and did, also where it can do nothing."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from rocl_transfer import UserError
from rocl_transfer.hub.conversion import ConversionOptions, convert
from tests.hub.test_conversion import IMAGES, Kuangliu, OptionA, shake


def written(content, folder):
    torch.save(content, folder / "weights.pt")
    return folder / "weights.pt"


@pytest.mark.parametrize("form", ["list", "tuple", "in a dictionary"])
def test_a_list_of_state_dicts(tmp_path, form):
    first, second = shake(Kuangliu(), 1), shake(Kuangliu(), 2)
    states = [first.state_dict(), second.state_dict()]
    content = {"list": states, "tuple": tuple(states), "in a dictionary": {"epoch": 3, "models": states}}[form]
    place = "models." if form == "in a dictionary" else ""
    with pytest.raises(UserError, match=rf"holds 2 different networks: choose one with --copy \({place}0, {place}1\)"):
        convert(written(content, tmp_path))
    conversion = convert(tmp_path / "weights.pt", ConversionOptions(copy=f"{place}1"))
    with torch.no_grad():
        torch.testing.assert_close(conversion.model(IMAGES), second(IMAGES), atol=1e-5, rtol=1e-4)
    count, known = len(conversion.mapping), len(states[0])
    assert f"{count} of the {2 * known} tensors in the file were taken" in conversion.notes[0]
    assert f"the file also holds the network in {place}0; {place}1 is taken (--copy)" in conversion.notes


def test_one_network_in_a_list_and_items_in_a_list(tmp_path):
    net = shake(Kuangliu(), 1)
    for content in ([net.state_dict()], list(net.state_dict().items()), [net.state_dict(), {"lr": 0.1, "step": 3}], [net.state_dict()] * 2):
        with torch.no_grad():
            torch.testing.assert_close(convert(written(content, tmp_path)).model(IMAGES), net(IMAGES), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.rand(3), torch.rand(4)], r"what it holds is a list of 2 without names \(Tensor\)"),
        ([], "what it holds is an empty list"),
        ({}, "what it holds is an empty dictionary"),
        (torch.rand(3, 4), r"what it holds is one tensor \(3, 4\) without a name"),
        (7, "what it holds is one value of type int"),
        ({"epoch": 7, "optimizer": {"state": {}}}, r"a dictionary of 2: epoch \(int\), optimizer \(dict\), beside training state \(optimizer\)"),
    ],
)
def test_a_file_without_names_is_described(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        convert(written(content, tmp_path))


def test_a_network_that_is_not_known_is_described(tmp_path):
    with pytest.raises(UserError, match=r"it holds 4 tensors: 0.weight \(5, 3\), 0.bias \(5,\), 2.weight \(2, 5\), \.\.\.\)"):
        convert(written(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).state_dict(), tmp_path))


def test_padded_shortcuts_are_converted_and_said(tmp_path):
    net = Kuangliu(blocks=(3, 3, 3), classes=10)
    for stage in (net.layer2, net.layer3):
        stage[0].shortcut = OptionA()
    conversion = convert(written(shake(net).state_dict(), tmp_path))
    assert conversion.model.architecture == "resnet20_cifar"
    assert any("shortcuts without parameters" in note for note in conversion.notes)
    assert f"{len(conversion.mapping)} of the {len(net.state_dict())} tensors in the file were taken" in conversion.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(conversion.model(IMAGES), net(IMAGES), atol=1e-5, rtol=1e-4)


def test_padded_shortcuts_of_a_shape_that_is_not_here(tmp_path):
    state = {name: tensor for name, tensor in torchvision.models.resnet18().state_dict().items() if "downsample" not in name}
    with pytest.raises(UserError, match=r"102 tensors of resnet18 are in the file, but its shortcuts have no weights, .*option A.*resnet20_cifar"):
        convert(written(state, tmp_path))


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("weights.pt")
        info.size = 9
        archive.addfile(info, io.BytesIO(b"123456789"))
    return buffer.getvalue()


FOREIGN = {
    "model.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0" + bytes(300), "is an ONNX file, a graph whose weights .*torch.save"),
    "named otherwise": (b"\x08\x0a\x12\x08skl2onnx\x1a\x031.2" + bytes(300), "is an ONNX file"),
    "graph first.bin": (b"\x08\x08:\xc8\x01" + bytes(300), "is an ONNX file"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(300), "is an HDF5 file, as Keras writes it: save the weights there"),
    "model.keras": (zipped(config__json=b"{}", model__weights__h5=b"x"), "is a Keras file"),
    "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(300), "is a TensorFlow Lite file"),
    "weights.npy": (npy(np.zeros(3)), "is a NumPy array"),
    "weights.npz": (zipped(a__npy=npy(np.zeros(3))), "is a file of NumPy arrays"),
    "packed.zip": (zipped(weights__pth=b"x"), r"is a zip archive without a checkpoint of torch's \(it holds weights.pth\): unpack it"),
    "packed.gz": (gzip.compress(b"x" * 600), "is packed with gzip: unpack it first"),
    "packed.tar": (tar(), "is a tar archive: unpack it"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "is a pointer of Git LFS"),
    "model.gguf": (b"GGUF\3\0\0\0" + bytes(300), "is a GGUF file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_programs_file_is_named(tmp_path, name):
    content, said = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as told:
        convert(tmp_path / name)
    assert "damaged" not in str(told.value)
