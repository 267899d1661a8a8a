"""Losses against term-by-term oracles, attacks against the balls, weight perturbation against moving the weights by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rocl_transfer.attacks import AttackOptions, share_of_radius
from rocl_transfer.data import Augmentation, Batch
from rocl_transfer.models import add_head, create_backbone, select_trainable
from rocl_transfer.objectives import AdversarialTraining, ContrastiveTerm, class_weights, nt_xent
from rocl_transfer.objectives.robust_losses import divergence, mart, trades
from rocl_transfer.objectives.weight_perturbation import perturbed

AS_IT_IS = Augmentation(jitter_probability=0, grey_probability=0, flip_probability=0, crop_area=(1, 1))


def classifier(name="resnet8_cifar", classes="abc", seed=0):
    torch.manual_seed(seed)
    return add_head(create_backbone(name, 32), classes)


def batch(n=8, classes=3, size=32):
    torch.manual_seed(1)
    return Batch(torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8), torch.arange(n) % classes, (5,))


def against(norm="linf", epsilon=8 / 255, step_size=2 / 255, steps=3):
    return AttackOptions(norm=norm, epsilon=epsilon, step_size=step_size, steps=steps)


def objective(method="trades", attack=None, *, model=None, counts=None, projector=None, **options):
    own = AdversarialTraining.Options(method=method, attack=attack or against(), **{"augmentation": AS_IT_IS, **options})
    return AdversarialTraining(model or classifier(), own, counts=counts, projector=projector).train()


def logits(n=6, classes=4):
    torch.manual_seed(2)
    return 3 * torch.randn(n, classes), 3 * torch.randn(n, classes), torch.arange(n) % classes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trades_term_by_term(smoothing):
    clean, adversarial, labels = logits()
    for i, value in enumerate(trades(clean, adversarial, labels, 6.0, smoothing).tolist()):
        p, q = ([math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in (clean[i].tolist(), adversarial[i].tolist()))
        target = [smoothing / 4 + (1 - smoothing) * (k == int(labels[i])) for k in range(4)]
        own = -sum(t * math.log(x) for t, x in zip(target, p, strict=True))
        assert value == pytest.approx(own + 6 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), rel=1e-5)


def test_mart_term_by_term():
    clean, adversarial, labels = logits()
    for i, value in enumerate(mart(clean, adversarial, labels, 5.0).tolist()):
        p, q = ([math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in (clean[i].tolist(), adversarial[i].tolist()))
        y = int(labels[i])
        boosted = -math.log(q[y]) - math.log(1.0001 - max(b for k, b in enumerate(q) if k != y))
        assert value == pytest.approx(boosted + 5 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * (1 - p[y]), rel=1e-4)


@pytest.mark.parametrize("loss", [trades, mart])
def test_losses_and_gradients_are_finite_where_probabilities_reach_zero(loss):
    clean = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    adversarial = torch.tensor([[-200.0, 0.0, 200.0]], requires_grad=True)
    value = loss(clean, adversarial, torch.tensor([0]), 6.0).sum()
    value.backward()
    assert all(torch.isfinite(x).all() for x in (value, clean.grad, adversarial.grad))


def test_class_weights_are_cuis_with_mean_one_over_the_images():
    counts = torch.tensor([1000, 10])
    weights = class_weights(counts)
    effective = [(1 - 0.999**n) / (1 - 0.999) for n in counts.tolist()]
    assert (weights[1] / weights[0]).item() == pytest.approx(effective[0] / effective[1], rel=1e-5)
    assert (weights * counts).sum().item() / 1010 == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["at", "trades", "mart"])
def test_the_adversary_stays_in_its_ball_and_does_harm(norm, method):
    epsilon = {"linf": 8 / 255, "l2": 1.0}[norm]
    training = objective(method, against(norm, epsilon, epsilon / 4, 5))
    given = batch()
    images = given.inputs.float() / 255
    adversarial = training.perturb(images, given.labels, given.seeds)
    delta = (adversarial - images).flatten(1)
    length = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert length.max() <= epsilon * (1 + 1e-5)
    assert length.min() > epsilon / 4
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    training.eval()
    clean, attacked = (training.classifier(x).detach() for x in (images, adversarial))
    if method == "trades":  # moves the answer farther than noise of the same size
        noise = images + delta.abs().view_as(images) * torch.randn_like(images).sign()
        assert divergence(clean, attacked).sum() > 2 * divergence(clean, training.classifier(noise).detach()).sum()
    else:
        assert F.cross_entropy(attacked, given.labels) > F.cross_entropy(clean, given.labels)
    assert training.train().classifier.training  # modes and flags come back
    training.perturb(images, given.labels, given.seeds)
    assert training.classifier.training
    assert all(p.requires_grad for p in training.classifier.parameters())


def test_the_ramp_is_zero_then_linear_then_whole():
    assert [share_of_radius((0.2, 0.6), x) for x in (0, 0.1, 0.2, 0.4, 0.6, 1)] == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert against(epsilon=0.1, step_size=0.02).ascent(0.5).threat.epsilon == pytest.approx(0.05)
    assert against(epsilon=0.1, step_size=0.02).ascent(0.5).step_size == pytest.approx(0.01)
    assert share_of_radius((0.0, 0.0), 0) == 1
    assert [share_of_radius((0.3, 0.3), x) for x in (0, 0.29, 0.3)] == [0, 0, 1]
    training = objective("trades", against(epsilon=0.1, step_size=0.02), ramp=(0.2, 0.6))
    given = batch()
    images = given.inputs.float() / 255
    training.begin_step(0, 10)
    assert torch.equal(training.perturb(images, given.labels, given.seeds), images)
    values = training(given)
    assert values["loss"].item() == pytest.approx(F.cross_entropy(training.classifier(images), given.labels).item(), rel=1e-3)
    training.begin_step(4, 10)
    assert 0.04 < (training.perturb(images, given.labels, given.seeds) - images).abs().max() <= 0.05 + 1e-6


def test_methods_are_the_formulas_on_their_own_adversarial_images():
    for method in ("standard", "at", "trades", "mart"):
        training = objective(method)
        twin = copy.deepcopy(training)
        given = batch()
        values = training(given)
        images = given.inputs.float() / 255
        x = twin.perturb(images, given.labels, given.seeds)
        adversarial = twin.classifier(x)
        if method in ("standard", "at"):
            expected = F.cross_entropy(adversarial, given.labels)
        else:
            clean = twin.classifier(images)
            p, q = clean.softmax(1), adversarial.softmax(1)
            kl = (p * (p.log() - q.log())).sum(1)
            y = F.one_hot(given.labels, 3).bool()
            expected = {
                "trades": F.cross_entropy(clean, given.labels) + 6 * kl.mean(),
                "mart": (-q[y].log() - (1.0001 - q.masked_fill(y, 0).amax(1)).log() + 5 * kl * (1 - p[y])).mean(),
            }[method]
        assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5), method


def test_class_weights_weigh_each_images_term():
    plain, weighted = objective("standard"), objective("standard")
    weighted.weights = torch.tensor([2.0, 0.0, 1.0])
    given = batch()
    terms = F.cross_entropy(plain.classifier(given.inputs.float() / 255), given.labels, reduction="none")
    expected = (terms * torch.tensor([2.0, 0.0, 1.0])[given.labels]).mean()
    assert weighted(given)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_perturbation_is_the_gradient_at_the_moved_weights():
    model = classifier("test_vit").double().eval()  # the mean of moved weights' rounding is as large as a small gradient in float32
    given = batch()
    images, gamma = given.inputs.double() / 255, 0.01

    def loss(predict):
        return F.cross_entropy(predict(images), given.labels)

    loss(perturbed(model, loss, gamma)).backward()
    fast = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert loss(model).item() < loss(perturbed(model, loss, gamma)).item()

    moved = copy.deepcopy(model)
    moved.zero_grad()
    loss(moved).backward()
    with torch.no_grad():
        for p in moved.parameters():
            if p.dim() > 1 and p.grad is not None:
                p.add_(p.grad, alpha=gamma * p.norm().item() / p.grad.norm().item())
    moved.zero_grad()
    loss(moved).backward()
    for name, p in moved.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(fast[name], p.grad, rtol=1e-6, atol=1e-12, msg=name)


def test_weight_perturbation_counts_batchnorm_statistics_once():
    with_awp, without = objective("at", awp_gamma=0.01), objective("at")
    for training in (with_awp, without):
        training(batch())
    assert with_awp.classifier.net.bn1.num_batches_tracked == without.classifier.net.bn1.num_batches_tracked == 1


def test_the_average_follows_the_weights_and_is_what_is_deployed():
    training = objective("standard", ema_decay=0.9)
    assert training.exported is not training.classifier
    before = training.classifier.head.weight.detach().clone()
    for step in range(200):
        training.begin_step(step, 200)
        with torch.no_grad():
            training.classifier.head.weight.fill_(step)
        training.end_step()
    average = training.exported.head.weight[0, 0].item()
    assert average == pytest.approx(199 - 9, abs=0.1)  # of 0, 1, ... 199 with factor 0.9
    assert not torch.equal(before, training.exported.head.weight)
    assert not any(p.requires_grad for p in training.exported.parameters())
    assert not training.train().exported.training


def test_the_self_supervised_loss_pairs_an_adversarial_image_with_another_view_of_itself():
    class Ids(nn.Module):
        def forward(self, features):
            return features

    given = batch(n=4)
    pixels = given.inputs.float() / 255
    contrast = ContrastiveTerm(Ids(), lambda images, draws: images, weight=1.0)

    def encode(images):
        return images.flatten(1)

    adversarial = (pixels + 0.01).clamp(0, 1)
    z = F.normalize(torch.stack([encode(adversarial), encode(pixels)]), dim=-1)
    assert contrast(encode, adversarial, pixels, []).item() == pytest.approx(nt_xent(z, z, 0.5).item(), rel=1e-6)
    wrong = torch.roll(pixels, 1, 0)  # the official code's pairs: higher, as another image's view is no positive
    assert contrast(encode, adversarial, wrong, []).item() > contrast(encode, adversarial, pixels, []).item()

    training = objective("at", projector=nn.Linear(64, 16), ss_weight=0.5, ss_views=AS_IT_IS)
    values = training(given)
    values["loss"].backward()
    assert training.contrast.projector.weight.grad.abs().max() > 0
    assert values["contrastive"] > 0


@pytest.mark.parametrize(("batchnorm", "train", "moves"), [("train", "all", True), ("frozen", "all", False), ("train", "head", False)])
def test_batchnorm_statistics_move_where_they_are_to(batchnorm, train, moves):
    model = classifier()
    select_trainable(model, train)
    training = objective("trades", model=model, batchnorm=batchnorm)
    before = training.classifier.net.bn1.running_mean.clone()
    training(batch())
    assert torch.equal(before, training.classifier.net.bn1.running_mean) != moves
