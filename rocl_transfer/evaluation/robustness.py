"""Accuracy under attack: float32, eval mode, frozen parameters, a random start seeded for each sample."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rocl_transfer.attacks import PGD, frozen
from rocl_transfer.data import Resident, Store, derive_seed, generators
from rocl_transfer.errors import UserError, did_you_mean
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.evaluation.results import Evaluation, Results, wilson_interval


def named_attacks(name: str, epsilon: float, norm: str = "linf") -> list[PGD]:
    """The attacks that go by one name: ``paper`` is RoCL's PGD-20 with steps of epsilon / 10.

    Raises:
        UserError: There is no such name.
    """
    known = {"paper": [PGD(epsilon, steps=20, norm=norm)]}
    if name not in known:
        raise UserError(f"there are no attacks {name!r}{did_you_mean(name, known)}: give {' or '.join(known)}")
    return known[name]


def evaluate(
    model: nn.Module,
    images: Tensor | Store,
    labels: Tensor,
    *,
    attacks: str | Sequence[PGD] = "paper",
    epsilon: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Results:
    """Clean accuracy, then accuracy under each attack; a sample counts as robust where the model is right on it before and after.

    Each sample's random start has its own seed, so the verdicts do not depend on the batch size.

    Args:
        model: Images (N, 3, H, W) in [0, 1] -> logits (N, K). Measured in eval mode and left as it came in.
        images: (N, 3, H, W), float in [0, 1] or uint8, or a store of uint8 images.
        labels: (N,), int64.
        attacks: A name (see :func:`named_attacks`), or attacks.
        epsilon: Radius of named attacks.
        norm: Ball of named attacks.
        batch_size: Images at once.
        seed: Of the random starts.
        progress: Show a bar.

    Raises:
        UserError: Pixels lie outside [0, 1] or are not finite, there are no images, or labels do not fit.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    chosen = named_attacks(attacks, epsilon, norm) if isinstance(attacks, str) else list(attacks)
    store = Resident(images.to(device)) if isinstance(images, Tensor) else images
    if not len(store) or len(store) != len(labels):
        raise UserError(f"{len(store)} images and {len(labels)} labels were given: give one label an image, and at least one")
    labels = labels.to(device)
    with full_precision(), frozen(model), torch.no_grad():
        right, seconds = _verdicts(model, store, labels, chosen, batch_size, seed, progress)
    verdicts: list[dict[str, Any]] = [{"index": i, "label": label} for i, label in enumerate(labels.tolist())]
    evaluations = []
    for attack, row, spent in zip([None, *chosen], right.cpu(), seconds, strict=True):
        evaluations.append(_evaluation(attack, int(row.sum()), len(row), spent))
        key = "clean" if attack is None else f"{_name(attack)} {attack.norm} {attack.epsilon:.6g}"
        for line, verdict in zip(verdicts, row.tolist(), strict=True):
            line[key] = verdict
    described = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Results(evaluations, verdicts, described, seed)


def _verdicts(
    model: nn.Module, store: Store, labels: Tensor, attacks: Sequence[PGD], batch_size: int, seed: int, progress: bool
) -> tuple[Tensor, list[float]]:
    """Right or wrong, (1 + attacks, N), clean first; and the seconds each row took."""
    right = torch.zeros(1 + len(attacks), len(store), dtype=torch.bool, device=labels.device)
    seconds = [0.0] * len(right)
    plan = torch.arange(len(store)).split(batch_size)
    bar = tqdm(total=len(store) * len(right), unit="image", disable=not progress, dynamic_ncols=True)
    for chosen, batch in zip(plan, store.stream(plan), strict=True):
        images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
        if not (images.min() >= 0 and images.max() <= 1):
            raise UserError("images have pixels outside [0, 1]: leave the normalisation to the model, epsilon is in pixel units")
        positions = chosen.to(labels.device)
        for row, attack in enumerate([None, *attacks]):
            began = time.perf_counter()
            alive = torch.arange(len(chosen)) if attack is None else torch.nonzero(right[0, positions]).flatten().cpu()
            if len(alive):
                inputs, truth = images[alive.to(images.device)], labels[positions[alive.to(labels.device)]]
                if attack is not None:
                    seeds = [derive_seed(seed, index) for index in chosen[alive].tolist()]
                    inputs = attack(model, inputs, truth, generators(seeds, "attack", images.device))
                logits = model(inputs)
                if truth.min() < 0 or truth.max() >= logits.shape[1]:
                    raise UserError(f"labels run from {int(truth.min())} to {int(truth.max())}, the model has {logits.shape[1]} classes, 0 and up")
                right[row, positions[alive.to(labels.device)]] = logits.argmax(1) == truth
            seconds[row] += time.perf_counter() - began
            bar.update(len(chosen))
    bar.close()
    return right, seconds


def _name(attack: PGD) -> str:
    return f"pgd-{attack.steps}"


def _evaluation(attack: PGD | None, right: int, n: int, seconds: float) -> Evaluation:
    measured: dict[str, Any] = {"accuracy": right / n, "interval": wilson_interval(right, n), "n": n, "seconds": round(seconds, 3)}
    if attack is None:
        return Evaluation(name="clean", **measured)
    conditions: dict[str, Any] = {
        "norm": attack.norm,
        "epsilon": attack.epsilon,
        "steps": attack.steps,
        "step_size": attack.step_size,
        "restarts": 1,
    }
    return Evaluation(name=_name(attack), **conditions, **measured)
