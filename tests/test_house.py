"""The house's own rules, in the test command."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("words", ["ruff check .", "ruff format --check .", pytest.param("mypy", marks=pytest.mark.slow), "lint-imports"])
def test_passes(words):
    program, *arguments = words.split()
    done = subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def modules():
    return [path for place in ("rocl_transfer", "recipes") for path in sorted((ROOT / place).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_first_what_it_is_for(path):
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    assert len(first) > 15
    assert first[0] not in ".,;"


def test_every_room_is_on_the_map():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.parent if path.parent != ROOT / "rocl_transfer" else path for path in modules()} - {ROOT / "rocl_transfer" / "__init__.py"}
    missing = [room.name for room in rooms if room.name not in page]
    assert not missing


def test_no_test_or_benchmark_meets_at_a_port_of_its_own():
    """Two runs on one machine would fight for it: launchers choose one that is free, servers bind port 0."""
    word = "master" + "_port"
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / ".ci").iterdir()]
    named = [line for path in files for line in path.read_text().splitlines() if word in line.lower()]
    assert all(line.endswith("= str(store.port)") for line in named), named  # the free one that a store was given
    launches = [line for path in files for line in path.read_text().splitlines() if '"--nproc' + '_per_node"' in line]
    assert launches
    assert all('"--standalone"' in line for line in launches)


def test_the_library_works_without_datasets_jsonargparse_and_the_extras():
    absent = ["datasets", "jsonargparse", "sklearn", "matplotlib", "tensorboard"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import torch, rocl_transfer as rt\n"
        "from rocl_transfer import objectives, training\n"
        "model = rt.load_classifier('model_cards/resnet8_cifar.r_le_digits')\n"
        "print(rt.evaluate(model, torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long), attacks='paper')['clean'].n)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4", done.stderr


UNITS = "image|sample|group|batch|step|epoch|class|channel"
# Not the field's words, or not English; what to write instead.
BANNED = {
    r"(?i)\b(go|goes|going|gone) on\b": "resume, continue",
    r"(?i)\bby (itself|themselves)\b": "automatically, alone",
    r"(?i)\ba (line|row|sentence|column|key) (a|an|each)\b": "one ... per ..., one ... each",
    rf"(?i)\b(one|seeds?|labels?|term|seconds|passes|steps|ms|s|images|queries|searches|evaluations) an? ({UNITS})\b(?! takes)": "per",
    r"(?i)\bround(s|ed)? otherwise\b": "differently",
    r'(^ +\w+: |""")Of ': "say what it is of that",
    r"\bbefell\b": "happened",
    r"(?i)\bunless told otherwise\b": "by default",
}


def pages():
    folders = [path for place in ("rocl_transfer", "recipes", "docs", "examples") for path in sorted((ROOT / place).rglob("*"))]
    return [path for path in [*folders, ROOT / "README.md", ROOT / "CONTRIBUTING.md"] if path.suffix in {".py", ".md", ".yaml"}]


@pytest.mark.parametrize("phrase", BANNED)
def test_no_sentence_has_a_banned_phrase(phrase):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in pages()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(phrase, line)
    ]
    assert not found, f"write {BANNED[phrase]} instead:\n" + "\n".join(found)


def test_banned_phrases_are_found():
    """The patterns match what they are there for: one that matches nothing would never fail."""
    examples = ["a killed run goes on where it was", "cut by itself", "a line a sample", "one seed an image", "attacks round otherwise",
                "        seed: Of the draws.", "what befell it", "one thread unless told otherwise"]  # fmt: skip
    assert [next((phrase for phrase in BANNED if re.search(phrase, example)), None) for example in examples] == list(BANNED)
