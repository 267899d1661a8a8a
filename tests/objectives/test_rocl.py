import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rocl_transfer.attacks import L2, AttackOptions, GradientAscent, Linf, frozen
from rocl_transfer.data import Augmentation, Batch, generators
from rocl_transfer.models import create_backbone, projector
from rocl_transfer.objectives import RoCL, SimCLR, nt_xent


@pytest.fixture
def objective():
    torch.manual_seed(0)
    encoder = create_backbone("resnet8_cifar", 32)
    options = RoCL.Options(attack=AttackOptions(step_size=0.007))
    module = RoCL(encoder, projector(encoder.num_features), Augmentation(), options)
    for _ in range(30):  # eval mode needs running statistics to tell images apart
        module.encoder(batch(8).inputs / 255)
    return module


def batch(n, seeds=(1,), seed=0):
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Batch(images, None, tuple(seeds))


def two_views(n):
    return torch.rand(2, n, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def reencoding_attack(objective, images, target, seeds):
    """The instance-wise attack as the official code computes it: both views encoded at every step, the loss over all 2N rows."""
    epsilon, step_size = objective.attack.threat.epsilon, objective.attack.step_size
    noise = torch.cat([torch.rand(len(images) // len(seeds), 3, 32, 32, generator=g) for g in generators(seeds, "attack")])
    adversarial = (images + (2 * noise - 1) * epsilon).clamp(0, 1)
    with frozen(objective):
        for _ in range(objective.attack.steps):
            adversarial = adversarial.detach().requires_grad_()
            z = torch.stack([objective.project(adversarial), objective.project(target)])
            (gradient,) = torch.autograd.grad(nt_xent(z, z, objective.temperature), adversarial)
            adversarial = (adversarial.detach() + step_size * gradient.sign()).clamp(0, 1)
            adversarial = torch.minimum(torch.maximum(adversarial, images - epsilon), images + epsilon)
    return adversarial


def test_target_encoded_once_is_bit_for_bit_the_reencoding_attack(objective):
    first, second = two_views(32)
    objective.attacked.tried = True  # and not folded
    assert torch.equal(objective.perturb(first, second, (5,)), reencoding_attack(objective, first, second, (5,)))


def test_on_the_folded_network_few_signs_turn(objective):
    objective.double()  # in float32 folding rounds by 1e-7: no pixel differed on one processor, 0.5 % on another
    first, second = two_views(32).double()
    adversarial = objective.perturb(first, second, (5,))
    assert objective.attacked.twin is not None
    assert (adversarial != reencoding_attack(objective, first, second, (5,))).float().mean() < 1e-5


@pytest.mark.parametrize("threat", [Linf(0.0314), L2(0.5)])
def test_attack_raises_the_contrastive_loss_inside_the_ball(objective, threat):
    objective.attack = GradientAscent(threat, threat.epsilon / 4, 7)
    first, second = two_views(16)
    adversarial = objective.perturb(first, second, (5,))
    delta = (adversarial - first).flatten(1)
    length = delta.abs().amax(1) if threat.norm == "linf" else delta.norm(dim=1)
    assert (length <= threat.epsilon * (1 + 1e-5)).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    with frozen(objective), torch.no_grad():
        pair = [torch.stack([objective.project(view), objective.project(second)]) for view in (first, adversarial)]
        clean, attacked = (nt_xent(z, z, 0.5) for z in pair)
    assert attacked > clean + 0.005


def test_groups_are_attacked_as_if_alone(objective):
    # Batch size chooses convolution kernels, and a sign flips where the gradient is rounding: in float64 next to none is.
    objective.double()
    first, second = two_views(32).double()
    together = objective.perturb(first, second, (5, 6))
    apart = torch.cat([objective.perturb(first[:16], second[:16], (5,)), objective.perturb(first[16:], second[16:], (6,))])
    assert ((together - apart).abs() > 1e-6).float().mean() < 1e-5


def test_regularizer_is_the_mean_over_groups_with_their_own_negatives(objective):
    first, second = two_views(8)
    z = objective.project(torch.cat([first, second])).view(2, 8, -1)
    value = objective._pair(z, 2)
    expected = (nt_xent(z[:, :4], z[:, :4], 0.5) + nt_xent(z[:, 4:], z[:, 4:], 0.5)) / 2
    torch.testing.assert_close(value, expected)


def test_total_is_main_plus_regularizer_over_256_from_forwards_in_the_official_order(objective):
    seen = []
    twin = objective.attacked.current(batch(8).inputs / 255)
    networks = (objective.encoder, twin)
    handles = [network.register_forward_hook(lambda module, args, out: seen.append((module.training, len(args[0])))) for network in networks]
    losses = objective(batch(8))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(losses["loss"].detach(), losses["main"] + losses["regularizer"] / 256)
    # target once, 7 steps; then regulariser (2N) before main (3N), both in train mode
    assert seen == [(False, 8)] * 8 + [(True, 16), (True, 24)]


def test_a_shared_regularizer_is_that_of_the_main_forward(objective):
    first, second = two_views(8)
    third = objective.perturb(first, second, (1,))
    draws = iter((first, second))
    objective.views, objective.perturb = (lambda *_: next(draws)), (lambda *_: third)
    objective.options = RoCL.Options(shared_regularizer=True)
    losses = objective(batch(8))
    objective.eval().train()
    z = objective.project(torch.cat([first, second, third])).view(3, 8, -1)
    torch.testing.assert_close(losses["regularizer"], nt_xent(z[1:], z[1:], 0.5).detach())
    torch.testing.assert_close(losses["main"], nt_xent(z, z, 0.5).detach())
    torch.testing.assert_close(losses["loss"].detach(), losses["main"] + losses["regularizer"] / 256)


def test_a_step_of_rocl_restores_train_modes_and_gradient_flags(objective):
    objective.train()
    objective.encoder.net.layer1.eval()
    modes = [module.training for module in objective.modules()]
    objective(batch(4))
    assert [module.training for module in objective.modules()] == modes
    assert all(parameter.requires_grad for parameter in objective.parameters())


def test_attack_leaves_batchnorm_statistics_alone(objective):
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.perturb(*two_views(4), (1,))
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_every_parameter_gets_a_gradient_and_a_step_depends_on_the_seed_alone(objective):
    losses = [objective(batch(4, seeds)) for seeds in ((1,), (1,), (2,))]
    losses[0]["loss"].backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert losses[0]["main"] != losses[2]["main"]
    objective.eval()  # running statistics moved in between
    again = [objective(batch(4, (1,)))["loss"] for _ in range(2)]
    assert torch.equal(*again)


def test_simclr_is_the_two_view_loss_without_attack(objective):
    objective = SimCLR(objective.encoder, objective.projector, objective.views)
    objective.eval()
    losses = objective(batch(8))
    draws = generators((1,), "views")
    images = batch(8).inputs / 255
    z = F.normalize(torch.stack([objective.projector(objective.encoder(objective.views(images, draws))) for _ in range(2)]), dim=-1)
    assert set(losses) == {"loss", "main"}
    torch.testing.assert_close(losses["loss"], nt_xent(z, z, 0.5))


def test_autocast_keeps_perturbation_and_losses_in_float32(objective):
    with torch.autocast("cpu", torch.bfloat16):
        adversarial = objective.perturb(*two_views(4), (1,))
        losses = objective(batch(4))
    assert adversarial.dtype == torch.float32
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert isinstance(objective.projector[0], nn.Linear)
