"""Runs that die: each is planted, seen, told in a sentence, and undone or ended."""

import errno
import json
import re
import shutil

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from rocl_transfer import UserError
from rocl_transfer.data import Batches, Resident, Sampler
from rocl_transfer.objectives import Objective
from rocl_transfer.training import Checkpoints, Guard, OptimizerOptions, Recovery, train
from rocl_transfer.training.chance import images_needed, worth
from tests.conftest import settings


class Toy(Objective):
    exported = None  # nothing leaves

    """Six steps an epoch; ``nan_at`` are steps whose loss or gradient is planted."""

    def __init__(self, nan_at=(), gradient=False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 1)
        self.nan_at, self.gradient, self.number = set(nan_at), gradient, 0
        self.rates = []

    def begin_step(self, step, total):
        self.number = step

    def forward(self, batch):
        output = self.net(batch.inputs).squeeze(1)
        loss = (output - batch.labels).square().mean()
        if self.number in self.nan_at:
            # a finite loss with an undefined gradient: sqrt at 0
            loss = loss + (output * 0).abs().sqrt().sum() if self.gradient else loss * float("nan")
        return {"loss": loss}


def look(clean, robust=None, majority=0.4, recall=None):
    seen = {"validation_accuracy": clean, "validation_recall": clean if recall is None else recall, "validation_majority": majority}
    return seen if robust is None else {**seen, "validation_robust_accuracy": robust, "validation_robust_recall": robust}


def run(folder, looks, objective=None, robust=True, **options):
    """Train over as many epochs as ``looks``; a rollback sees the next of ``after``."""
    objective = objective or Toy()
    inputs = torch.rand(24, 4, generator=torch.Generator().manual_seed(1))
    batches = Batches(Resident(inputs), inputs.sum(1), Sampler(24, 4, seed=3))
    seen = iter([*looks, *options.pop("after", [])])
    epochs = options.pop("epochs", len(looks))
    judged = {"classes": 5, "images": 400, **options.pop("judged", {})}
    guard = Guard(robust=robust, grace=options.pop("grace", 0), **judged)
    recovery = Recovery(rollbacks=options.pop("rollbacks", 1))
    learning = OptimizerOptions(name="momentum", lr=0.1, weight_decay=0.0, warmup_epochs=0)
    told = settings(monitor=lambda: next(seen), guard=guard, recovery=recovery, **options)
    checkpoints = Checkpoints(folder, 2, {})
    trained = train(Accelerator(cpu=True), objective, learning.create(objective), learning.over(epochs), batches, checkpoints, **told)
    return objective, trained


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


GOOD = [look(0.5, 0.2), look(0.6, 0.4), look(0.7, 0.3)]


def test_the_best_epoch_is_kept_beside_the_last(tmp_path):
    _, trained = run(tmp_path, [*GOOD, look(0.7, 0.3), look(0.7, 0.3)])
    assert trained.best["epoch"] == 2
    assert trained.last["epoch"] == 5
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-12", "step-24", "step-30"}
    assert not trained.rollbacks


def test_robust_overfitting_is_told_where_it_is_more_than_chance(tmp_path):
    told = run(tmp_path / "a", [look(0.7, 0.4), look(0.8, 0.3)])[1].overfitting
    assert told.startswith("robust overfitting: 40.0 % of the validation images were robust at epoch 1, 30.0 % at the last one (2)")
    assert run(tmp_path / "b", [look(0.7, 0.4), look(0.8, 0.36)])[1].overfitting is None


def test_without_robustness_the_best_is_by_clean_accuracy(tmp_path):
    assert run(tmp_path, [look(0.5), look(0.7), look(0.6)], robust=False)[1].best["epoch"] == 2


DEATHS = {
    "constant predictions": (look(0.2, 0.2, 1.0, 0.2), "given the same class .constant predictions.: lower --optimizer.lr"),
    "chance": (look(0.6, 0.1, 0.9, 0.21), r"accuracy is at chance .21.0 % averaged over 5 classes, guessing gives 20.0 %.: lower"),
    "catastrophic overfitting": (look(0.9, 0.02), r"robust accuracy fell from 40.0 to 2.0 % while clean accuracy is 90.0 % .catastrophic"),
}  # fmt: skip


@pytest.mark.parametrize("death", DEATHS)
def test_a_dead_run_goes_back_to_its_best_epoch_with_a_lower_rate(tmp_path, death):
    dead, sentence = DEATHS[death]
    _, trained = run(tmp_path, [*GOOD, dead, dead], after=GOOD)
    (rollback,) = trained.rollbacks
    assert (rollback["at"], rollback["to"]) == (30, 12)
    assert re.search(sentence, rollback["why"])
    assert trained.best["epoch"] == 2
    logged = lines(tmp_path)
    assert {"step": 12, "epoch": 2, "rolled_back_from": 30, "lr_factor": 0.3} in logged
    epochs = [line for line in logged if "epoch_loss" in line]
    assert [line["step"] for line in epochs] == [6, 12, 18, 24, 30]  # neither gap nor double
    again = run(tmp_path, [*GOOD, dead, dead])[1]  # finished: nothing is trained again, and nothing forgotten
    assert again == trained


@pytest.mark.parametrize("death", DEATHS)
def test_a_run_that_stays_dead_ends_in_a_sentence(tmp_path, death):
    dead, sentence = DEATHS[death]
    with pytest.raises(UserError, match=sentence) as told:
        run(tmp_path, [*GOOD, dead, dead], rollbacks=0)
    assert "step-12 --max_steps 12 exports it" in str(told.value)
    with pytest.raises(UserError, match=sentence):  # asked again it says the same, at once
        run(tmp_path, [*GOOD, dead, dead], rollbacks=0)


def test_what_the_sentence_says_exports_the_best(tmp_path):
    dead = DEATHS["constant predictions"][0]
    with pytest.raises(UserError, match="exports it"):
        run(tmp_path, [*GOOD, dead, dead], rollbacks=0)
    _, trained = run(tmp_path, [*GOOD, dead, dead], rollbacks=0, resume=str(tmp_path / "checkpoints" / "step-12"), max_steps=12)
    assert trained.best["step"] == trained.last["step"] == 12


def test_a_run_that_never_lived_starts_again_then_ends(tmp_path):
    dead = look(0.2, 0.2, 1.0)
    with pytest.raises(UserError, match=r"went back 1 times.*No checkpoint was any good. Nothing is exported"):
        run(tmp_path, [dead, dead, dead, dead], after=[dead, dead])
    assert {"step": 0, "epoch": 0, "rolled_back_from": 18, "lr_factor": 0.3} in lines(tmp_path)


def test_two_bad_epochs_or_a_slow_start_are_no_death(tmp_path):
    dead = look(0.2, 0.0, 1.0)
    assert not run(tmp_path / "two", [GOOD[0], dead, dead, *GOOD[1:]])[1].rollbacks
    assert not run(tmp_path / "slow", [dead, dead, *GOOD], grace=3)[1].rollbacks


@pytest.mark.parametrize(("last", "dies"), [(0.09, True), (0.11, False)])
def test_robust_accuracy_below_guessing_is_a_death_although_it_is_more_than_a_quarter_of_the_best(tmp_path, last, dies):
    looks, judged = [look(0.5, 0.22), look(0.6, 0.15), look(0.6, last)], {"classes": 10, "images": 1000}
    if dies:
        with pytest.raises(UserError, match="fell from 22.0 to 9.0 %"):
            run(tmp_path, looks, judged=judged, rollbacks=0)
    else:
        assert "robust overfitting" in run(tmp_path, looks, judged=judged)[1].overfitting


def test_robust_accuracy_below_guessing_is_no_death_where_it_was_never_twice_as_much(tmp_path):
    looks = [look(0.5, 0.18), look(0.6, 0.12), look(0.6, 0.06)]
    assert not run(tmp_path, looks, judged={"classes": 10, "images": 1000})[1].rollbacks


def test_a_collapse_during_the_grace_is_seen_after_it_unless_epsilon_was_not_whole(tmp_path):
    looks = [look(0.5, 0.4), *[look(0.6, 0.02)] * 4]
    with pytest.raises(UserError, match="fell from 40.0 to 2.0 %"):
        run(tmp_path / "whole", looks, grace=3, rollbacks=0)
    assert not run(tmp_path / "growing", looks, grace=3, judged={"whole": 3})[1].rollbacks


def test_robust_accuracy_that_never_rises_is_told(tmp_path):
    with pytest.raises(UserError, match="without success at step 18, epoch 3: not one of 400 .* robustly, with a clean accuracy of 80.0 %"):
        run(tmp_path, [look(0.8, 0.0)] * 3, rollbacks=0)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_step_that_is_not_finite_is_not_taken_and_counted(tmp_path, gradient):
    _, trained = run(tmp_path, GOOD, Toy(nan_at={3, 4, 9}, gradient=gradient))
    assert trained.skipped == 3
    assert not trained.rollbacks
    assert all(torch.isfinite(torch.tensor(line["epoch_loss"])) for line in lines(tmp_path) if "epoch_loss" in line)


@pytest.mark.parametrize("gradient", [False, True])
def test_more_than_two_in_a_row_go_back_and_then_end(tmp_path, gradient):
    what = "gradient_norm" if gradient else "loss and gradient_norm"
    with pytest.raises(UserError, match=rf"at step 9: {what} not finite .* for the 3 steps up to this one; all weights were still finite") as told:
        run(tmp_path, GOOD, Toy(nan_at={7, 8, 9}, gradient=gradient), after=GOOD)
    assert "went back 1 times" in str(told.value)
    assert "lower --optimizer.lr or lengthen --optimizer.warmup_epochs" in str(told.value)


def test_a_killed_run_with_a_rollback_resumes_as_if_nothing_had_been(tmp_path):
    dead = DEATHS["constant predictions"][0]
    whole = run(tmp_path / "whole", [*GOOD, dead, dead], after=[GOOD[2], GOOD[2], GOOD[2]])[0]

    class Killed(Toy):
        def forward(self, batch):
            if self.number == 15 and (tmp_path / "parts" / "metrics.jsonl").read_text().count("rolled_back"):
                raise KeyboardInterrupt
            return super().forward(batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", [*GOOD, dead, dead], Killed())
    objective, trained = run(tmp_path / "parts", [GOOD[2], GOOD[2], GOOD[2], GOOD[2], GOOD[2]])
    assert len(trained.rollbacks) == 1
    assert all(torch.equal(value, objective.state_dict()[name]) for name, value in whole.state_dict().items())
    a, b = (
        [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_bytes")} for line in lines(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert a == b


def test_the_gradient_is_clipped_and_its_norm_logged(tmp_path):
    free, clipped = (run(tmp_path / str(clip), [look(0.5)], robust=False, clip_grad=clip)[0].net.weight for clip in (None, 1e-6))
    torch.manual_seed(0)
    begun = nn.Linear(4, 1).weight
    assert (clipped - begun).abs().max() < 1e-5 < (free - begun).abs().max()
    assert lines(tmp_path / "None")[-1]["gradient_norm"] > 0


def test_a_run_that_was_cut_short_keeps_what_will_be_its_best(tmp_path):
    # cut in the middle of the fourth epoch, where it looks better than ever
    run(tmp_path, [look(0.5, 0.4), look(0.5, 0.2), look(0.5, 0.2), look(0.9, 0.9)], epochs=5, max_steps=21)
    _, trained = run(tmp_path, [look(0.5, 0.2), look(0.5, 0.2)], epochs=5)
    assert trained.best["step"] == 6
    assert (tmp_path / "checkpoints" / "step-6").is_dir()


def test_a_run_is_resumed_in_another_folder_without_what_is_not_there(tmp_path):
    run(tmp_path / "a", [look(0.5, 0.4), look(0.5, 0.2), look(0.5, 0.3)])
    _, trained = run(tmp_path / "b", [look(0.5, 0.1), look(0.5, 0.2)], epochs=5, resume=str(tmp_path / "a" / "checkpoints" / "step-18"))
    assert (tmp_path / "b" / "checkpoints" / f"step-{trained.best['step']}").is_dir()


def test_cutting_a_run_short_judges_nothing(tmp_path):
    dead = look(0.2, 0.2, 1.0)
    assert not run(tmp_path, [*GOOD, dead, *GOOD], max_steps=24)[1].rollbacks
    assert not run(tmp_path, GOOD, epochs=7)[1].rollbacks


def test_one_class_among_few_validation_images_is_no_death(tmp_path):
    assert run(tmp_path, [look(1.0, 0.9, majority=1.0)] * 4)[1].best["validation_accuracy"] == 1.0


FEW = {
    "4 of 2 classes, one answer": ({"classes": 2, "images": 4}, look(0.5, 0.5, 1.0)),
    "4 of 2 classes, at chance": ({"classes": 2, "images": 4}, look(0.5, 0.25, 0.75)),
    "4 of 2 classes, none right": ({"classes": 2, "images": 4}, look(0.0, 0.0, 0.5)),
    "20 of 2 classes, at chance": ({"classes": 2, "images": 20}, look(0.5, 0.5, 0.75)),
    "100 of 100 classes, at chance": ({"classes": 100, "images": 100}, look(0.01, 0.0, 0.1)),
    "403 of 2 classes, but 3 of the second": ({"classes": 2, "images": 403, "worth": 11.9}, look(0.6, 0.1, 0.6, recall=0.47)),
}  # fmt: skip
PROVEN = {
    "8 of 2 classes, one answer": ({"classes": 2, "images": 8}, look(0.5, 0.5, 1.0), "every one of 8 validation images"),
    "50 of 100 classes, 40 of them there, one answer": ({"classes": 100, "images": 50}, look(0.03, 0.0, 1.0), "every one of 50"),
    "60 of 2 classes, at chance": ({"classes": 2, "images": 60}, look(0.5, 0.5, 0.7), "accuracy is at chance .50.0 %"),
    "400 of 10 classes, at chance": ({"classes": 10, "images": 400}, look(0.1, 0.0, 0.7), "accuracy is at chance .10.0 %"),
    "20 of 2 classes, below it": ({"classes": 2, "images": 20}, look(0.2, 0.0, 0.7), "accuracy is at chance .20.0 %"),
}  # fmt: skip


@pytest.mark.parametrize("case", FEW)
def test_few_images_prove_nothing(tmp_path, case):
    judged, seen = FEW[case]
    _, trained = run(tmp_path, [seen] * 4, judged=judged)
    assert not trained.rollbacks
    assert trained.best is not None  # what is not shown to be dead may be the best


@pytest.mark.parametrize("case", PROVEN)
def test_enough_images_prove_a_death(tmp_path, case):
    judged, seen, sentence = PROVEN[case]
    with pytest.raises(UserError, match=sentence):
        run(tmp_path, [seen] * 4, judged=judged, rollbacks=0)


def test_a_guard_says_what_it_cannot_see():
    assert Guard(classes=2, images=400, robust=False).blindness is None
    few = Guard(classes=2, images=4, robust=False).blindness
    assert few.startswith("4 validation images are too few to tell accuracy at chance from learning (about 41 would do for 2 classes")
    assert ": a loss that is not finite ends this run" in few
    some = Guard(classes=100, images=100, robust=False).blindness
    assert "100 validation images are too few" in some
    assert "one answer for all of them or a loss" in some
    rare = Guard(classes=2, images=403, robust=False, worth=worth([400, 3])).blindness
    assert "403 validation images, few of some classes, are too few" in rare


def test_what_unequal_classes_are_worth():
    assert worth([50, 50]) == 100
    assert worth([397, 3]) == pytest.approx(11.91)  # the variance of (p1 + p2) / 2
    assert worth([7]) == 7


def test_images_needed_is_the_smallest_number_that_a_verdict_needs():
    # the first n at which chance's one-sided 95 % bound, by the score test, is below twice chance (K = 10) or 62.5 % (K = 2)
    for classes, learned in ((2, 0.625), (10, 0.2)):
        n, chance = images_needed(classes), 1 / classes
        # A score test of share p against learned: z = (learned - p) / sqrt(learned (1 - learned) / n)
        z = [(learned - chance) / (learned * (1 - learned) / size) ** 0.5 for size in (n - 1, n)]
        assert z[0] <= 1.645 < z[1] + 1e-2


def test_a_guard_gives_the_remedy_it_was_told(tmp_path):
    with pytest.raises(UserError, match="guessing gives 20.0 %.: take another backbone.* Nothing is exported"):
        run(tmp_path, [look(0.2)] * 4, robust=False, rollbacks=0, judged={"remedy": "take another backbone"})


def test_what_had_the_majority_right_by_chance_cannot_be_lost(tmp_path):
    constant, rising = look(0.6, 0.6, 1.0, recall=0.2), [look(0.8, x) for x in (0.05, 0.08, 0.1, 0.12)]
    assert not run(tmp_path, [constant, *rising])[1].rollbacks


def test_a_step_that_is_not_taken_leaves_the_statistics_as_they_were(tmp_path):
    class Normed(Toy):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
            self.ended = []

        def forward(self, batch):
            inputs = batch.inputs * (float("inf") if self.number == 8 else 1)
            return {"loss": (self.net(inputs).squeeze(1) - batch.labels).square().mean()}

        def end_step(self):
            self.ended.append(self.number)

    objective, trained = run(tmp_path, GOOD, Normed())
    assert trained.skipped == 1
    assert all(torch.isfinite(value).all() for value in objective.state_dict().values())
    assert 8 not in objective.ended


def test_lamb_starts_again_from_nothing_when_it_goes_back_to_the_start():
    from rocl_transfer.training.optimizer_state import join_state, split_state

    net = nn.Linear(4, 1)
    optimizer = OptimizerOptions(name="lamb", lr=0.1, weight_decay=0.0).create(net)
    tensors, scalars = split_state(optimizer)
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert "step" in optimizer.param_groups[0]
    join_state(optimizer, {**tensors, **scalars})
    assert "step" not in optimizer.param_groups[0]
    optimizer.step()  # and it still works


SIX = [look(0.5, 0.4), look(0.5, 0.2), look(0.5, 0.3), look(0.5, 0.1), look(0.5, 0.35), look(0.5, 0.2)]


def without_time(folder):
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_bytes")} for line in lines(folder)]


@pytest.mark.parametrize("guarded", [True, False], ids=["its best epoch lies before", "it is the best itself"])
def test_a_run_resumed_in_another_folder_is_the_uninterrupted_one(tmp_path, guarded):
    looks = SIX if guarded else [*SIX[:2], look(0.5, 0.5), *SIX[3:]]
    whole, expected = run(tmp_path / "whole", looks)
    run(tmp_path / "a", looks[:3], epochs=6, max_steps=18)
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    resumed, trained = run(tmp_path / "b", looks[3:], epochs=6, resume=str(tmp_path / "a" / "checkpoints" / "step-18"))
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before
    assert (trained.best, trained.last, trained.lost) == (expected.best, expected.last, None)
    assert trained.best["step"] == (6 if guarded else 18)
    assert without_time(tmp_path / "b") == without_time(tmp_path / "whole")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    kept = [{path.name for path in (tmp_path / name / "checkpoints").iterdir()} for name in ("whole", "b")]
    assert kept[0] == kept[1]
    of_the_best = [(tmp_path / name / "checkpoints" / f"step-{trained.best['step']}" / "objective.safetensors") for name in ("whole", "b")]
    assert of_the_best[0].read_bytes() == of_the_best[1].read_bytes()


def test_a_run_resumed_in_another_folder_goes_back_to_what_was_good_in_the_old_one(tmp_path):
    dead = DEATHS["constant predictions"][0]
    whole, expected = run(tmp_path / "whole", [*GOOD, dead, dead], after=GOOD)
    run(tmp_path / "a", GOOD, epochs=5, max_steps=18)
    resumed, trained = run(tmp_path / "b", [dead, dead], after=GOOD, epochs=5, resume=str(tmp_path / "a"))
    assert [(back["at"], back["to"]) for back in trained.rollbacks] == [(back["at"], back["to"]) for back in expected.rollbacks] == [(30, 12)]
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_best_epoch_that_is_lost_is_said_and_no_other_called_the_best(tmp_path, caplog):
    run(tmp_path / "a", [look(0.5, 0.4), look(0.5, 0.2), look(0.5, 0.3)])
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "step-6")
    resume = str(tmp_path / "a" / "checkpoints" / "step-18")
    _, trained = run(tmp_path / "b", [look(0.5, 0.1), look(0.5, 0.2)], epochs=5, resume=resume)
    assert "the best epoch so far (1, step 6) has no checkpoint any more: it cannot be exported or gone back to" in caplog.text
    assert (trained.best["step"], trained.lost["step"]) == (18, 6)
    _, better = run(tmp_path / "c", [look(0.5, 0.1), look(0.5, 0.5)], epochs=5, resume=resume)
    assert (better.best["step"], better.lost) == (30, None)  # what comes after may still be better than it was


def test_two_runs_are_not_mixed_in_one_folder(tmp_path):
    run(tmp_path / "a", GOOD, max_steps=12)
    run(tmp_path / "b", GOOD, max_steps=6)
    before = {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="b already holds a run .step-6., with which .*a/checkpoints/step-12 would be mixed: .* --resume auto"):
        run(tmp_path / "b", GOOD, resume=str(tmp_path / "a"))
    assert {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()} == before


def test_a_copy_that_is_killed_leaves_an_earlier_state_of_the_run(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", SIX)
    run(tmp_path / "a", SIX[:3], epochs=6, max_steps=18)
    copytree = shutil.copytree

    def killed(source, target):
        if source.name == "step-18":
            raise KeyboardInterrupt
        return copytree(source, target)

    monkeypatch.setattr("rocl_transfer.training.adoption.shutil.copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", SIX[3:], epochs=6, resume=str(tmp_path / "a"))
    monkeypatch.undo()
    resumed, trained = run(tmp_path / "b", SIX[2:], epochs=6)
    assert trained.best["step"] == 6
    assert without_time(tmp_path / "b") == without_time(tmp_path / "whole")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_no_room_for_the_copy_is_a_sentence(tmp_path, monkeypatch):
    run(tmp_path / "a", GOOD, max_steps=12)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rocl_transfer.training.adoption.shutil.copytree", full)
    with pytest.raises(UserError, match="step-12 cannot be copied to .*b .No space left on device.: make room there, or resume it where it is"):
        run(tmp_path / "b", GOOD, resume=str(tmp_path / "a"))


HOPELESS = [look(0.5, 0.0), look(0.6, 0.0)]


def test_the_advice_after_a_training_without_success_exports_its_last_step(tmp_path, caplog):
    caplog.set_level("INFO", "rocl_transfer")
    for _ in range(2):  # asked again it says the same
        with pytest.raises(UserError, match="ended without success") as told:
            run(tmp_path, HOPELESS)
    checkpoint, steps = re.search(r"--resume (\S+) --max_steps (\d+) exports it", str(told.value)).groups()
    assert steps == "12"
    with pytest.raises(UserError, match="ended without success"):  # the same last step, but nobody asked for a checkpoint of it
        run(tmp_path, HOPELESS, max_steps=12)
    _, trained = run(tmp_path, HOPELESS, resume=checkpoint, max_steps=int(steps))
    assert trained.steps == trained.last["step"] == 12
    assert "nothing is left to train: 12 of 12 steps are taken already; the guard is not asked again" in caplog.text


def test_a_checkpoint_that_is_trained_further_is_judged(tmp_path):
    with pytest.raises(UserError, match="ended without success"):
        run(tmp_path, HOPELESS)
    with pytest.raises(UserError, match="ended without success"):
        run(tmp_path, HOPELESS[1:], epochs=2, resume=str(tmp_path / "checkpoints" / "step-6"), max_steps=12)


def test_fewer_steps_than_are_taken_train_nothing_and_it_is_said(tmp_path, caplog):
    caplog.set_level("INFO", "rocl_transfer")
    run(tmp_path, GOOD, max_steps=6)
    run(tmp_path, GOOD, max_steps=6)
    assert "nothing is left to train: 6 of 18 steps are taken already" in caplog.text
    assert "and --max_steps is" not in caplog.text
    run(tmp_path, GOOD, max_steps=1)
    assert "nothing is left to train: 6 of 18 steps are taken already, and --max_steps is 1" in caplog.text
