"""The house's own rules, in the test command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("words", ["ruff check .", "ruff format --check .", "mypy", "lint-imports"])
def test_passes(words):
    program, *arguments = words.split()
    done = subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_is_on_the_readmes_map():
    readme = (ROOT / "README.md").read_text()
    modules = [*(ROOT / "rocl_transfer").rglob("*.py"), *(ROOT / "recipes").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml")]
    missing = [str(path.relative_to(ROOT)) for path in modules if path.name != "__init__.py" and f"`{path.name}`" not in readme]
    assert not missing


def test_the_readme_shows_the_files_that_are_there():
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## File map") :]
    names = {line.split("`")[1] for line in section.splitlines() if line.strip().startswith("- `") and "." in line.split("`")[1]}
    missing = [name for name in names if not any(list(ROOT.glob(f"{depth}{name}")) for depth in ("", "*/", "*/*/", "*/*/*/"))]
    assert names
    assert not missing


def test_the_library_works_without_datasets_jsonargparse_and_the_extras():
    absent = ["datasets", "jsonargparse", "sklearn", "matplotlib", "tensorboard"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import torch, rocl_transfer as rt\n"
        "from rocl_transfer import objectives, training\n"
        "model = rt.load_classifier('model_cards/resnet8_cifar.r_le_digits')\n"
        "print(rt.evaluate(model, torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))['clean'].n)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4", done.stderr
