"""Benchmarks of many trainings: passes are counted as networks see them, rows are made once, and the scripts run through on next to nothing."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.data import Augmentation, Batch, light_views
from rocl_transfer.errors import Interrupted
from rocl_transfer.models import add_head, create_backbone
from rocl_transfer.objectives import PRETRAINING, AdversarialTraining, Distillation
from tests.conftest import ENVIRONMENT, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import rows

STEPS = 3
CASES = {
    "simclr": {}, "rocl": {}, "acl": {}, "dynacl": {}, "fare": {}, "deacl": {}, "lore": {}, "trades": {}, "at": {},
    "dynacl with ema": {"ema": True},
}  # fmt: skip


def made(method, ema=False):
    torch.manual_seed(0)
    network, attack = create_backbone("resnet8_cifar", 16), AttackOptions(steps=STEPS)
    if method in PRETRAINING:
        kind = PRETRAINING[method]
        given = {} if method == "simclr" else {"attack": attack} | ({"ema_decay": 0.9} if ema else {})
        return kind(network, kind.make_projector(64), Augmentation(), kind.Options(**given))
    if method in ("trades", "at"):
        classifier = add_head(network, [str(label) for label in range(10)])
        return AdversarialTraining(classifier, AdversarialTraining.Options(method=method, attack=attack))
    torch.manual_seed(1)
    teacher = create_backbone("resnet8_cifar", 16)
    return Distillation(network, teacher, light_views(), Distillation.Options(method=method, attack=attack))


@pytest.mark.parametrize("case", CASES)
def test_passes_are_those_that_the_networks_see(case):
    method, options = case.split()[0], CASES[case]
    objective, seen = made(method, **options), []

    def see(module, args, out):
        kind = 3 if module.weight.requires_grad and out.requires_grad else 2 if out.requires_grad else 1
        seen.append(kind * len(out))

    for name, part in [*objective.named_modules(), *(pair for module in objective.frozen for pair in module.named_modules())]:
        if name.endswith("net.conv1"):
            part.register_forward_hook(see)
    for folded in ("attacked", "key_attacked"):
        if hasattr(objective, folded):
            getattr(objective, folded).tried = True  # and not folded: the attack goes through the network that is counted
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    objective.train()
    objective.begin_step(1, 2)
    objective(Batch(images, torch.arange(4), (1,)))
    assert sum(seen) / 4 == rows.passes(method, STEPS, **options)


def test_a_row_is_made_once_and_one_that_was_cut_off_again(tmp_path):
    path, asked = tmp_path / "rows.jsonl", []

    def make(key):
        asked.append(key["a"])
        return {"value": key["a"] ** 2}

    first = rows.kept(path, [{"a": 2}, {"a": 3}], make)
    assert first == [{"a": 2, "value": 4}, {"a": 3, "value": 9}]
    text = path.read_text()
    path.write_text(text + '{"a": 4, "val')
    again = rows.kept(path, [{"a": 3}, {"a": 4}], make)
    assert again == [{"a": 3, "value": 9}, {"a": 4, "value": 16}]
    assert asked == [2, 3, 4]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*first, again[1]]


def test_a_spread_says_how_many_ended():
    assert rows.spread([50.0]) == "50.0"
    assert rows.spread([50.0, 52.0]) == "51.0 (50.0-52.0)"
    assert rows.spread([50.0, None]) == "50.0 (50.0-50.0), 1 ended by the guard"
    assert rows.spread([None]) == "-, 1 ended by the guard"


def test_the_clock_counts_what_a_signal_ended(tmp_path, monkeypatch):
    def interrupted(config):
        raise Interrupted(15)

    ticks = iter([0, 5, 10, 20])
    monkeypatch.setattr(rows, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(rows.pretrain, "main", interrupted)
    for spent in (5, 15):
        with pytest.raises(Interrupted):
            rows.run(rows.pretrain, tmp_path / "rows" / "rocl", "--model.name", "resnet8_cifar", "--data.name", "digits")
        assert rows.seconds(tmp_path / "rows" / "rocl") == spent


SCRIPTS = {
    "objectives.py": (
        "--budget 30 --seeds 1 --rows acl rocl fare --ways r_le trades --head_epochs 1 --steps 1 --images 300 --batch_size 32 --autoattack 10",
        ["| acl | 2 | 32 |", "| rocl | 2 | 36 |", "| fare | 1 + 3 | 33 |"],
    ),
    "cheap_adversaries.py": (
        "--seeds 1 --methods at robustify --attacks nfgsm 10 --epochs 1 --pretrain_epochs 2 --robustify_epochs 2 --head_epochs 1",
        ["| at | nfgsm | 5 | 25 |", "| robustify | nfgsm | 2 | 18 |"],
    ),
    "few_images.py": (
        "--images 40 80 --budget 3 --seeds 1 --steps 1 --head_epochs 1",
        ["| 40 | ", "| 80 | ", "robustify, its start saw all images: PGD-20"],
    ),
    "step_size.py": (
        "--methods robustify --seeds 1 --epsilons 0.1 --steps 1 --grid auto 2 --epochs 2 --pretrain_epochs 3 --head_epochs 1",
        ["| robustify | 1 | 0.1 |"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs_through_and_what_is_there_is_not_made_again(script, tmp_path):
    words, wanted = SCRIPTS[script]
    command = [sys.executable, ROOT / "benchmarks" / script, *words.split(), "--output_dir", tmp_path]
    outputs, times = [], []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(done.stdout)
        times.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors")})
    assert all(line in outputs[0] for line in wanted), outputs[0]
    assert outputs[0] == outputs[1]
    assert times[0] == times[1]
