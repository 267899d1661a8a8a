"""ACL and DynACL: golden values, closed forms, two sets of BatchNorm, the joint attack, the schedule and the running average."""

import copy
import json
import math

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from rocl_transfer.attacks import L2, GradientAscent, Linf, frozen
from rocl_transfer.data import Augmentation, Batch
from rocl_transfer.errors import UserError
from rocl_transfer.hub import export
from rocl_transfer.models import TwoSets, create_backbone, fold, normalized_projector
from rocl_transfer.objectives import ACL, DynACL, nt_xent
from rocl_transfer.training.runtime import synchronised

CLEAN, ADVERSARIAL = 2.0551084263, 2.0530392053  # NT-Xent of the golden embeddings
TINY = [
    "--model.name", "resnet8_cifar", "--data.image_size", "16", "--batch_size", "8", "--objective.attack.steps", "1", "--optimizer.name", "adamw",
    "--optimizer.lr", "1e-3", "--epochs", "2", "--log_every", "1", "--optimizer.warmup_epochs", "1", "--monitor_every", "1",
]  # fmt: skip


def golden(shift):
    i, j = torch.arange(8).double()[:, None], torch.arange(128).double()[None]
    z = nn.functional.normalize(torch.sin(0.37 * (128 * i + j) + 0.11 * i + shift), dim=1)
    return z.view(2, 4, 128)


def batch(n=6, seeds=(1,), size=16):
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images, None, tuple(seeds))


def views(n=6, size=16):
    return torch.rand(2, n, 3, size, size, generator=torch.Generator().manual_seed(3))


def make(kind=ACL, name="resnet8_cifar", size=16, augmentation=None, **options):
    torch.manual_seed(0)
    encoder = create_backbone(name, size)
    made = kind(encoder, kind.make_projector(encoder.num_features), augmentation or Augmentation(), kind.Options(**options))
    for _ in range(30):  # eval mode needs statistics that tell images apart
        made.embed(*views(8, size))
    return made


def trained(kind=ACL, steps=3, **options):
    made = make(kind, **options)
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        made.begin_step(step, steps)
        made(batch(seeds=(step,)))["loss"].backward()
        optimizer.step()
        made.end_step()
        optimizer.zero_grad()
    return made


KINDS = pytest.mark.parametrize(("kind", "options"), [(ACL, {}), (DynACL, {}), (DynACL, {"ema_decay": 0.9})])


def test_the_loss_is_its_golden_value():
    clean, adversarial = (nt_xent(z, z, 0.5) for z in (golden(0), golden(0.5)))
    assert clean.item() == pytest.approx(CLEAN, abs=1e-6)
    assert adversarial.item() == pytest.approx(ADVERSARIAL, abs=1e-6)
    assert make().weighed(clean, adversarial)["loss"].item() == pytest.approx(2.0540738158, abs=1e-6)


@pytest.mark.parametrize(("epoch", "weight", "twice"), [(1, 0, 4.1081476316), (501, 1 / 3, 4.1074578912), (1000, 0.63333333, 4.1068371249)])
def test_the_weighed_loss_is_its_golden_value(epoch, weight, twice):
    made = make(DynACL)
    made.begin_step(epoch - 1, 1000)
    values = made.weighed(*torch.tensor([CLEAN, ADVERSARIAL], dtype=torch.float64))
    assert 2 * values["loss"].item() == pytest.approx(twice, abs=1e-7)
    assert 2 / 3 * (1 - values["strength"].item()) == pytest.approx(weight, abs=1e-7)


@pytest.mark.parametrize(("epoch", "strength"), [(1, 1), (50, 1), (51, 0.95), (501, 0.5), (951, 0.05), (1000, 0.05)])
def test_the_strength_is_a_function_of_step_and_total_alone(epoch, strength):
    for per_epoch in (1, 98):
        made = make(DynACL)
        made.begin_step((epoch - 1) * per_epoch, 1000 * per_epoch)
        assert made.strength == pytest.approx(strength, abs=1e-12)
        assert made.views == Augmentation().scaled(made.strength)
        made.begin_step(0, 1000)
        assert made.views == Augmentation()


def test_short_trainings_weaken_as_well():
    made, seen = make(DynACL), []
    for step in range(28):
        made.begin_step(step, 28)
        seen.append(round(made.strength, 10))
    assert seen[0] == 1
    assert seen[-1] == pytest.approx(0.05)
    assert sorted(set(seen)) == [pytest.approx(0.05 * number) for number in range(1, 21)]


@KINDS
def test_without_a_radius_and_with_equal_sets_both_losses_are_one(kind, options):
    torch.manual_seed(0)
    encoder = create_backbone("resnet8_cifar", 16)
    made = kind(encoder, kind.make_projector(64), Augmentation(), kind.Options(**options))
    made.attack = GradientAscent(Linf(0.0), 0.0, 1)
    values = made(batch())
    assert torch.equal(values["clean"], values["adversarial"])
    torch.testing.assert_close(values["loss"].detach(), values["clean"], rtol=1e-6, atol=0)


def test_collapsed_features_cost_the_logarithm_of_the_others():
    made = make()
    for norm in (made.projector[-1], made.clean_set.norms[-1]):
        nn.init.zeros_(norm.weight)
        nn.init.ones_(norm.bias)
    values = made(batch(8))
    for name in ("loss", "clean", "adversarial"):
        assert values[name].item() == pytest.approx(math.log(2 * 8 - 1), abs=1e-5)


@KINDS
def test_what_is_exported_is_the_adversarial_route_bit_for_bit(kind, options, tmp_path):
    made = trained(kind, **options).eval()
    export(made.exported, tmp_path, projector=made.exported_projector)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = views()[0]
    assert torch.equal(plain(images), made.exported(images))
    assert {type(part) for part in plain.modules()} == {type(part) for part in create_backbone("resnet8_cifar", 16).net.modules()}
    with made.clean_set.chosen():
        assert not torch.allclose(plain(images), made.exported(images), rtol=1e-2)
    head = normalized_projector(64).eval()
    head.load_state_dict(load_file(tmp_path / "projector.safetensors"))
    assert torch.equal(head(plain(images)), made.exported_projector(made.exported(images)))


@KINDS
def test_a_forward_through_one_set_leaves_the_other_alone(kind, options):
    made = make(kind, **options).train()

    def states():
        networks = [made.encoder, made.projector] + ([made.key, made.key_projector] if options else [])
        return [copy.deepcopy(part.state_dict()) for part in (nn.ModuleList(networks), made.clean_set)]

    def same(one, two):
        return all(torch.equal(value, two[name]) for name, value in one.items())

    before = states()
    made.embed(*views())
    through_own = states()
    with made.clean_set.chosen():
        made.embed(*views())
    through_both = states()
    assert not same(before[0], through_own[0])
    assert same(before[1], through_own[1])
    assert same(through_own[0], through_both[0])
    assert not same(through_own[1], through_both[1])


def test_the_other_set_takes_the_mode_of_the_networks_and_always_gives_way():
    made = make()
    own = [made.encoder.net.bn1, made.projector[1]]
    with pytest.raises(ZeroDivisionError), frozen(made.encoder, made.projector), made.clean_set.chosen():
        assert not made.clean_set.norms[0].training
        assert made.encoder.net.bn1 is made.clean_set.norms[0]
        raise ZeroDivisionError
    assert [made.encoder.net.bn1, made.projector[1]] == own
    assert own[0].training


def test_one_norm_in_two_places_is_one_in_the_other_set():
    norm = nn.BatchNorm1d(3)
    network = nn.Sequential(norm, nn.ReLU(), norm)
    sets = TwoSets(network)
    assert len(sets.norms) == 1
    with sets.chosen():
        assert network[0] is network[2] is sets.norms[0]
    assert network[0] is network[2] is norm


def test_norms_made_one_over_processes_are_chosen_too():
    made = synchronised(make())
    with made.clean_set.chosen():
        assert isinstance(made.encoder.net.bn1, nn.SyncBatchNorm)
        assert made.encoder.net.bn1 is made.clean_set.norms[0]
    assert made.encoder.net.bn1 is not made.clean_set.norms[0]
    assert isinstance(made.projector[1], nn.SyncBatchNorm)


def test_without_batchnorm_the_two_routes_through_the_encoder_are_one_and_the_log_says_so(caplog):
    caplog.set_level("INFO")
    made = make(name="test_vit", size=32)
    assert "test_vit has no BatchNorm: clean and adversarial images go one way through it" in caplog.text
    assert len(made.clean_set.norms) == 3  # the projector's
    images = views(size=32)[0]
    own = made.encoder(images)
    with made.clean_set.chosen():
        assert torch.equal(made.encoder(images), own)
    assert "batchnorm" not in made.facts()
    assert "batchnorm" in make().facts()


def climbed(made, first, second, seeds):
    """What the attack climbs, as it is given to the ascent, and the images that it starts at."""
    found = []

    def keep(images, loss, generators):
        found.extend((images, loss))
        return images

    made.attack = keep
    made.perturb(first, second, seeds)
    return found


@KINDS
def test_the_attack_has_cross_terms_and_its_gradient_is_that_of_finite_differences(kind, options):
    made = make(kind, **options).double()
    first, second = views(3).double()
    with frozen(*made.clean_set.networks):
        images, loss = climbed(made, first, second, (1,))
        images = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(images), images)
        z = made.embed(first, second)
        assert loss(images).item() == pytest.approx(nt_xent(z, z, 0.5).item(), abs=1e-9)
        # nt_xent computes in float32, ReLUs have kinks: a short way, on which much changes.
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for row in range(len(images)):
            along = torch.zeros_like(noise)
            along[row] = gradient[row] / gradient[row].norm() + noise[row] / noise[row].norm()
            ahead, behind = (loss(images.detach() + step * along).item() for step in (0.005, -0.005))
            assert (ahead - behind) / 0.01 == pytest.approx((gradient * along).sum().item(), rel=0.05)
        rows = made.embed(images[:3], images[3:])
        (alone,) = torch.autograd.grad(nt_xent(rows, rows, 0.5), images)
    reached = slice(0, 3) if options else slice(0, 6)  # the running average gives no gradient outside the attack
    assert (alone[reached] - gradient[reached]).norm() > 0.05 * gradient[reached].norm()


@KINDS
@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5)])
def test_the_attack_raises_the_loss_of_the_pair_inside_the_ball(kind, options, threat):
    made = make(kind, **options)
    made.attack = GradientAscent(threat, threat.epsilon / 4, 5)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    modes, flags = [part.training for part in made.modules()], [p.requires_grad for p in made.parameters()]
    clean = views()
    moved = torch.stack(made.perturb(*clean, (5,)))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert [part.training for part in made.modules()] == modes
    assert [p.requires_grad for p in made.parameters()] == flags
    delta = (moved - clean).flatten(2)
    length = delta.abs().amax(2) if threat.norm == "linf" else delta.norm(dim=2)
    assert (length <= threat.epsilon * (1 + 1e-5)).all()
    assert (length > threat.epsilon / 2).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    with frozen(*made.clean_set.networks), torch.no_grad():
        losses = [nt_xent(z, z, 0.5).item() for z in (made.embed(*clean), made.embed(*moved))]
    assert losses[1] > losses[0] + 0.005


@KINDS
def test_groups_are_attacked_as_if_alone(kind, options):
    # Batch size chooses convolution kernels, and a sign flips where the gradient is rounding: in float64 next to none is.
    made = make(kind, **options).double()
    first, second = views(8).double()
    together = torch.stack(made.perturb(first, second, (5, 6)))
    apart = [torch.stack(made.perturb(first[half], second[half], (seed,))) for half, seed in ((slice(0, 4), 5), (slice(4, 8), 6))]
    assert ((together - torch.cat(apart, dim=1)).abs() > 1e-6).float().mean() < 1e-4


def test_the_folded_network_is_that_of_the_adversarial_set():
    made = trained()
    twin, images = made.attacked.current(views()[0]), views()[0]
    made.eval()
    torch.testing.assert_close(twin(images), made.encoder(images), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fold(made.encoder)(images), twin(images))
    with made.clean_set.chosen():
        assert not torch.allclose(twin(images), made.encoder(images), rtol=1e-2)


@KINDS
def test_adversarial_images_go_first_and_each_pair_through_its_set(kind, options):
    made, seen = make(kind, **options), []
    networks = {"own": made.encoder.net.bn1, "other": made.clean_set.norms[0], "attack": made.attacked.current(views()[0])}
    for name, network in networks.items():
        network.register_forward_hook(lambda module, args, out, name=name: seen.append((name, module.training, len(args[0]))))
    made(batch())
    n = 6 if options else 12
    assert seen == [("attack", False, n)] * 5 + [("own", True, n), ("other", True, n)]


@KINDS
def test_all_that_trains_gets_a_gradient_and_a_step_depends_on_the_seed_alone(kind, options):
    made = make(kind, **options)
    losses = [made(batch(seeds=seeds))["loss"] for seeds in ((1,), (1,), (2,))]
    losses[0].backward()
    trains = [p for p in made.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trains)
    follows = [p for p in made.parameters() if not p.requires_grad]
    assert bool(follows) == bool(options)
    assert all(p.grad is None for p in follows)
    assert losses[0] != losses[2]
    made.eval()  # running statistics moved in between
    again = [made(batch())["loss"] for _ in range(2)]
    assert torch.equal(*again)


def test_the_running_average_is_the_closed_form_and_its_statistics_are_its_own():
    made = make(DynACL, ema_decay=0.9)
    learns = [*made.encoder.parameters(), *made.projector.parameters(), *made.clean_set.norms[: len(made.clean_set.norms) // 2].parameters()]
    follows = [*made.key.parameters(), *made.key_projector.parameters(), *made.clean_set.norms[len(made.clean_set.norms) // 2 :].parameters()]
    begun = [p.clone() for p in follows]
    buffers = {name: value.clone() for name, value in made.key.named_buffers()}
    with torch.no_grad():
        for p in learns:
            p.add_(torch.randn_like(p))
    for _ in range(7):
        made.end_step()
    for p, q, average in zip(learns, begun, follows, strict=True):
        torch.testing.assert_close(average, p + 0.9**7 * (q - p), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, buffers[name]) for name, value in made.key.named_buffers())
    made.embed(*views())
    assert not torch.equal(made.key.net.bn1.running_mean, buffers["net.bn1.running_mean"])
    assert not torch.equal(made.key.net.bn1.running_mean, made.encoder.net.bn1.running_mean)
    assert made.exported is made.key
    assert made.exported_projector is made.key_projector


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_factor_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"--objective.ema_decay is .*: give a factor in \[0, 1\), such as 0.99"):
        DynACL.Options(ema_decay=value)


def test_autocast_keeps_perturbation_and_losses_in_float32():
    made = make(DynACL, ema_decay=0.9)
    with torch.autocast("cpu", torch.bfloat16):
        moved, losses = made.perturb(*views(4), (1,)), made(batch(4))
    assert {part.dtype for part in moved} == {torch.float32}
    assert {value.dtype for value in losses.values()} == {torch.float32}


SHARED = """
import sys, torch, torch.distributed as dist
from rocl_transfer.config.cli import leave
from tests.objectives.test_acl import ACL, DynACL, batch, make
kind, decay, processes, out = sys.argv[1:]
torch.set_num_threads(1)
made = make({"acl": ACL, "dynacl": DynACL}[kind], **({"ema_decay": float(decay)} if float(decay) else {}))
made.eval()  # BatchNorm on a CPU is each process's own
module, mine = made, batch(8, (1, 2))
if int(processes) > 1:
    dist.init_process_group("gloo")
    module, mine = torch.nn.parallel.DistributedDataParallel(made), mine.split(2)[dist.get_rank()]
made.begin_step(1, 2)
losses = module(mine._replace(positions=None))
losses["loss"].backward()
loss = losses["loss"].detach()
if int(processes) > 1:
    dist.all_reduce(loss)
    loss /= 2
if int(processes) == 1 or dist.get_rank() == 0:
    torch.save([loss, torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])], out)
leave(0)
"""


@pytest.mark.parametrize(("kind", "decay"), [("acl", "0"), ("dynacl", "0.9")])
def test_two_processes_of_a_group_equal_one_of_two(kind, decay, fork, together, tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    words = [tmp_path / "shared.py", kind, decay]
    for done in (fork(tmp_path, *words, 1, "1.pt").communicate(), together(tmp_path, *words, 2, "2.pt")):
        assert done.returncode == 0, done.stderr[-2000:]
    (loss, gradient), (other, same) = (torch.load(tmp_path / f"{number}.pt") for number in (1, 2))
    # The number of images chooses kernels, and a rounding may turn a pixel's sign.
    assert loss.item() == pytest.approx(other.item(), rel=1e-4)
    assert (gradient - same).norm() < 1e-2 * gradient.norm()


@pytest.mark.parametrize("words", [["acl"], ["dynacl", "--objective.ema_decay", "0.9"]], ids=lambda words: words[0])
def test_a_resumed_run_is_the_uninterrupted_one(command, class_folder, tmp_path, words):
    words = [*TINY, "--data.name", class_folder, "--objective.method", *words]
    command("pretrain.py", *words, "--output_dir", "whole", check=0)
    command("pretrain.py", *words, "--output_dir", "parts", "--max_steps", "3", check=0)
    done = command("pretrain.py", *words, "--output_dir", "parts", check=0)
    assert "resumed from parts/checkpoints/step-3" in done.stderr
    a, b = (load_file(tmp_path / name / "checkpoints" / "step-8" / "objective.safetensors") for name in ("whole", "parts"))
    assert any(name.startswith("clean_set.norms.") for name in a)
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    timing = ("images_per_second", "memory_bytes")
    one, two = ([{k: v for k, v in json.loads(line).items() if k not in timing} for line in run] for run in lines)
    assert one == two
    if "dynacl" in words:
        assert [line["strength"] for line in one if "strength" in line][::7] == [1, pytest.approx(1 - 17 / 20)]
    title = "DynACL" if "dynacl" in words else "ACL"
    assert f"pre-trained without labels by {title}" in (tmp_path / "whole" / "README.md").read_text()
    # and another pre-training begins where it ended, with its projector if the method has that
    more = [*TINY, "--data.name", class_folder, "--model.name", "whole", "--max_steps", "1"]
    done = command("pretrain.py", *more, "--objective.method", "acl", "--output_dir", "more", check=0)
    assert "pre-training begins with the projector of whole" in done.stderr
    done = command("pretrain.py", *more, "--objective.method", "rocl", "--output_dir", "other", check=0)
    assert "the projector of whole was made for another method: a new one is learned" in done.stderr
    assert "begins with the projector" not in done.stderr
