"""Accuracy under attack: float32, eval mode, frozen parameters, random draws seeded for each sample."""

import logging
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from rocl_transfer.attacks import Attack, check_images, check_labels, device_of, frozen, threat_model, untouched
from rocl_transfer.data import Resident, Store
from rocl_transfer.errors import UserError
from rocl_transfer.evaluation.checks import Inspection, inspect_model
from rocl_transfer.evaluation.doubts import Answers, doubts
from rocl_transfer.evaluation.engine import Verdicts, run_attacks
from rocl_transfer.evaluation.journal import Cost, Journal
from rocl_transfer.evaluation.judge import CLEAN, Judge
from rocl_transfer.evaluation.options import Context, SearchOptions
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.evaluation.protocols import Ensemble, named_attacks, parts_of
from rocl_transfer.evaluation.results import Evaluation, Results, attack_key, wilson_interval
from rocl_transfer.evaluation.samples import evenly, pixels_of, positions

log = logging.getLogger("rocl_transfer")

LOOKED_AT = 64  # images that a model is inspected on before it is attacked
BORDERLINE = 1e-3  # of the spread of a sample's logits: a margin that rounding, led through a hundred steps, can turn over
_SEARCH, _ALONE = SearchOptions(), Context()


@torch.inference_mode(False)
def evaluate(
    model: nn.Module, images: Tensor | Store, labels: Tensor, *, attacks: str | Attack | Ensemble | Sequence[Attack | Ensemble] = "standard",
    epsilon: float = 8 / 255, norm: str = "linf", samples: Tensor | None = None, seed: int = 0, search: SearchOptions = _SEARCH,
    context: Context = _ALONE,
) -> Results:  # fmt: skip
    """Clean accuracy, then accuracy under each attack; a sample counts as robust where the model is right on it before and after.

    Everything random in a sample's attacks follows from ``seed`` and its position: verdicts depend neither on the batch size, nor the order, nor
    the number of processes, but for samples whose margin is rounding (``Results.borderline``), and for models whose answer to an image depends on
    the images beside it, which is looked for and said.

    Args:
        model: Images (N, 3, H, W) in [0, 1] -> logits (N, K). Measured in eval mode and left as it came in.
        images: (N, 3, H, W), floats in [0, 1] or uint8, or a store of uint8 images; never written into.
        labels: (N,), whole numbers.
        attacks: A name (see :func:`~rocl_transfer.evaluation.protocols.named_attacks`; ``standard`` is AutoAttack), or attacks.
        epsilon: Radius of named attacks.
        norm: Ball of named attacks: linf, l2 or l1.
        samples: Positions of those measured (default: all).
        seed: Seed of everything random.
        search: How attacks search, how many images are taken at once.
        context: A journal to resume from, processes that share the samples, a bar.

    Raises:
        UserError: Pixels lie outside [0, 1] or are not finite, there are no images, labels do not fit, the model gives no logits (N, K), an argument
            cannot be meant, two different attacks go by one name, or the journal is another evaluation's.
    """
    network = untouched(model, search.one_at_a_time)
    attacks = _checked(attacks, epsilon, norm)
    device = device_of(network, images.device if isinstance(images, Tensor) else labels.device)
    store = images if hasattr(images, "batches") else Resident(check_images(images, bytes_too=True).to(device))
    labels = check_labels(labels, len(store)).to(device)
    samples = positions(samples, len(store))
    rank, world = (0, 1) if context.state is None else (context.state.process_index, context.state.num_processes)
    if len(samples) < world:
        raise UserError(f"{len(samples)} samples cannot be shared by {world} processes: start fewer processes")
    notes = _journal(context, search, seed, rank)
    with full_precision(), frozen(network), torch.no_grad():
        seen = _inspected(network, store, labels, samples, rank) if context.seen is None else context.seen
        if isinstance(attacks, str):
            attacks = named_attacks(attacks, epsilon, norm, seen.classes, search.engine)
        mine = run_attacks(
            Judge(network, labels, notes), store, samples[rank::world], attacks, seed=seed, search=search, pictured=context.pictured,
            progress=context.progress and rank == 0,
        )  # fmt: skip
    notes.close()
    shares: list[Verdicts] = [mine] if world == 1 else gather_object([mine])
    described = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    results = _results(shares, attacks, labels.cpu(), described, seed, search.search_precision, getattr(network.model, "class_names", ()))
    results.warnings, results.precision = seen.warnings, seen.precision
    if attacks:
        results.pictured = attack_key(attacks[context.pictured])
        results.found = {sample: kept for share in shares for sample, kept in share.found.items()}
    if context.say_doubts and rank == 0:
        for doubt in results.doubts:
            log.warning("doubt: %s", doubt)
    return results


def _checked(attacks: str | Attack | Ensemble | Sequence[Attack | Ensemble], epsilon: float, norm: str) -> str | Sequence[Attack | Ensemble]:
    """The attacks, once what the arguments say can be meant."""
    if isinstance(attacks, str):
        threat_model(norm, epsilon)
        return attacks
    several = [attacks] if isinstance(attacks, Attack | Ensemble) else list(attacks)
    if odd := next((attack for attack in several if not isinstance(attack, Attack | Ensemble)), None):
        raise UserError(f"attacks has {odd!r} in it: give one name, such as 'standard', or attacks, such as [PGD(8 / 255)]")
    require_told_apart(several)
    return several


def require_told_apart(attacks: Sequence[Attack | Ensemble]) -> None:
    """Refuse different attacks that verdicts would call alike; a part of an ensemble stands for itself and all parts before.

    Args:
        attacks: Those that one evaluation runs; equal ones may be among them.

    Raises:
        UserError: There are such.
    """
    called: dict[str, list[Attack]] = {}
    for attack in attacks:
        parts = parts_of(attack)
        for key, made in [*((attack_key(part), parts[: number + 1]) for number, part in enumerate(parts)), (attack_key(attack), parts)]:
            before = called.setdefault(key, list(made))
            if len(before) != len(made) or not all(one.alike(other) for one, other in zip(before, made, strict=True)):
                raise UserError(f"two attacks go by the name {key!r}, {_said(before)} and {_said(made)}: evaluate each in a call of its own")


def _said(parts: Sequence[Attack]) -> str:
    conditions = ", ".join(f"{name} {value}" for name, value in parts[-1].conditions().items())
    after = f" after {', '.join(part.name for part in parts[:-1])}" if len(parts) > 1 else ""
    return f"one{after} ({conditions})"


def _journal(context: Context, search: SearchOptions, seed: int, rank: int) -> Journal:
    """Where findings are written down; those of another seed or another search are another evaluation's."""
    how = {"engine": search.engine, "search precision": search.search_precision, "one at a time": search.one_at_a_time}
    return Journal(context.journal, {**context.identity, "seed": seed, **how}, rank)


def _inspected(network: nn.Module, store: Store, labels: Tensor, samples: Tensor, rank: int) -> Inspection:
    """What is seen of the network on a few of the samples; the log says what is wrong with it."""
    few = evenly(samples, LOOKED_AT)
    seen = inspect_model(network, pixels_of(next(iter(store.batches([few])))), labels[few.to(labels.device)])
    for warning in seen.warnings if rank == 0 else ():
        log.info("note: %s", warning)
    return seen


def _results(
    shares: Sequence[Verdicts], attacks: Sequence[Attack | Ensemble], labels: Tensor, device: str, seed: int, precision: str, names: Sequence[str]
) -> Results:  # fmt: skip
    """One record of what all processes found."""
    samples = torch.cat([share.samples for share in shares])
    order = samples.argsort()
    standing = {name: torch.cat([share.standing[name] for share in shares])[order] for name in shares[0].standing}
    margins = torch.cat([share.margin for share in shares])[order].tolist()
    answers = torch.cat([share.answers for share in shares])[order]
    truth = labels[samples[order]]
    broken_by = [name for share in shares for name in share.broken_by]
    verdicts: list[dict[str, Any]] = []
    columns = {name: rows.tolist() for name, rows in standing.items()}
    for row, sample in enumerate(samples[order].tolist()):
        line: dict[str, Any] = {
            "index": sample,
            "label": int(labels[sample]),
            "answer": int(answers[row]),
            **{name: column[row] for name, column in columns.items()},
        }
        by = broken_by[int(order[row])]
        verdicts.append({**line, **({"broken_by": by} if by else {}), "margin": round(margins[row], 6)})
    costs = {name: reduce(Cost.beside, (share.costs[name] for share in shares)) for name in shares[0].costs}
    evaluations = [_evaluation("clean", standing[CLEAN], costs[CLEAN])]
    rough = {} if precision == "fp32" else {"search_precision": precision}
    for attack in attacks:
        for part in parts_of(attack):
            conditions = {"norm": part.norm, "epsilon": float(part.epsilon), **part.conditions(), **rough}
            evaluations.append(_evaluation(part.name, standing[attack_key(part)], costs[attack_key(part)], **conditions))
        if isinstance(attack, Ensemble):
            whole = sum((costs[attack_key(part)] for part in attack.attacks), Cost())
            version = f"{attack.version}, searched in {precision}" if rough else attack.version
            conditions = {"norm": attack.norm, "epsilon": attack.epsilon, "version": version}
            evaluations.append(_evaluation(attack.name, standing[attack_key(attack)], whole, **conditions))
    said = Answers(truth.numpy(), {name: rows.numpy() for name, rows in standing.items()}, shares[0].classes, answers.numpy(), names)
    return Results(evaluations, verdicts, device, seed, refuted=sum(share.refuted for share in shares), doubts=doubts(said))


def _evaluation(name: str, standing: Tensor, cost: Cost, **conditions: Any) -> Evaluation:
    right, n = int(standing.sum()), len(standing)
    return Evaluation(
        name=name, **conditions, accuracy=right / n, interval=wilson_interval(right, n), n=n, seconds=round(cost.seconds, 3),
        passes=None if math.isnan(cost.passes) else round(cost.passes / n, 1),
    )  # fmt: skip


def borderline(results: Results) -> dict[str, Any]:
    """The samples whose lowest margin is so small that rounding decides, which differs between batch sizes and machines."""
    unsure = [line["index"] for line in results.verdicts if line.get("broken_by") != CLEAN and abs(line["margin"]) < BORDERLINE]
    return {"count": len(unsure), "indices": unsure, "tolerance": BORDERLINE}
