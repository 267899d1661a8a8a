"""The command ``rocl``, in this checkout and from a built wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rocl_transfer.command import copy, recipe, recipes

ROOT = Path(__file__).parents[2]
# What the help of the command itself may import beyond Python's own modules, and what the help of a recipe must not: seconds of CPU time each.
LIGHT = {"rocl_transfer"}
HEAVY = {"timm", "torchvision", "datasets", "matplotlib", "sklearn", "transformers", "torch._dynamo", "tensorboard", "pyautoattack"}


def rocl(*words, path=ROOT, cwd=None, code=None):
    start = code or "from rocl_transfer.command import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", start, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


# One after the other in one process: what any of them imports is seen at the end.
HELPS = """
import sys
from rocl_transfer.command import main
for sys.argv[1:] in [words.split() for words in sys.argv[1:]]:
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
print(*sys.modules, file=sys.stderr)
"""


def imported(*every):
    """Names of the packages in memory once ``rocl WORDS`` has ended, for each WORDS."""
    done = rocl(*every, code=HELPS)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(done.stderr.split())


def test_the_help_of_the_command_imports_python_alone():
    names = {name.partition(".")[0] for name in imported("--help")}
    foreign = {name for name in names if not name.startswith("_")} - set(sys.stdlib_module_names) - LIGHT
    # .pth files of an environment import what they like before we begin.
    before = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True).stdout.split()
    assert foreign <= {name.partition(".")[0] for name in before}


def test_the_help_of_a_recipe_imports_nothing_heavy():
    assert not imported("pretrain --help", "finetune --help", "evaluate --help") & HEAVY


def test_every_recipe_is_listed_with_what_it_does():
    lines = dict(line.split(maxsplit=1) for line in rocl("ls").stdout.splitlines())
    assert len(lines) == len(list((ROOT / "recipes").glob("*.py")))
    assert lines["probe"].startswith("Train a linear head on a frozen backbone")
    assert all(len(summary) > 20 for summary in lines.values())


def test_a_path_is_that_of_the_file():
    assert rocl("path", "finetune").stdout.strip() == str(ROOT / "recipes" / "finetune.py")
    assert recipe("probe") == recipes()["linear_probe"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["finetun"], "there is no recipe finetun; did you mean 'finetune'?"),
        (["path"], "rocl path takes the name of one recipe"),
        (["ls", "x"], "rocl ls takes nothing more"),
        (["cp", "nothing_like_it"], "there is no recipe nothing_like_it; rocl ls lists them"),
        (["finetune", "--epoch", "3"], "unknown option --epoch; did you mean 'epochs'?"),
    ],
)
def test_mistakes_of_the_rocl_command_are_one_sentence(words, sentence):
    done = rocl(*words)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_copy_has_what_it_imports_and_its_configurations_and_runs(tmp_path):
    copied = {path.relative_to(tmp_path).as_posix() for path in copy("quickstart", tmp_path)}
    assert {"quickstart.py", "pretrain.py", "linear_probe.py", "configs/digits_rocl.yaml", "configs/digits_r_le.yaml"} <= copied
    assert "configs/finetune_32px.yaml" not in copied
    done = subprocess.run([sys.executable, tmp_path / "quickstart.py", "--help"], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert "RoCL beside SimCLR" in done.stdout
    done = rocl("cp", "quickstart", str(tmp_path))
    assert done.returncode == 2
    assert "is there already: name another folder" in done.stderr


def test_a_wheel_carries_recipes_and_templates(tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        names = set(archive.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "rocl = rocl_transfer.command:main" in archive.read(entry).decode()
    assert {"rocl_transfer/recipes/finetune.py", "rocl_transfer/recipes/configs/digits_rocl.yaml", "rocl_transfer/model_cards/template.md"} <= names
    place = tmp_path / "installed"
    assert "finetune" in rocl("ls", path=place, cwd=tmp_path).stdout
    assert rocl("path", "finetune", path=place, cwd=tmp_path).stdout.strip() == str(place / "rocl_transfer" / "recipes" / "finetune.py")
    assert "--optimizer.layer_decay" in rocl("finetune", "--help", path=place, cwd=tmp_path).stdout
    find = "from rocl_transfer.templates import template; print(template('template.md'), template('report.html'), template('models.html'))"
    assert str(place) in rocl(path=place, cwd=tmp_path, code=find).stdout
