"""The house's own rules, in the test command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "words",
    [("ruff", "check", "."), ("mypy", "--no-error-summary"), ("importlinter.cli", "lint")],
    ids=["ruff", "mypy", "import-linter"],
)
def test_passes(words):
    module, *arguments = words
    program = [str(Path(sys.executable).parent / "lint-imports")] if module == "importlinter.cli" else [sys.executable, "-m", module, *arguments]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_readmes_test_command():
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.endswith("-m pytest"))
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert "pip install" in line


def test_every_module_is_on_the_readmes_map():
    readme = (ROOT / "README.md").read_text()
    modules = [*(ROOT / "rocl_transfer").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    missing = [str(path.relative_to(ROOT)) for path in modules if path.name != "__init__.py" and f"`{path.name}`" not in readme]
    assert not missing
