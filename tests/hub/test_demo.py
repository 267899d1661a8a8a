"""The demo's page without a browser: what it shows, what it says, and what it is exported to. Gradio is needed for none of it but the last."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import rocl_transfer as rt
from rocl_transfer import UserError
from rocl_transfer.data.decode import decode
from rocl_transfer.evaluation.report.closeup import Closeup, close_up
from rocl_transfer.hub import demo
from rocl_transfer.hub.demo import Settings, show
from rocl_transfer.hub.space import export_space, files_of, requirements

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model_cards" / "resnet8_cifar.r_le_digits"
SETTINGS = Settings(epsilon=0.1, steps=20)


@pytest.fixture(scope="module")
def model():
    return rt.load_classifier(str(MODEL))


@pytest.fixture
def digit(tmp_path):
    data = pytest.importorskip("sklearn.datasets").load_digits()
    (tmp_path / "digits").mkdir()
    path = tmp_path / "digits" / "three.png"
    Image.fromarray((data.images[13] * 255 / 16).round().astype(np.uint8)).save(path)
    return path


def test_a_column_shows_what_the_library_measures(model, digit):
    shown = show(model, digit, SETTINGS)
    seen = close_up(model, decode(digit, 16, ""), epsilon=0.1, steps=20)
    assert shown.clean.shape == shown.adversarial.shape == shown.perturbation.shape == (224, 224, 3)
    assert np.array_equal(shown.clean[::14, ::14], decode(digit, 16, "").permute(1, 2, 0).numpy())
    assert np.abs(shown.adversarial[::14, ::14] / 255 - seen.adversarial.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    assert {shown.perturbation.min(), shown.perturbation.max()} & {0, 255}
    labels = [model.class_names[label] for label in seen.leading()]
    assert [point[2] for point in shown.curves] == [label for label in labels for _ in range(9)]
    assert [point[0] for point in shown.curves[:9]] == pytest.approx((255 * seen.epsilons).tolist(), abs=1e-3)
    assert show(model, digit, Settings(epsilon=0.5, max_epsilon=1, steps=1, norm="l2")).curves[8][0] == 0.5
    assert [point[1] for point in shown.curves[:9]] == pytest.approx(seen.probabilities[:, seen.leading()[0]].tolist(), abs=1e-5)
    assert f"**3** ({100 * seen.before[1]:.1f} %)" in shown.words
    assert f"**{255 * seen.flips_at:.1f}/255** (linf, PGD-20; a stronger attack may need less)" in shown.words
    assert f"enlarged {0.5 / seen.largest_change:.0f} times" in shown.words


def closeup(flips=0.0105, after=0.1, names=("a", "b")):
    probabilities = torch.tensor([[0.9, 0.1], [after, 1 - after]])
    image = torch.full((3, 2, 2), 0.5)
    return Closeup(names, torch.tensor([0.0, 0.1]), probabilities, image, image + 0.1, flips, 64 / 255)


def test_the_demo_says_in_words_what_a_close_up_found():
    text = demo.words(closeup(), Settings())
    assert "**a** (90.0 %) becomes **b** (90.0 %)" in text
    assert "**2.7/255** (linf, PGD-20" in text
    assert "enlarged 5 times" in text
    assert "**a** (90.0 %) stays **a** (70.0 %)" in demo.words(closeup(after=0.7), Settings())
    assert "**above 64/255, the largest tried**" in demo.words(closeup(float("inf")), Settings())
    assert "**0.0105** (l2, PGD-5" in demo.words(closeup(), Settings(norm="l2", steps=5))


def test_a_class_name_is_text_and_never_markup():
    text = demo.words(closeup(names=("<img src=x onerror=alert(1)>", "[b](javascript:1)")), Settings())
    assert r"\<img src=x onerror=alert\(1\)\>" in text
    assert r"\[b\]\(javascript:1\)" in text


def test_epsilon_0_says_that_nothing_changes(model, digit):
    shown = show(model, digit, Settings(epsilon=0, steps=2))
    assert "Perturbation: nothing changes" in shown.words
    assert np.array_equal(shown.clean, shown.adversarial)


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n\x1a\n"])
def test_an_upload_is_read_by_the_careful_decoder(model, tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match="this file is not a readable image"):
        show(model, tmp_path / "x.png", SETTINGS)
    with pytest.raises(UserError):
        show(model, tmp_path, SETTINGS)  # a folder


def test_without_gradio_a_sentence_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"the demo needs gradio: pip install 'rocl-transfer\[demo\]'"):
        demo.interface([("m", model)], [], SETTINGS)


@pytest.fixture
def space(tmp_path, digit):
    other = digit.parent / "deep" / "three.png"
    other.parent.mkdir()
    Image.new("RGB", (20, 20), "red").save(other)
    return export_space(tmp_path / "space", [str(MODEL), str(MODEL), "hf-hub:user/net"], [digit, other], SETTINGS)


def test_a_space_has_its_files(space):
    files = files_of(space)
    header = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio"
    assert header["app_file"] in files
    assert f"gradio=={header['sdk_version']}" in (space / "requirements.txt").read_text().splitlines()
    assert {"images/0_three.png", "images/1_three.png", "models/0/model.safetensors", "rocl_transfer/__init__.py"} <= set(files)
    assert not [name for name in files if "recipes" in name or name.endswith(".pyc") or str(space) in name]
    assert (space / "models/0/model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    assert '"3: user/net": "hf-hub:user/net"' in (space / "app.py").read_text()


def test_its_requirements_are_the_packages_own_and_enough_for_the_page(space):
    declared = re.findall(r'^    "([^"]+)",', (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[0], re.M)
    wanted = (space / "requirements.txt").read_text().splitlines()
    assert {line.replace("-", "_") for line in requirements()} <= {line.replace("-", "_") for line in declared}
    assert "torch>=2.11" in wanted
    # Nothing else is imported: the app loads its models with everything absent that is not required.
    app = space / "app.py"
    app.write_text(
        app.read_text().replace('    "3: user/net": "hf-hub:user/net"\n', "").replace('r_le_digits": "models/1",', 'r_le_digits": "models/1"')
    )
    absent = ["datasets", "jsonargparse", "sklearn", "matplotlib", "gradio", "pandas"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import app; print(len(app.models), len(app.images), app.SETTINGS.epsilon)"
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=space, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2", "2", "0.1"], done.stderr[-2000:]


def test_two_models_of_one_name_are_told_apart(space):
    listed = json.loads(re.search(r"MODELS = (\{.*?\})", (space / "app.py").read_text(), re.S)[1])
    assert list(listed) == ["1: resnet8_cifar.r_le_digits", "2: resnet8_cifar.r_le_digits", "3: user/net"]


def test_a_folder_that_is_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is there already and not empty: name another folder, or remove it"):
        export_space(tmp_path / "mine", [str(MODEL)], [], SETTINGS)
    with pytest.raises(UserError, match="is there already"):
        export_space(tmp_path / "mine" / "thesis.txt", [str(MODEL)], [], SETTINGS)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_space_says_nothing_of_this_machine(tmp_path):
    source = tmp_path / "run"
    source.mkdir()
    for name in ("model.safetensors", "probe.safetensors"):
        (source / name).write_bytes((MODEL / name).read_bytes())
    content = json.loads((MODEL / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**content, "rocl_transfer": {**content.get("rocl_transfer", {}), "trained_on": {"data": "/home/ann/cats", "cut": None}}})
    )
    space = export_space(tmp_path / "space", [str(source)], [], SETTINGS)
    assert "/home/ann" not in (space / "models/0/config.json").read_text()
    assert "cats" in (space / "models/0/config.json").read_text()


def test_what_is_no_space_is_not_sent(tmp_path):
    with pytest.raises(UserError, match=r"has no app\.py: name a folder that recipes/demo\.py --export_space wrote"):
        files_of(tmp_path)
