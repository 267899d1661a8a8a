"""The page that shows an objective of one's own, run as it stands."""

import json
import re
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
CODE = re.search(r"```python\n# barlow\.py\n(.*?)```", PAGE, re.S)[1]
SHELL = re.search(r"```sh\n(.*?)```", PAGE, re.S)[1].splitlines()
SHORT = ["--epochs", "2", "--max_steps", "3", "--batch_size", "128", "--optimizer.name", "adamw", "--optimizer.lr", "1e-3",
         "--optimizer.warmup_epochs", "0", "--optimizer.warmup_lr", "0", "--data.image_size", "16"]  # fmt: skip


@pytest.fixture
def words(tmp_path):
    (tmp_path / "barlow.py").write_text(CODE)
    help_, train = (shlex.split(line)[2:] for line in SHELL)
    return help_, train


def test_the_example_of_a_new_objective_is_short():
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 45


def test_the_options_of_a_new_objective_are_in_the_help(command, words):
    shown = " ".join(command("pretrain.py", *words[0], check=0).stdout.split())
    assert "--objective.redundancy REDUNDANCY Weight of the off-diagonal terms." in shown
    assert "--objective.attack.epsilon" in shown
    assert "shared_regularizer" not in shown


def test_a_new_objective_trains_resumes_and_is_named_on_the_card(command, words, tmp_path):
    pytest.importorskip("sklearn")
    command("pretrain.py", *words[1], *SHORT, check=0)
    run = tmp_path / "runs" / "barlow"
    assert "pre-trained without labels by Barlow Twins against an adversary" in (run / "README.md").read_text()
    assert "redundancy: 0.01" in (run / "config.yaml").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("invariance" in line for line in lines)
    done = command("pretrain.py", "--config", run / "config.yaml", "--max_steps", 4, check=0)
    assert "resumed from" in done.stderr


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("nothing.py:Barlow", "there is no file nothing.py: check the path given to --objective.method"),
        ("barlow.py:Missing", "--objective.method barlow.py:Missing cannot be imported"),
        ("barlow.py:AttackOptions", "--objective.method barlow.py:AttackOptions is no Objective with a class Options in it"),
        ("barlow", "--objective.method is barlow: give one of rocl, acl, dynacl, simclr, or FILE.py:Class"),
    ],
)
def test_what_is_no_objective_is_refused(command, words, method, sentence):
    done = command("pretrain.py", "--objective.method", method, *words[1][2:], check=2)
    assert sentence in done.stderr.splitlines()[-1]


def test_an_option_of_another_method_is_refused_by_name(command, words):
    done = command("pretrain.py", *words[1], "--objective.temperature", "0.2", check=2)
    assert "--objective.temperature has no effect with --objective.method barlow.py:Barlow: leave it out" in done.stderr.splitlines()[-1]
