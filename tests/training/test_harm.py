"""What happens to runs, done to them: signals, damaged files, full disks, numbers that are not finite."""

import errno
import json
import os
import re
import signal
import time

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from rocl_transfer import UserError
from rocl_transfer.data import Batches, Resident, Sampler
from rocl_transfer.errors import Interrupted
from rocl_transfer.objectives import Objective
from rocl_transfer.training import Cadence, Checkpoints, OptimizerOptions, Recovery, train
from rocl_transfer.training.interruption import listen
from tests.conftest import settings


class Toy(Objective):
    exported = None  # nothing leaves

    """Five steps an epoch; ``harm`` maps a step to what happens in it, once."""

    def __init__(self, harm=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        self.harm, self.number = dict(harm or {}), 0

    def begin_step(self, step, total):
        self.number = step

    def forward(self, batch):
        output = self.net(batch.inputs).squeeze(1)
        if harm := self.harm.pop(self.number, None):
            output = harm(output)
        return {"loss": (output - batch.labels).square().mean()}


def kill(number):
    return lambda output: [output, os.kill(os.getpid(), number)][0]


def run(folder, objective=None, monitor=lambda: {"seen": 1.0}, **options):
    objective = objective or Toy()
    inputs = torch.rand(20, 4, generator=torch.Generator().manual_seed(1))
    size, accumulation, accelerator = options.pop("group_size", None), options.get("accumulation", 1), Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    sampler = Sampler(20, 4 // world, 3, size or 4 // world // accumulation, rank, world)
    batches = Batches(Resident(inputs), inputs.sum(1), sampler, "scan {}.png".format)
    learning = OptimizerOptions(name="adamw", lr=options.pop("rate", 0.1), weight_decay=1e-4, warmup_epochs=0)
    checkpoints = Checkpoints(folder, options.pop("keep", 2), {}, options.pop("overwrite", False))
    told = settings(monitor=monitor, **{"cadence": Cadence(2, 4, 1), **options})
    trained = train(accelerator, objective, learning.create(objective), learning.over(4), batches, checkpoints, **told)
    return objective, trained


def lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_bytes")} for line in read]


def assert_same(a, b, one, two):
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    assert lines(one) == lines(two)


@pytest.fixture
def listening():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("step", [0, 5, 9, 19])
def test_a_signal_in_a_step_saves_what_was_reached(tmp_path, number, step):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Interrupted) as caught:
        run(tmp_path / "parts", Toy({step: kill(number)}))
    assert caught.value.status == 128 + number
    assert f"interrupted by {number.name} at step {step} of 20; the same command resumes from" in str(caught.value)
    assert (tmp_path / "parts" / "checkpoints" / f"step-{step}" / "manifest.json").is_file()
    parts, _ = run(tmp_path / "parts")
    assert_same(whole, parts, tmp_path / "whole", tmp_path / "parts")


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("where", ["optimizer", "monitor", "metrics", "weights", "saving"])
def test_a_signal_between_steps_loses_nothing_and_doubles_nothing(tmp_path, monkeypatch, where):
    whole, _ = run(tmp_path / "whole")
    sent = []

    def once(function, at):
        def wrapped(*arguments, **options):
            sent.append(1)
            if len(sent) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        monitor = {"seen": 1.0}.copy
        if where == "optimizer":
            patch.setattr(torch.optim.AdamW, "step", once(torch.optim.AdamW.step, 7))
        elif where == "monitor":
            monitor = once(monitor, 2)
        elif where == "metrics":
            from rocl_transfer.training.metrics import MetricsFile

            patch.setattr(MetricsFile, "write", once(MetricsFile.write, 6))
        elif where == "weights":  # looked through before they are saved, when the lines of that step are written
            from rocl_transfer.training.loop import _Loop

            patch.setattr(_Loop, "broken", once(_Loop.broken, 1))
        else:
            patch.setattr("rocl_transfer.training.checkpoints.save_file", once(__import__("safetensors.torch").torch.save_file, 5))
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", monitor=monitor)
    parts, _ = run(tmp_path / "parts")
    assert_same(whole, parts, tmp_path / "whole", tmp_path / "parts")
    assert not list((tmp_path / "parts" / "checkpoints").glob(".*"))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


DAMAGE = {
    "truncated": ("objective.safetensors", truncate, "bytes, .* were written"),
    "a flipped bit of the weights": ("objective.safetensors", flip, "objective.safetensors is not what was written"),
    "a flipped bit of the optimiser": ("optimizer.safetensors", flip, "optimizer.safetensors is not what was written"),
    "a changed state": ("state.json", lambda file: file.write_text(file.read_text().replace("12", "13")), "state.json"),
    "a lost file": ("optimizer.safetensors", lambda file: file.unlink(), "optimizer.safetensors is missing"),
    "a lost manifest": ("manifest.json", lambda file: file.unlink(), "manifest.json is missing"),
    "a manifest of nonsense": ("manifest.json", lambda file: file.write_text('{"state.json": 3}'), "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path, kind, caplog):
    name, harm, said = DAMAGE[kind]
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "parts", max_steps=12)
    harm(tmp_path / "parts" / "checkpoints" / "step-12" / name)
    with pytest.raises(UserError, match=r"step-12 is damaged .*--resume .*step-8"):
        run(tmp_path / "other", resume=str(tmp_path / "parts" / "checkpoints" / "step-12"))
    parts, _ = run(tmp_path / "parts")
    assert "step-12 is damaged" in caplog.text
    assert "resuming from" in caplog.text
    assert pytest.importorskip("re").search(said, caplog.text)
    assert_same(whole, parts, tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("left", ["model.safetensors", "results.json"])
def test_a_training_does_not_begin_where_a_run_without_checkpoints_or_an_evaluation_is(tmp_path, left):
    (tmp_path / left).write_text("kept")
    with pytest.raises(UserError, match=f"holds {left} and no checkpoint .* --overwrite true to begin again"):
        run(tmp_path)
    assert (tmp_path / left).read_text() == "kept"
    run(tmp_path, overwrite=True)


def test_where_no_checkpoint_is_whole_nothing_is_begun_in_silence(tmp_path):
    run(tmp_path, max_steps=12)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        flip(checkpoint / "objective.safetensors")
    with pytest.raises(UserError, match="no checkpoint in .* is whole .* --overwrite true to begin again"):
        run(tmp_path)


def test_a_checkpoint_from_before_there_were_manifests_is_resumed(tmp_path):
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "parts", max_steps=12)
    for checkpoint in (tmp_path / "parts" / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
        state = json.loads((checkpoint / "state.json").read_text())
        del state["due"], state["processes"]
        (checkpoint / "state.json").write_text(json.dumps(state | {"format": 1}))
    parts, _ = run(tmp_path / "parts")
    assert_same(whole, parts, tmp_path / "whole", tmp_path / "parts")


def test_a_full_disk_costs_one_checkpoint_and_no_more(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Filling(Toy):
        def end_step(self):
            if self.number == 11:
                patch.setattr("rocl_transfer.training.checkpoints.save_file", full)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"step-12 cannot be written \(No space left .*resumes from .*step-8"):
        run(tmp_path / "parts", Filling())
    assert sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()) == ["step-4", "step-8"]
    parts, _ = run(tmp_path / "parts")
    assert_same(whole, parts, tmp_path / "whole", tmp_path / "parts")


def test_overwrite_removes_what_runs_write_and_nothing_else(tmp_path):
    run(tmp_path, max_steps=4, rate=0.05)
    (tmp_path / "notes.txt").write_text("mine")
    whole, _ = run(tmp_path / "whole")
    checkpoints = Checkpoints(tmp_path, 2, {"lr": 7}, overwrite=True)
    assert checkpoints.find("auto") is None
    checkpoints.begin()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "whole"]
    again, _ = run(tmp_path, overwrite=True)
    assert_same(whole, again, tmp_path / "whole", tmp_path)


HOLDS = """
import signal, sys
from rocl_transfer.training import start
start(sys.argv[1], 0)
print("held", flush=True)
signal.pause()
"""


def test_two_runs_in_one_folder_are_refused_until_the_first_is_gone(fork, tmp_path):
    (tmp_path / "holds.py").write_text(HOLDS)

    def begin():
        process = fork(tmp_path, tmp_path / "holds.py", tmp_path / "run")
        while process.poll() is None and process.texts()[0] != "held\n":
            time.sleep(0.02)
        return process

    first = begin()
    refused = begin().communicate()
    assert refused.returncode == 1
    assert f"is being written by another process (process {first.pid} on" in refused.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    assert first.communicate().returncode == -signal.SIGKILL
    second = begin()
    assert second.poll() is None
    second.send_signal(signal.SIGKILL)


def test_what_a_run_is_made_from_is_never_written_over(tmp_path):
    (tmp_path / "run" / "last").mkdir(parents=True)
    for source, overwrite, refused in (("run", False, True), ("local-dir:run", True, True), ("run/last", False, False), ("run/last", True, True)):
        kind, _, name = source.rpartition(":")
        sources = [f"{kind}:{tmp_path / name}" if kind else str(tmp_path / name)]
        checkpoints = Checkpoints(tmp_path / "run", 2, {}, overwrite=overwrite, sources=sources)
        if refused:
            with pytest.raises(UserError, match="is what this run is made from, and would be written over"):
                checkpoints.find("auto")
        else:
            assert checkpoints.find("auto") is None


def test_an_option_set_back_to_its_default_is_another_option(tmp_path):
    run(tmp_path, max_steps=4)
    defaults_for_missing = {"shared": False}
    assert Checkpoints(tmp_path, 2, {"shared": False}, defaults_for_missing=defaults_for_missing).find("auto")
    with pytest.raises(UserError, match="--shared was False in the run .* and is True now"):
        Checkpoints(tmp_path, 2, {"shared": True}, defaults_for_missing=defaults_for_missing).find("auto")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("listening")
def test_a_signal_that_python_swallows_is_answered_after_the_step(tmp_path):
    class Collected:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    class Swallowing(Toy):
        def forward(self, batch):
            if self.number == 7:
                Collected()
            return super().forward(batch)

    with pytest.raises(Interrupted, match="at step 8 of 20"):
        run(tmp_path, Swallowing())


@pytest.mark.usefixtures("listening")
def test_a_second_signal_while_the_first_is_answered_changes_nothing(tmp_path, monkeypatch):
    save = Checkpoints.save

    def saved(self, step, *arguments, **options):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(self, step, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "save", saved)
    with pytest.raises(Interrupted, match="interrupted by SIGINT at step 5 of 20; the same command resumes from .*step-5"):
        run(tmp_path, Toy({5: kill(signal.SIGINT)}))
    assert Checkpoints(tmp_path, 2, {}).latest().name == "step-5"


@pytest.mark.usefixtures("listening")
def test_a_way_back_to_where_a_signal_came_doubles_no_line(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, monitor=lambda: [{"seen": 1.0}, os.kill(os.getpid(), signal.SIGTERM)][0], max_steps=5)

    with pytest.raises(UserError):
        run(tmp_path, TooFast(0.0, lambda: 1.0))
    steps = [(line["step"], sorted(line)) for line in lines(tmp_path) if "rolled_back_from" not in line]
    assert len(steps) == len({(step, tuple(keys)) for step, keys in steps})


def nan_of(row):
    def harm(output):
        factor = torch.ones_like(output)
        factor[row] = float("nan")
        return output * factor

    return harm


class Poisoned(Toy):
    """A network that one image in it makes not finite, whenever its turn comes."""

    def __init__(self, pixel):
        super().__init__()
        self.pixel = pixel
        self.gate = nn.Identity()
        self.gate.register_forward_hook(lambda module, args, output: torch.where(output == self.pixel, float("inf"), output))

    def forward(self, batch):
        return {"loss": (self.net(self.gate(batch.inputs)).squeeze(1) - batch.labels).square().mean()}


def test_a_diagnosis_names_the_part_and_the_image(tmp_path):
    inputs = torch.rand(20, 4, generator=torch.Generator().manual_seed(1))
    run(tmp_path, Poisoned(inputs[13, 2]), max_steps=5)
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    (process,) = found["processes"]
    assert process["first_part"] in ("output of gate", "input of net.0")
    assert process["images"] == ["scan 13.png"]
    assert len(process["batch"]) == 4
    assert process["weights"] == []
    assert found["skipped"] == 0  # before this one
    assert "training stopped at step" in found["why"]


def test_a_few_steps_that_are_not_finite_are_left_out_and_counted(tmp_path):
    objective, trained = run(tmp_path, Toy({3: nan_of(1), 4: nan_of(2), 9: nan_of(0)}))
    assert trained.skipped == 3
    assert not trained.rollbacks
    assert all(torch.isfinite(value).all() for value in objective.state_dict().values())


class TooFast(Toy):
    """Numbers hold only below a learning rate."""

    def __init__(self, limit, optimizer_rate):
        super().__init__()
        self.limit, self.rate = limit, optimizer_rate

    def forward(self, batch):
        losses = super().forward(batch)
        return losses if self.number < 6 or self.rate() < self.limit else {"loss": losses["loss"] * float("nan")}


def test_more_of_them_go_back_to_the_last_good_checkpoint_and_learn_more_slowly(tmp_path, monkeypatch):
    from rocl_transfer.training.update import Update

    rates = [0.0]
    learn_at = Update.learn_at
    monkeypatch.setattr(Update, "learn_at", lambda self, rate: [rates.append(rate), learn_at(self, rate)][1])
    _, trained = run(tmp_path, TooFast(0.05, lambda: rates[-1]))
    (back,) = trained.rollbacks
    assert back["at"] == 9  # steps done, the three that were left out included
    assert back["to"] in (4, 8)
    assert trained.skipped >= 3
    assert max(rates[1 + back["at"] :]) < 0.05  # a rate for each step, after the one they began with
    assert sum("rolled_back_from" in line for line in lines(tmp_path)) == 1


def test_weights_that_are_not_finite_are_never_saved_and_never_the_end(tmp_path):
    class Bursting(Toy):
        def end_step(self):
            if self.number == 7 and self.harm.pop("burst", None):
                with torch.no_grad():
                    self.net[1].running_mean[0] = float("inf")

    _, trained = run(tmp_path, Bursting({"burst": True}))
    assert [back["to"] for back in trained.rollbacks] == [4]
    assert "net.1.running_mean is not finite" in trained.rollbacks[0]["why"]
    with pytest.raises(UserError, match="net.1.running_mean is not finite.*No checkpoint was any good|last good checkpoint"):
        run(tmp_path / "given up", Bursting({"burst": True}), recovery=Recovery(rollbacks=0))


@pytest.mark.parametrize(("deferred", "since"), [(False, 0), (True, 2)])
def test_a_diagnosis_says_whose_weights_it_looked_at(tmp_path, deferred, since):
    run(tmp_path, Toy({2: nan_of(1)}), deferred=deferred)  # every second step is logged, and so read
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert (found["step"], found["weights_of_step"]) == (2, 2 + since)
    assert (found["processes"][0]["gradients"] is None) == deferred


@pytest.mark.parametrize("harm", [{}, {3: nan_of(1), 4: nan_of(2), 9: nan_of(0)}, {0: nan_of(0)}], ids=["none", "some", "the first"])
def test_numbers_that_are_read_later_are_the_same(tmp_path, harm):
    at_once, one = run(tmp_path / "at once", Toy(harm), deferred=False)
    later, two = run(tmp_path / "later", Toy(harm), deferred=True)
    assert one.skipped == two.skipped == len(harm)
    for name, value in at_once.state_dict().items():
        assert torch.equal(value, later.state_dict()[name]), name
    assert lines(tmp_path / "at once") == lines(tmp_path / "later")
    assert (tmp_path / "later" / "diagnosis.json").exists() == bool(harm)


def test_more_of_them_go_back_where_they_are_read_later_as_well(tmp_path):
    class Dead(Toy):
        def forward(self, batch):
            losses = super().forward(batch)
            return {"loss": losses["loss"] * float("nan")} if self.number > 10 else losses

    with pytest.raises(UserError, match="for the 3 steps up to this one.*went back 2 times.*last good checkpoint"):
        run(tmp_path, Dead(), deferred=True)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("step", [6, 7, 10])
def test_a_signal_loses_nothing_that_was_not_read_yet(tmp_path, step):
    whole, _ = run(tmp_path / "whole", Toy({6: nan_of(0)}))
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", Toy({6: nan_of(0)} | {step: kill(signal.SIGTERM)} if step != 6 else {6: kill(signal.SIGTERM)}), deferred=True)
    parts, trained = run(tmp_path / "parts", Toy({6: nan_of(0)} if step == 6 else {}), deferred=True)
    assert trained.skipped == 1
    assert_same(whole, parts, tmp_path / "whole", tmp_path / "parts")


SEVERAL = """
import os, signal, sys
from pathlib import Path
from rocl_transfer.config.cli import leave
from rocl_transfer.errors import Interrupted
from rocl_transfer.training.interruption import listen
from tests.training.test_harm import Toy, kill, run

folder, step, rank = Path(sys.argv[1]), int(sys.argv[2]), os.environ["RANK"]
listen()
try:
    said = f"trained {run(folder, Toy({step: kill(signal.SIGTERM)} if rank == '1' else {}), deferred=True)[1].steps}"
except Interrupted as interruption:
    said = str(interruption)
(folder / f"said-{rank}").write_text(said)
leave(0)
"""


def test_several_processes_that_wait_for_devices_of_their_own_stop_at_one_step(together, tmp_path):
    """As on several GPUs: the signal reaches one of them in its third step, and every second step the numbers are read."""
    (tmp_path / "several.py").write_text(SEVERAL)

    def start(folder, step):
        folder.mkdir(exist_ok=True)
        done = together(tmp_path, tmp_path / "several.py", folder, step)
        assert done.returncode == 0, done.stderr[-2000:]
        return [(folder / f"said-{rank}").read_text() for rank in (0, 1)]

    assert start(tmp_path / "whole", 99) == ["trained 20", "trained 20"]
    said = start(tmp_path / "parts", 2)
    assert all(sentence.startswith("interrupted by SIGTERM at step 4 of 20; the same command resumes from") for sentence in said)
    assert said[0].endswith("step-4")
    assert start(tmp_path / "parts", 99) == ["trained 20", "trained 20"]
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_accumulation_is_the_mean_over_its_parts(tmp_path):
    class Plain(Toy):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 1)

    whole, _ = run(tmp_path / "whole", Plain(), group_size=2)
    parts, _ = run(tmp_path / "parts", Plain(), accumulation=2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for one, two in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


class Burnt(Toy):
    """After step 6 the weights are finite, and nothing that is computed with them is."""

    def forward(self, batch):
        losses = super().forward(batch)
        return losses if self.net[0].weight.abs().max() < 1e20 else {"loss": losses["loss"] * float("nan")}

    def end_step(self):
        if self.number == 6:
            with torch.no_grad():
                self.net[0].weight[0, 0] = 1e25


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(("keep", "ways"), [(1, []), (2, [6, 6]), (3, [5])])
def test_weights_that_no_step_could_be_taken_from_are_no_way_back_and_no_advice(tmp_path, keep, ways, deferred):
    with pytest.raises(UserError, match="not finite") as told:
        run(tmp_path, Burnt(), monitor=None, cadence=Cadence(2, 1, 1), keep=keep, deferred=deferred)
    text = str(told.value)
    assert [line["step"] for line in lines(tmp_path) if "rolled_back_from" in line] == ways  # of ways back that were not left again
    if not ways:  # the only one that is left has these weights
        assert "No checkpoint was any good. Nothing is exported" in text
        return
    advised = re.search(r"--resume (\S+) --max_steps (\d+) exports it", text)
    assert advised[2] in ("5", "6")
    objective, trained = run(tmp_path, Burnt(), monitor=None, keep=keep, resume=advised[1], max_steps=int(advised[2]))
    assert trained.steps == int(advised[2])
    assert all(value.abs().max() < 1e20 for value in objective.state_dict().values())


def test_a_checkpoint_from_before_says_how_far_its_weights_had_come(tmp_path):
    from rocl_transfer.training.progress import Progress

    assert Progress.load({}).moved == 0
    assert Progress.load({"step": 9, "skipped_in_a_row": 2}).moved == 7
    assert Progress.load({"step": 9, "skipped_in_a_row": 2, "moved": 5}).moved == 5
