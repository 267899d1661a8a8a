"""What a launcher leaves on the screen after a mistake: the sentence is what the eye meets last."""

import re

import pytest

from tests.conftest import ROOT, TORCHRUN
from tests.recipes.test_recipes import BIN

MISTAKE = ("--data.name", "nowhere", "--model.name", "resnet8_cifar", "--output_dir", "a", "--epoch", "3")
SENTENCE = "error: unknown option --epoch; did you mean 'epochs'?"
ACCELERATE = (str(BIN / "accelerate"), "launch", "--quiet")


def test_a_mistake_under_python_prints_its_sentence_alone(command):
    done = command("pretrain.py", *MISTAKE)
    assert (done.returncode, done.stderr, done.stdout) == (2, SENTENCE + "\n", "")


@pytest.mark.parametrize("form", ["cpu.yaml", "one_gpu.yaml"])
def test_a_mistake_under_the_documented_launch_prints_its_sentence_alone(command, form):
    done = command("pretrain.py", *MISTAKE, launcher=(*ACCELERATE, "--config_file", str(ROOT / "recipes" / "accelerate" / form)))
    assert done.returncode == 1  # the launcher's word for every failure
    assert done.stderr == SENTENCE + "\n"


def test_launched_without_a_configuration_the_sentence_is_still_the_last_line(command):
    done = command("pretrain.py", *MISTAKE, launcher=ACCELERATE)  # there is none in the tests' HF_HOME
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == SENTENCE


def test_torchruns_last_words_are_the_sentence(command):
    done = command("pretrain.py", *MISTAKE, launcher=TORCHRUN)
    assert done.returncode == 1
    *_, last, border = done.stderr.rstrip().splitlines()
    assert set(border.strip()) == {"="}
    assert last.split(" : ", 1)[1] == SENTENCE


def test_the_readme_and_the_recipes_show_no_command_whose_refusal_ends_in_a_traceback():
    shown = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml")]
    commands = [line for path in shown for line in path.read_text().splitlines() if re.search(r"accelerate launch\b.*recipes/\w", line)]
    assert commands
    assert not [line for line in commands if "launch --quiet --config_file" not in line]
