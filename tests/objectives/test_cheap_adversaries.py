"""Every training that has an adversary takes a cheap one: N-FGSM, or PGD whose steps grow over the training."""

import json

import pytest
import torch

from rocl_transfer.attacks import AttackOptions, Linf
from rocl_transfer.attacks.pgd import GradientAscent
from rocl_transfer.data import Augmentation, Batch
from rocl_transfer.models import add_head, create_backbone, projector
from rocl_transfer.objectives import ACL, AdversarialTraining, Distillation, DynACL, RobustProbe, RoCL
from rocl_transfer.training.run import defaults

EPSILON = 8 / 255


def network():
    torch.manual_seed(0)
    return create_backbone("resnet8_cifar", 16)


TRAININGS = {
    "rocl": lambda attack: RoCL(network(), projector(network().num_features), Augmentation(), RoCL.Options(attack=attack)),
    "acl": lambda attack: ACL(network(), ACL.make_projector(64), Augmentation(), ACL.Options(attack=attack)),
    "dynacl": lambda attack: DynACL(network(), DynACL.make_projector(64), Augmentation(), DynACL.Options(attack=attack, ema_decay=0.9)),
    "r-LE": lambda attack: RobustProbe(add_head(network(), "abc"), attack),
    "at": lambda attack: AdversarialTraining(add_head(network(), "abc"), AdversarialTraining.Options(method="at", attack=attack)),
    "trades": lambda attack: AdversarialTraining(add_head(network(), "abc"), AdversarialTraining.Options(method="trades", attack=attack)),
    "robustify": lambda attack: Distillation(network(), network(), Augmentation(), Distillation.Options(attack=attack)),
}
BATCH = Batch(torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3, (1,))


@pytest.fixture
def climbed(monkeypatch):
    """The ascents that were made, each with its images before and after."""
    made, climb = [], GradientAscent.__call__

    def seen(self, images, loss, generators):
        found = climb(self, images, loss, generators)
        made.append((self, images, found))
        return found

    monkeypatch.setattr(GradientAscent, "__call__", seen)
    return made


@pytest.mark.parametrize("name", TRAININGS)
def test_n_fgsm_starts_from_twice_the_ball_and_never_projects(climbed, name):
    objective = TRAININGS[name](AttackOptions(kind="nfgsm", epsilon=EPSILON, steps=7))
    objective.begin_step(3, 10)
    assert torch.isfinite(objective(BATCH)["loss"])
    ((ascent, images, found),) = climbed
    assert ascent == GradientAscent(Linf(EPSILON), EPSILON, 1, start=Linf(2 * EPSILON), projects=False)
    assert 2 * EPSILON < (found - images).abs().max() < 3.001 * EPSILON


@pytest.mark.parametrize("name", TRAININGS)
def test_an_attacks_steps_grow_over_the_training(climbed, name):
    objective = TRAININGS[name](AttackOptions(epsilon=EPSILON, steps=3, first_steps=1))
    for step in range(6):
        objective.begin_step(step, 6)
        objective(BATCH)
    assert [ascent.steps for ascent, _, _ in climbed] == [1, 1, 2, 2, 3, 3]


def test_checkpoints_from_before_were_trained_against_pgd_of_one_length():
    known = defaults(AdversarialTraining.Options())
    assert known["attack.kind"] == "pgd"
    assert known["attack.first_steps"] is None


def test_a_classifier_fine_tuned_against_one_step_says_so_and_resumes(command, tmp_path):
    words = ["--model.name", "resnet8_cifar", "--model.pretrained", "false", "--data.name", "digits", "--data.image_size", 16, "--batch_size", 64]
    words += ["--attack.kind", "nfgsm", "--attack.epsilon", 0.05, "--evaluation.steps", 1, "--evaluation.epsilons", "[0.05]", "--epochs", 1]
    words += ["--checkpoint_every", 1, "--optimizer.warmup_epochs", 0, "--output_dir", "run"]
    command("finetune.py", *words, "--max_steps", 1, check=0)
    done = command("finetune.py", *words, "--max_steps", 2, check=0)
    assert "resumed from" in done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["model"]["title"] == "fine-tuned by TRADES against linf 0.05 (N-FGSM)"
    assert (results["config"]["attack"]["kind"], results["config"]["attack"]["steps"]) == ("nfgsm", 1)
    assert "N-FGSM" in (tmp_path / "run" / "README.md").read_text()
