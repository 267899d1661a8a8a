"""recipes/convert.py as a user runs it: a checkpoint in RoCL's layout to a folder that the other recipes take."""

import json
import os
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

import rocl_transfer as rt
from convert import ConvertConfig
from rocl_transfer.hub.conversion.families import FAMILIES
from rocl_transfer.models import create_backbone


def convert(command, *words, check=0):
    done = command("convert.py", *words, check=check)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def files(tmp_path):
    """A network in RoCL's names, its linear head, and a pickle that writes a file."""
    torch.manual_seed(0)
    model = create_backbone("resnet8_cifar", 32).eval()
    state = {f"module.{name.replace('downsample', 'shortcut')}": tensor for name, tensor in model.net.state_dict().items()}
    torch.save({"model": state, "epoch": 999, "optimizer_state": {}, "rng_state": torch.get_rng_state()}, tmp_path / "ckpt.t7rocl_0")
    head = nn.Linear(64, 3)
    torch.save({"model": {f"module.0.{name}": tensor for name, tensor in head.state_dict().items()}}, tmp_path / "ckpt.t7rocl_0_linear")
    torch.save({"model": {}, "extra": Marker()}, tmp_path / "bad.pt")
    (tmp_path / "names.txt").write_text("ape\nbee\ncat\n")
    return model, head


class Marker:
    def __reduce__(self):
        return os.system, ("touch MARKER",)


def test_the_command_knows_every_family():
    assert set(get_args(get_type_hints(ConvertConfig)["family"])) == {"auto", *FAMILIES}


def test_a_checkpoint_becomes_a_classifier(command, files, tmp_path):
    model, head = files
    words = ["--head", "ckpt.t7rocl_0_linear", "--label_names", "names.txt", "--mean", "[0.5, 1/2, 0.5]", "--std", "[0.25, 0.25, 0.25]"]
    done = convert(command, "ckpt.t7rocl_0", "--family", "auto", "--output_dir", "out", *words)
    lines = done.stdout.splitlines()
    assert {line.index("->") for line in lines} == {lines[0].index("->")}  # aligned
    assert any(line.split() == ["model.module.layer2.0.shortcut.0", "->", "layer2.0.downsample.0", "(1)"] for line in lines)
    assert lines[-1] == "ckpt.t7rocl_0_linear: model.module.0  ->  fc (2)"
    assert "normalisation: mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25], given" in done.stderr
    loaded = rt.load_classifier(str(tmp_path / "out"))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), head(model((images - 0.5) / 0.25)), atol=1e-5, rtol=1e-4)
    assert loaded.class_names == ("ape", "bee", "cat")
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["rocl_transfer"]["converted_from"]
    assert (facts["family"], facts["file"]) == ("rocl", "ckpt.t7rocl_0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Converted from `ckpt.t7rocl_0` (`sha256:{facts['sha256']}`), a checkpoint of rocl: the network at `model.module`" in card
    assert "AutoAttack: not evaluated" in card
    done = convert(command, "ckpt.t7rocl_0", "--output_dir", "out", check=2)
    assert done.stderr.splitlines()[-1] == "error: out holds a model already (config.json): choose another --output_dir"


MISTAKES = {
    "nothing": (["--output_dir", "out"], "there are no checkpoints: name a checkpoint file"),
    "two": (["a", "b", "--output_dir", "out"], "one checkpoint is converted at a time"),
    "no output": (["ckpt.t7rocl_0"], "--output_dir is missing"),
    "a malicious pickle": (["bad.pt", "--output_dir", "out"], "bad.pt is refused, because loading it could run any code: it wants"),
    "a malicious head": (["ckpt.t7rocl_0", "--head", "bad.pt", "--output_dir", "out"], "bad.pt is refused"),
    "no names": (["ckpt.t7rocl_0", "--label_names", "nofile", "--output_dir", "out"], "--label_names nofile is not a file of names"),
    "a name twice": (["ckpt.t7rocl_0", "--label_names", "[a, a]", "--output_dir", "out"], "--label_names has a twice"),
    "half a mean": (["ckpt.t7rocl_0", "--mean", "[0.5]", "--output_dir", "out"], "--mean has 1 numbers: give one per channel"),
    "mean alone": (["ckpt.t7rocl_0", "--mean", "[0.5, 0.5, 0.5]", "--output_dir", "out"], "--mean and --std belong together"),
    "bytes": (["ckpt.t7rocl_0", "--mean", "[124, 116, 104]", "--std", "[58, 57, 57]", "--output_dir", "out"], "divide numbers of 0 to 255 by 255"),
    "no such family": (["ckpt.t7rocl_0", "--family", "rcol", "--output_dir", "out"], "--family is rcol: give one of 'auto', 'rocl'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(command, files, tmp_path, mistake):
    words, sentence = MISTAKES[mistake]
    done = convert(command, *words, check=2)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in done.stderr.splitlines()[-1]
    assert not done.stdout
    assert not (tmp_path / "MARKER").exists()
    assert not list(tmp_path.glob("out/*"))


def test_what_was_converted_is_measured_and_published(command, files, tmp_path, class_folder):
    (class_folder / "g").mkdir()  # a third class
    for path in sorted((class_folder / "b").iterdir())[:8]:
        path.rename(class_folder / "g" / path.name)
    convert(command, "ckpt.t7rocl_0", "--head", "ckpt.t7rocl_0_linear", "--label_names", "[b, g, r]", "--output_dir", "out")
    # Random weights are right on a third, and nothing of that stands; what matters is that the card says so.
    words = ["--model.name", "out", "--data.name", class_folder, "--split", "all", "--attacks", "paper", "--epsilon", 0.1, "--output_dir", "eval"]
    command("evaluate.py", *words, check=0)
    done = command("publish.py", "--run", "out", "--repo_id", "user/converted", "--dry_run", "true", check=0)
    assert "| pgd-20 | linf | 0.1 |" in done.stdout
    assert "--model.name hf-hub:user/converted --data.name DATA --attacks standard" in done.stdout
