"""How long a training will last is said before it does, and costs nothing of what it trains."""

import logging

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.data import Augmentation, Batch, Batches, Resident, Sampler
from rocl_transfer.models import create_backbone, projector
from rocl_transfer.objectives import Objective, RoCL
from rocl_transfer.training import Checkpoints, OptimizerOptions, train
from rocl_transfer.training import estimate as estimate_module
from rocl_transfer.training.estimate import Forecast
from rocl_transfer.training.update import Update


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


class Slow(Objective):
    """A step costs ``fixed`` seconds, and each image ``each``."""

    def __init__(self, clock, fixed, each):
        super().__init__()
        self.net, self.clock, self.fixed, self.each, self.seen = nn.Linear(4, 1), clock, fixed, each, []

    @property
    def exported(self):
        raise NotImplementedError

    def begin_step(self, step, total):
        self.share = step / total

    def forward(self, batch):
        self.clock.now += self.fixed + self.each * len(batch.inputs)
        self.seen.append((len(batch.inputs), self.share))
        return {"loss": self.net(batch.inputs.float()).square().mean()}


def forecast(monkeypatch, fixed, each, images=256, per_epoch=5, left=1000, accumulation=1, small=None):
    clock = Clock()
    monkeypatch.setattr(estimate_module, "time", clock)
    objective = Slow(clock, fixed, each)
    update = Update(Accelerator(cpu=True), objective, torch.optim.SGD(objective.parameters(), 0.1), None, accumulation)
    found = Forecast(update, per_epoch, 1000)
    if small is not None:
        found.small = small
    found.before(Batch(torch.rand(images, 4), None, tuple(range(max(accumulation, 2)))), left)
    return objective, found


def test_the_readmes_first_command_says_four_days_before_its_first_step(monkeypatch, caplog):
    """69 s a step of 128 photographs at 224 px, as was measured."""
    caplog.set_level(logging.INFO, "rocl_transfer")
    objective, _ = forecast(monkeypatch, 0.5, 336 / 256, per_epoch=6, left=1200)
    (said,) = (record.message for record in caplog.records)
    assert said.startswith("a step of 256 images takes about 6 min here, an epoch of 6 34 min, all 1,200 steps to come 4.7 days")
    assert "fewer --epochs, a smaller --data.image_size, a smaller network, or a GPU make it shorter, and --max_steps 1 tries it out" in said
    assert [count for count, _ in objective.seen] == [2, 2, 8]
    assert {share for _, share in objective.seen} == {999 / 1000}  # where epsilon, if it rises from 0, is whole


def test_a_pass_of_minutes_is_timed_once(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rocl_transfer")
    objective, _ = forecast(monkeypatch, 0, 20)
    assert [count for count, _ in objective.seen] == [2]
    assert "a step of 256 images takes about 85 min here" in caplog.text


def test_what_is_over_soon_is_not_foretold_and_an_hour_has_no_remedy_for_two_minutes(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rocl_transfer")
    forecast(monkeypatch, 0.01, 0.0001)
    assert not caplog.records
    forecast(monkeypatch, 0.5, 0.0001)
    assert "all 1,000 steps to come 9 min" in caplog.text
    assert "--epochs" not in caplog.text


def test_accumulated_steps_are_timed_by_one_of_their_parts(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rocl_transfer")
    objective, _ = forecast(monkeypatch, 0.5, 1.0, accumulation=2)
    assert [count for count, _ in objective.seen] == [2, 2, 8]
    assert "a step of 256 images takes about 4 min" in caplog.text  # 2 * 0.5 + 256


def test_without_small_steps_the_first_ones_say_it_and_the_warm_up_is_left_out(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rocl_transfer")
    objective, found = forecast(monkeypatch, 1, 1, small=False)
    assert not objective.seen
    for seconds in (90, 10, 10, 500):
        found.after(512, seconds, 700)
    (said,) = (record.message for record in caplog.records)
    assert said.startswith("a step of 512 images takes about 10 s here, an epoch of 5 50 s, all 700 steps to come 1.9 hours")


@pytest.mark.parametrize("norm", [True, False])
def test_training_is_bit_for_bit_what_it_is_without_the_forecast(tmp_path, monkeypatch, norm):
    def run(folder):
        torch.manual_seed(0)
        encoder = create_backbone("resnet8_cifar" if norm else "test_vit", 32)
        objective = RoCL(encoder, projector(encoder.num_features), Augmentation(), RoCL.Options(attack=AttackOptions(steps=1)))
        images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        batches = Batches(Resident(images), None, Sampler(64, 32, 0, 16))
        learning = OptimizerOptions(name="lars", lr=0.1, weight_decay=1e-6, warmup_epochs=0)
        checkpoints = Checkpoints(folder / "checkpoints", 1, {})
        train(Accelerator(cpu=True), objective, learning.create(objective), learning.over(1), batches, checkpoints)
        return objective.state_dict()

    monkeypatch.setattr(estimate_module, "_SLOW", float("inf"))  # however busy the machine is
    calls = []
    timed = Forecast._timed
    monkeypatch.setattr(Forecast, "_timed", lambda self, *words: calls.append(words) or timed(self, *words))
    with_it = run(tmp_path / "a")
    assert len(calls) == 3
    monkeypatch.setattr(Forecast, "_by_small_steps", lambda *_: None)
    without = run(tmp_path / "b")
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())
