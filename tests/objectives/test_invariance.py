"""AIR's regulariser: golden values, a slow oracle, and where it enters RoCL, ACL and DynACL."""

import math

import pytest
import torch
from torch import nn

from rocl_transfer.data import Augmentation
from rocl_transfer.errors import UserError
from rocl_transfer.models import create_backbone
from rocl_transfer.objectives import ACL, DynACL, RoCL
from rocl_transfer.objectives.invariance import invariance
from tests.objectives.test_acl import batch, golden

METHODS = pytest.mark.parametrize(("kind", "options"), [(RoCL, {}), (ACL, {}), (DynACL, {}), (DynACL, {"ema_decay": 0.9})])


def make(kind, **options):
    torch.manual_seed(0)
    encoder = create_backbone("resnet8_cifar", 16)
    return kind(encoder, kind.make_projector(64), Augmentation(), kind.Options(**options))


def slowly(original, clean, adversarial, temperature, groups):
    """The paper's sums, image by image."""
    n = len(original) // groups
    total = 0.0
    for start in range(0, len(original), n):
        images = range(start, start + n)

        def share(found, target, image, images=images):
            similar = [math.exp(float(found[other] @ target[other]) / temperature) for other in images]
            return similar[image - images[0]] / sum(similar)

        for image in images:
            p, q = (share(view, original, image) for view in clean)
            total += q * math.log(q / p)
            p, q = (share(moved, original, image) * share(moved, view, image) for moved, view in zip(adversarial, clean, strict=True))
            total += q * math.log(q / p)
    return total / groups


def test_the_invariance_term_has_its_golden_values():
    clean, adversarial, original = golden(0), golden(0.5), golden(1.0)[0]
    standard, attacked = 1.0398926e-5, 5.3876e-6
    assert invariance(original, clean, adversarial, 0.5).item() == pytest.approx(standard + attacked, rel=1e-5)
    still = invariance(original, clean, clean, 0.5).item()  # a view's cosine with itself is 1: the second factor is 1 / N
    assert still == pytest.approx(standard * (1 + 1 / 4), rel=1e-5)


def test_views_that_stand_alike_cost_nothing():
    alike, moved = (golden(shift)[:1].expand(2, -1, -1) for shift in (0, 0.5))
    assert invariance(golden(1.0)[0], alike, moved, 0.5).item() == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_the_invariance_term_is_the_papers_sum(groups):
    draws = torch.randn(5, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    original, *views = nn.functional.normalize(draws, dim=-1).unbind()
    clean, adversarial = torch.stack(views[:2]), torch.stack(views[2:])
    found = invariance(original, clean, adversarial, 0.2, groups)
    assert found.item() == pytest.approx(slowly(original, clean, adversarial, 0.2, groups), rel=1e-10)
    given = [part.requires_grad_() for part in (original, clean, adversarial)]
    assert torch.autograd.gradcheck(lambda *parts: invariance(*parts, 0.2, groups), given)


@METHODS
def test_it_is_added_with_its_weight_and_reaches_the_weights(kind, options):
    plain, with_it = make(kind, **options)(batch(8, (1, 2))), make(kind, air_weight=0.25, **options)
    values = with_it(batch(8, (1, 2)))
    assert "air" not in plain
    assert values["air"] > 0
    assert values["loss"].item() == pytest.approx(plain["loss"].item() + 0.25 * values["air"].item(), rel=1e-6)
    values["loss"].backward()
    gradients = torch.cat([p.grad.flatten() for p in with_it.parameters() if p.grad is not None])
    other = make(kind, **options)
    other(batch(8, (1, 2)))["loss"].backward()
    without = torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None])
    assert gradients.shape == without.shape
    assert (gradients - without).norm() > 1e-4 * without.norm()
    assert with_it.facts()["air_weight"] == 0.25
    assert "ours" in with_it.facts()["air"]
    assert "air_weight" not in other.facts()


@pytest.mark.parametrize("kind", [ACL, DynACL])
def test_unaugmented_images_go_through_the_set_of_the_clean_ones(kind):
    made, seen, given = make(kind, air_weight=1), [], batch(6)
    made.attacked.current(given.inputs.float())  # folds the network, which takes a look at it
    for name, network in {"own": made.encoder.net.bn1, "other": made.clean_set.norms[0]}.items():
        network.register_forward_hook(lambda module, args, out, name=name: seen.append((name, len(args[0]))))
    made.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    made(given)
    assert [part for part in seen if not torch.is_tensor(part)] == [("own", 12), ("other", 12), ("other", 6)]
    assert torch.equal(seen[-2], given.inputs.float() / 255)


def test_a_weight_below_nothing_is_refused():
    with pytest.raises(UserError, match=r"--objective.air_weight is -1: give 0 or more"):
        RoCL.Options(air_weight=-1)
