"""README and docs: every command is read by the recipe it starts, every link leads somewhere, every figure of the README stands in RESULTS.md."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

import rocl_transfer as rt
import rocl_transfer.command
from rocl_transfer.config import parse
from rocl_transfer.data import load_images, store_splits
from rocl_transfer.errors import UserError
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md"]
RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.py")}
START = re.compile(r"(?:python3?|rocl|accelerate launch|torchrun|pip|mkdocs|git|hf) ")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def commands(text):
    """Command lines of a page: in blocks of shell, and in backticks if they start a program."""
    blocks = [body for kind, body in FENCE.findall(text) if kind in ("bash", "sh")]
    lines = [part.strip() for body in blocks for line in body.replace("\\\n", " ").splitlines() for part in line.split("&&")]
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text))]
    return [line for line in lines if line and not line.startswith("#")] + [span for span in spans if START.match(span) and "..." not in span]


EVERY = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]


@cache
def configuration(recipe):
    """The options of a recipe: what its last line gives to ``command_line``."""
    (name,) = re.findall(r"^    command_line\(main, (\w+)\)$", (ROOT / "recipes" / f"{recipe}.py").read_text(encoding="utf-8"), re.M)
    module = importlib.import_module(recipe)
    return getattr(module, name, None) or getattr(importlib.import_module("rocl_transfer.config"), name)


def check_recipe(words):
    """The recipe reads its words as it would on the command line."""
    recipe = Path(words[0]).stem
    assert recipe in RECIPES
    words = [word.strip("[]") for word in words[1:]]  # [--head FILE] means that it may be left out
    if not words or "--help" in words:
        return
    parse(configuration(recipe), [str(ROOT / word) if word.startswith("recipes/") else word for word in words])


def check_launch(words):
    at = next(i for i, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py"))
    if "--config_file" in words[:at]:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()
    check_recipe(words[at:])


def check_python(words):
    if words[1:2] == ["-m"]:
        assert words[2] in ("venv", "pytest", "build", "twine", "mypy")
        assert all((ROOT / word.split("::")[0]).exists() for word in words[3:] if word.startswith(("tests/", "benchmarks/")))
    elif words[1].startswith("recipes/"):
        check_recipe(words[1:])
    else:
        text = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text or f'"{word.removeprefix("--")}"' in text for word in words[2:] if word.startswith("--")), words


def check_rocl(words):
    if words[1] in ("ls", "path", "cp"):
        assert all(word in RECIPES for word in words[2:3])
    else:
        check_recipe([str(rocl_transfer.command.recipe(words[1])), *words[2:]])


def check_pip(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"\[(\w+)\]", " ".join(words))
    assert named
    assert set(named) <= extras.keys()


def elsewhere(words):
    """What is no program of ours is one of a few."""
    assert words[0] in (".", "cd", "mkdocs", "git", "hf", "ruff", "mypy", "lint-imports", "twine", ".ci/run", ".ci/versions"), words


CHECKS = {"python": check_python, "python3": check_python, "accelerate": check_launch, "torchrun": check_launch, "rocl": check_rocl, "pip": check_pip}


@pytest.mark.parametrize(("page", "line"), EVERY, ids=lambda value: value[:60])
def test_a_command_is_understood_as_it_stands(page, line, tmp_path, monkeypatch):
    (tmp_path / "barlow.py").write_text(re.search(r"```python\n# barlow\.py\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)[1])
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    words = [word.removeprefix(".venv/bin/") for word in shlex.split(line)]
    CHECKS.get(words[0], elsewhere)(words)


def test_there_are_commands_and_a_wrong_one_is_seen():
    assert len(EVERY) > 40
    with pytest.raises(UserError, match="unknown option --epoch"):
        check_python(shlex.split("python recipes/pretrain.py --data.name digits --model.name resnet8_cifar --output_dir runs/a --epoch 3"))
    with pytest.raises(AssertionError):
        check_python(shlex.split("python recipes/pretraining.py --data.name digits"))
    with pytest.raises(AssertionError):
        elsewhere(["curl"])


def anchors(path):
    """Names of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_internal_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.is_file(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_is_there(page):
    named = re.findall(r"`((?:recipes|tests|benchmarks|docs|model_cards|rocl_transfer|\.ci)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readme_is_short_and_names_every_recipe():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 7168
    assert not [recipe for recipe in RECIPES if f"{recipe}.py" not in text]
    table = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert not [recipe for recipe in RECIPES if f"| `recipes/{recipe}.py` |" not in table]


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_quick_starts_table_is_that_of_the_results(page):
    rows = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith(("| RoCL | ", "| SimCLR | "))]
    assert len(rows) == 4
    assert set(rows) <= set((ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines())


def test_figures_of_the_readme_stand_in_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Measured")[1].split("\n## ")[0]
    figures = [figure for row in re.findall(r"^\| (?!what|---).*\| (.*) \|$", text, re.M) for figure in re.findall(r"\d+\.\d+", row)]
    assert len(figures) > 5
    results = {round(float(figure), 1) for figure in re.findall(r"\d+\.\d+", (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8"))}
    assert not [figure for figure in figures if round(float(figure), 1) not in results]


def test_the_release_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version, date = re.search(r"^## \[(\d[\w.]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M).groups()
    assert rt.__version__ == version == citation["version"]
    assert str(citation["date-released"]) == date


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem)
def test_an_issue_template_has_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


@cache
def digits_that_fall(name):
    """Two test digits whose answer by the model ``name`` PGD changes at 8/255: AutoAttack is done with them soon."""
    pytest.importorskip("sklearn")
    model = rt.load_classifier(name)
    _, stores = store_splits(load_images("digits", image_size=model.input_size), ["test"], torch.device("cpu"))
    images = next(iter(stores["test"].batches([torch.arange(100)]))).float() / 255
    answers = model(images).argmax(1)
    fallen = model(rt.PGD(epsilon=8 / 255, steps=20)(model, images, answers)).argmax(1) != answers
    return images[fallen][:2]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_python_runs_as_it_stands(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = [body for kind, body in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if kind == "python"]
    (model,) = re.findall(r'load_classifier\("(.+?)"\)', code)
    names = {"images": digits_that_fall(model)}
    exec(code, names)  # noqa: S102 - the page's own lines
    assert names["results"]["clean"].n == len(names["images"])
    assert (names["adversarial"] - names["images"]).abs().max() <= 8 / 255 + 1e-6


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_map_has_every_module_with_its_first_line():
    shown = hooks().module_map()
    modules = [*(ROOT / "rocl_transfer").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    assert len(re.findall(r"^\| `\w+\.py` \| .{16,} \|$", shown, re.M)) == len(modules)
    guard = ast.get_docstring(ast.parse((ROOT / "rocl_transfer/training/guard.py").read_text())).split("\n")[0].rstrip(".")
    assert f"| `guard.py` | {guard} |" in shown


def test_the_picture_shows_the_table_of_the_results():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("overview", ROOT / "docs" / "overview.py")
    overview = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(overview)
    curves = overview.quick_start((ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8"))
    assert curves["RoCL", "r-LE"][0] == (0.0, 96.9, 96.1, 97.5)
    assert curves["SimCLR", "LE"][-1] == (0.15, 0.0, 0.0, 0.0)
    assert len(curves) == 4
    assert (ROOT / "docs" / "overview.png").stat().st_size < 200_000


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "architecture" / "index.html").read_text(encoding="utf-8")
    assert "When a run is dead, said in a sentence" in page
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    assert all(name in reference for name in ("load_classifier", "smallest_epsilon", "AdversarialTraining"))
