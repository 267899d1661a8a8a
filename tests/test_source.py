"""What no file of the package, the recipes and the benchmarks does: evaluate text, or read what can run code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("rocl_transfer", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NEVER = {"trust_remote_code": True, "weights_only": False, "allow_pickle": True, "shell": True}


def dangers(source):
    """What in ``source`` could run text or a file's content, a line each."""
    for node in ast.walk(ast.parse(source)):
        line = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "torch.hub.load"):
                yield f"{line}{name}(...)"
            for keyword in node.keywords:
                if keyword.arg in NEVER and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is not NEVER[keyword.arg]):
                    yield f"{line}{keyword.arg}={ast.unparse(keyword.value)}"
            only = [keyword.value for keyword in node.keywords if keyword.arg == "weights_only"]
            if name == "torch.load" and not only:
                yield f"{line}torch.load without weights_only=True"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{line}import {name}" for name in names if name.split(".")[0] in MODULES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_runs_text_or_pickles(path):
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)",
        "exec(x)",
        "__import__(x)",
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "import torch\ntorch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=flag)",
        "np.load(x, allow_pickle=True)",
        "load_dataset(x, trust_remote_code=True)",
        "load(x, trust_remote_code=given)",
        "yaml.load(x)",
        "subprocess.run(x, shell=True)",
        "torch.hub.load(x)",
    ],
)
def test_each_danger_in_source_is_found(source):
    assert list(dangers(source))


def test_harmless_source_is_not_called_dangerous():
    assert not list(
        dangers("import pickletools\nmodel.eval()\nre.compile(x)\ntorch.load(x, weights_only=True)\nnp.load(x, allow_pickle=False)\nself.compile(x)")
    )
    assert len(FILES) > 80
