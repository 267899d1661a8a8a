"""The examples as they stand: plain PyTorch, short, and in a tiny form they run and say what they measured; the notebook runs and has outputs."""

import ast
import importlib.util
from pathlib import Path

import pytest
import torch

from rocl_transfer.evaluation import Results

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
FLOORS = {"objectives", "attacks", "evaluation", "models", "data"}


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def modules_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_one_screen_of_plain_torch(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert 60 <= len(lines) <= 90
    assert lines[2].strip().startswith(f"python examples/{path.name}")
    for module in modules_of(path):
        top, *rest = module.split(".")
        assert top in {"torch", "argparse", "copy", "math", "rocl_transfer"}, module
        assert top != "rocl_transfer" or (len(rest) == 1 and rest[0] in FLOORS), module


def test_there_is_an_example_for_each_use():
    assert [path.stem for path in SCRIPTS] == ["adversarial_finetuning", "evaluate_any_network", "robustify", "rocl"]


@pytest.fixture
def said(capsys):
    pytest.importorskip("sklearn")
    return lambda: capsys.readouterr().out


def finite(results):
    assert isinstance(results, Results)
    assert [evaluation.name for evaluation in results.evaluations] == ["clean", "pgd-20", "pgd-20"]
    assert all(0 <= evaluation.accuracy <= 1 and evaluation.n == 48 for evaluation in results.evaluations)


def test_the_example_of_rocl_runs(said):
    module = example("rocl")
    finite(module.main(epochs=1, most=48))
    text = said()
    for part in ("step 1/1  loss ", "main ", "regularizer ", "pgd-20 linf 0.1: "):
        assert part in text


def test_rocl_looks_at_no_label_and_leaves_the_backbone_alone_under_its_head(said):
    module = example("rocl")
    images, labels = (part[:64] for part in module.digits("train"))
    backbone = module.pretrain(images, epochs=4, batch_size=32)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    classifier = module.linear_head(backbone, images, labels)
    after = classifier.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with torch.no_grad():
        assert (classifier(images.float() / 255).argmax(1) == labels).float().mean() > 0.5


def test_the_example_of_robustify_runs(said):
    module = example("robustify")
    before, after = module.main(epochs=2, most=48)
    finite(before)
    finite(after)
    text = said()
    assert text.index("before:") < text.index("after:")


def test_robustify_keeps_the_head_and_the_original(said):
    module = example("robustify")
    images, labels = (part[:64] for part in module.digits("train"))
    model = module.train(images, labels, epochs=1, batch_size=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = module.robustify(model, images, epochs=1, batch_size=32)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(twin.head.weight, model.head.weight)
    assert not torch.equal(twin.net.conv1.weight, model.net.conv1.weight)


def test_the_example_of_adversarial_finetuning_runs(said):
    finite(example("adversarial_finetuning").main(epochs=2, most=48))
    assert "robust_accuracy " in said()


def test_adversarial_finetuning_returns_the_running_average(said):
    module = example("adversarial_finetuning")
    images, labels = (part[:64] for part in module.digits("train"))
    model = module.add_head(module.create_backbone("resnet8_cifar", image_size=16), list("0123456789"))
    averaged = module.finetune(model, images, labels, epochs=2, batch_size=32)
    assert not averaged.training
    assert averaged is not model
    assert not torch.equal(averaged.net.conv1.weight, model.net.conv1.weight)


def test_the_example_of_evaluating_any_network_runs(said):
    results, flips = example("evaluate_any_network").main(steps=40, most=12, attacks="fast")
    assert [evaluation.name for evaluation in results.evaluations] == ["clean", "apgd-ce", "apgd-t", "autoattack-fast"]
    accuracies = [evaluation.accuracy for evaluation in results.evaluations]
    assert accuracies[-1] == min(accuracies)
    wrong = torch.tensor([not line["clean"] for line in results.verdicts])
    assert torch.equal(flips == 0, wrong)
    assert "10 classes; nothing odd about it" in said()


NOTEBOOK = FOLDER / "quickstart.ipynb"


def shown(cell):
    """What a cell of the notebook printed, and how many pictures it drew."""
    printed = "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")
    return printed, sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def complete(cells):
    """Every code cell was run once, in order and without an error; the tables and pictures are there."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    printed = "".join(shown(cell)[0] for cell in code)
    for part in ("RoCL    r-LE", "its twin, an r-LE head", "apgd-ce linf 0.05: ", "autoattack-fast"):
        assert part in printed
    assert sum(shown(cell)[1] for cell in code) == 5


def test_the_notebook_has_the_outputs_of_a_whole_run_and_is_small():
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOK.stat().st_size < 300_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    complete(notebook.cells)
    assert all(cell["source"].count("\n") < 25 for cell in notebook.cells)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not [place for place in ("/home/", "site-packages", "/tmp/") if place in text]  # noqa: S108 - looked for, not used


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for module in ("ipykernel", "matplotlib", "sklearn"):
        pytest.importorskip(module)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if cell["source"].startswith("RUNS = ")]
    parameters["source"] = f"RUNS = Path({str(tmp_path / 'runs')!r})\nQUICK_START = ['--max_steps', '20']\nROBUSTIFY = ['--epochs', '2']"
    for cell in notebook.cells:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(FOLDER)}}).execute()
    complete(notebook.cells)
