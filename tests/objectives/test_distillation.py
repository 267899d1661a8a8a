"""Losses against golden values in float64, attacks against closed forms, and what must not move."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.data import Augmentation, Batch
from rocl_transfer.models import PixelModel, add_head, create_backbone
from rocl_transfer.objectives import Distillation
from rocl_transfer.objectives.distillation import Embedder, cosine, squared

AS_IT_IS = Augmentation(jitter_probability=0, grey_probability=0, flip_probability=0, crop_area=(1, 1))
METHODS = ("fare", "deacl", "lore", "simclip")


def rows(shift, count=8):
    i, j = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(128, dtype=torch.float64)
    return torch.sin(0.37 * (128 * i + j) + 0.11 * i + shift)


CLEAN, ADVERSARIAL, TEACHER = (rows(0.0)[:4],), (rows(0.5)[:4],), (rows(0.3)[:4],)


def options(method="fare", epsilon=8 / 255, norm="linf", steps=3, **more):
    return Distillation.Options(method=method, attack=AttackOptions(norm=norm, epsilon=epsilon, step_size=epsilon / 4, steps=steps), **more)


def twins(name="test_vit", seed=0):
    torch.manual_seed(seed)
    student = create_backbone(name, 32)
    return student, copy.deepcopy(student)


def objective(method="fare", name="test_vit", teacher=None, student=None, scale=1.0, **more):
    pair = twins(name)
    return Distillation(student or pair[0], teacher or pair[1], AS_IT_IS, options(method, **more), scale)


def batch(n=6, seeds=(3,), size=32):
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Batch(images, None, seeds)


def test_distances_of_features_have_their_golden_values():
    assert squared(ADVERSARIAL, TEACHER).mean().item() == pytest.approx(2.5502337783, abs=1e-9)
    assert cosine(ADVERSARIAL, TEACHER).mean().item() == pytest.approx(0.0199143190, abs=1e-9)
    assert TEACHER[0].square().sum(1).mean().item() == pytest.approx(63.9844689912, abs=1e-9)


@pytest.mark.parametrize(("method", "value"), [("fare", 2.5502337783), ("simclip", 0.0199143190), ("deacl", 3 - 2.7101066242)])
def test_the_loss_of_a_method_is_its_golden_value(method, value):
    # Ours has 1 - cos where DeACL's code has -cos: 3 more, without a gradient.
    assert objective(method).losses(CLEAN, ADVERSARIAL, TEACHER)["loss"].item() == pytest.approx(value, abs=1e-8)


def test_lores_loss_is_its_golden_value_and_the_dual_has_no_share_in_it():
    training = objective("lore")
    training.dual = nn.Sequential(nn.Linear(128, 1).double())  # zero: lambda = ln 2
    nn.init.zeros_(training.dual[0].weight)
    nn.init.zeros_(training.dual[0].bias)
    values = training.losses(CLEAN, ADVERSARIAL, TEACHER)
    assert values["constraint"].item() == pytest.approx(-0.6740225684, abs=1e-8)
    assert values["lambda"].item() == pytest.approx(math.log(2), abs=1e-8)
    assert values["loss"].item() == pytest.approx(2.0830369354, abs=1e-8)


def test_squared_distances_are_in_units_of_the_teachers_length():
    raw, scaled = (objective(scale=scale).losses(CLEAN, ADVERSARIAL, TEACHER) for scale in (1.0, 50.0))
    assert scaled["adversarial"].item() == pytest.approx(raw["adversarial"].item() / 50)
    assert scaled["drift"].item() == pytest.approx(raw["drift"].item() / 50)
    assert objective("simclip", scale=50.0).losses(None, ADVERSARIAL, TEACHER)["loss"].item() == pytest.approx(0.0199143190, abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_radius_a_student_that_is_its_teacher_stays(method):
    training = objective(method, ramp=(0.5, 1.0)).train()
    training.begin_step(0, 10)
    values = training(batch())
    values["loss"].backward()
    expected = (
        -training.options.rho * values["lambda"] * squared(training.embed(batch().inputs / 255), (torch.zeros(()),)).mean() if method == "lore" else 0
    )
    assert values["loss"].item() == pytest.approx(float(expected.detach() if method == "lore" else expected), rel=1e-4, abs=1e-5)
    gradients = [p.grad for p in training.student.parameters() if p.grad is not None]
    assert max(gradient.abs().max() for gradient in gradients) < 1e-4


def test_at_the_image_itself_the_attack_has_no_gradient_and_from_a_random_start_it_fills_the_ball():
    training = objective(steps=10)
    images = batch().inputs / 255
    with torch.no_grad():
        target = training.embed_teacher.module(images)
    training.student.eval()
    still = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(squared(training.embed(still), target).sum(), still)
    assert (gradient == 0).all()
    moved = (training.perturb(images, target, (3,)) - images).abs()
    assert moved.mean() > 8 / 255 / 2
    assert moved.max() <= 8 / 255 + 1e-6


class Linear(PixelModel):
    """f(x) = A x with one output, A_k = sin k."""

    def __init__(self, size=2):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.sin(torch.arange(1.0, 3 * size * size + 1, dtype=torch.float64)))
        self.num_features, self.class_names = 1, ()

    def features(self, images):
        return (images.flatten(1).double() @ self.weight)[:, None]


@pytest.mark.parametrize(("norm", "expected"), [("linf", 0.0634025015), ("l2", None)])
def test_the_attack_on_a_linear_student_is_the_closed_form(norm, expected):
    student, epsilon = Linear(), 8 / 255
    training = Distillation(student, copy.deepcopy(student), AS_IT_IS, options(epsilon=epsilon, norm=norm, steps=10 if norm == "linf" else 100))
    images = torch.full((3, 3, 2, 2), 0.5)
    found = squared(training.embed(training.perturb(images, training.embed_teacher.module(images), (7,))), training.embed_teacher.module(images))
    length = student.weight.abs().sum() if norm == "linf" else student.weight.norm()
    assert found.tolist() == pytest.approx([float((epsilon * length) ** 2)] * 3, rel=1e-4)
    if expected:
        assert found[0].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("rho", "rises"), [(1e-6, True), (1.0, False)])
def test_lambda_rises_where_the_constraint_is_broken_and_falls_where_it_is_kept(rho, rises):
    student, teacher = twins()[0], twins(seed=1)[1]
    if not rises:
        teacher = copy.deepcopy(student)
    training = objective("lore", student=student, teacher=teacher, rho=rho).train()
    optimizer = SGD(training.parameters(), 0.1)
    before = training.dual[2].bias.item()
    values = training(batch())
    values["loss"].backward()
    optimizer.step()
    assert (values["constraint"].item() > 0) == rises
    assert (training.dual[2].bias.item() > before) == rises


def test_a_kept_constraint_bounds_every_cosine():
    torch.manual_seed(0)
    teacher, rho = torch.randn(200, 64, dtype=torch.float64), 0.1
    step = torch.randn_like(teacher)
    clean = teacher + step / step.norm(dim=1, keepdim=True) * teacher.norm(dim=1, keepdim=True) * rho**0.5 * torch.rand(200, 1, dtype=torch.float64)
    towards = torch.randn(200, 64, dtype=torch.float64)
    moved = (torch.cosine_similarity(clean, towards) - torch.cosine_similarity(teacher, towards)).abs()
    assert moved.max() <= 2 * rho**0.5


@pytest.mark.parametrize("name", ["resnet8_cifar", "test_vit"])
def test_the_teacher_and_a_classifiers_head_stay_bit_for_bit(name):
    torch.manual_seed(0)
    student = add_head(create_backbone(name, 32), "abc")
    teacher = copy.deepcopy(student)
    student.head.requires_grad_(False)
    training = Distillation(student, teacher, AS_IT_IS, options()).train()
    kept = {key: value.clone() for key, value in teacher.state_dict().items()}
    head = [value.clone() for value in student.head.state_dict().values()]
    optimizer = SGD([p for p in training.parameters() if p.requires_grad], 0.01)
    for _ in range(2):
        training.train()
        training(batch())["loss"].backward()
        optimizer.step()
    assert all(torch.equal(value, kept[key]) for key, value in teacher.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(head, student.head.state_dict().values(), strict=True))
    assert not any("teacher" in key or "frozen" in key for key in training.state_dict())
    assert {id(p) for p in training.parameters()} == {id(p) for p in student.parameters()}
    assert not teacher.training


def test_clean_and_adversarial_images_of_a_batchnorm_network_go_in_one_forward():
    training, seen = objective(name="resnet8_cifar").train(), []
    training.student.net.conv1.register_forward_hook(lambda module, inputs, output: seen.append((len(inputs[0]), training.student.training)))
    training(batch(6))
    assert seen[-1] == (12, True)
    plain, seen_plain = objective(name="test_vit").train(), []
    plain.student.net.patch_embed.register_forward_hook(lambda module, inputs, output: seen_plain.append(len(inputs[0])))
    plain(batch(6))
    assert seen_plain[-1] == 6  # no statistics: clean images would be for nothing


def test_dropout_is_off():
    torch.manual_seed(0)
    student = create_backbone("test_vit", 32)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    training = Distillation(student, copy.deepcopy(student), AS_IT_IS, options()).train()
    images = batch().inputs / 255
    assert torch.equal(training.embed(images)[0], training.embed(images)[0])


def test_a_teacher_of_another_width_is_reached_through_a_bridge_that_does_not_leave():
    torch.manual_seed(0)
    teacher, student = create_backbone("resnet18_cifar", 32), create_backbone("resnet8_cifar", 32)
    training = Distillation(student, teacher, AS_IT_IS, options()).train()
    training(batch())["loss"].backward()
    assert training.bridge.weight.grad.abs().max() > 0
    assert training.exported is student


@pytest.mark.parametrize(("name", "tokens"), [("test_vit", 5), ("resnet8_cifar", 64)])
def test_tokens_are_matched_too_where_that_is_wanted(name, tokens):
    training = objective(name=name, match="tokens").train()
    pooled, places = training.embed(batch().inputs / 255)
    assert pooled.shape[1] == training.student.num_features
    assert places.shape[1] >= tokens - 1
    training(batch())["loss"].backward()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "resnet8_cifar"])
def test_what_is_matched_is_what_a_head_sees_and_a_backbone_gives(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, 32).eval()
    images = batch().inputs / 255
    with torch.no_grad():
        torch.testing.assert_close(Embedder(backbone)(images)[0], backbone(images))


def test_the_average_follows_the_student_and_is_what_is_exported():
    training = objective(ema_decay=0.9).train()
    assert training.exported is not training.student
    before = copy.deepcopy(training.student.state_dict())
    with torch.no_grad():
        for parameter in training.student.parameters():
            parameter.add_(1.0)
    training.begin_step(5, 10)
    training.end_step()
    name = next(name for name, _ in training.student.named_parameters())
    assert not torch.equal(training.exported.state_dict()[name], before[name])
    assert not torch.equal(training.exported.state_dict()[name], training.student.state_dict()[name])


def test_groups_of_a_batch_draw_for_themselves():
    """One process with two groups computes what two processes with one each would."""
    training = objective().eval()
    images = batch(8, (3, 4)).inputs / 255
    with torch.no_grad():
        target = training.embed_teacher.module(images)
    together = training.perturb(images, target, (3, 4))
    apart = [training.perturb(images[half], (target[0][half],), (seed,)) for half, seed in ((slice(0, 4), 3), (slice(4, 8), 4))]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_attack_on_an_image_does_not_depend_on_the_others(method):
    """Unlike ACL's, whose cross terms are tested: here all rows but one are other images, and the one is perturbed as before."""
    training = objective(method).double().eval()
    images = batch(4).inputs.double() / 255
    others = torch.cat([images[:1], images[1:].flip(3)])
    found = []
    for given in (images, others):
        with torch.no_grad():
            target = training.embed_teacher.module(given)
        found.append(training.perturb(given, target, (3,)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-9, rtol=0)
    assert not torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"method": "deacl", "clean_weight": 0.5}, "--clean_weight has no effect with --method deacl"),
        ({"rho": 0.5}, "--rho has no effect with --method fare"),
        ({"clean_weight": 1.0}, "give a share in"),
        ({"ramp": (0.5, 0.2)}, "two rising shares"),
        ({"attack": dataclasses.replace(Distillation.Options.attack, norm="l2")}, "is meant for linf"),
    ],
)
def test_options_that_cannot_be_meant(more, sentence):
    from rocl_transfer import UserError

    with pytest.raises(UserError, match=sentence):
        Distillation.Options(**more)
