"""Accuracy under attack: float32, eval mode, frozen parameters, random draws seeded for each sample."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from rocl_transfer.attacks import Attack, check_images, check_labels, device_of, frozen, threat_model, untouched
from rocl_transfer.data import Resident, Store
from rocl_transfer.errors import UserError, did_you_mean
from rocl_transfer.evaluation.checks import Inspection, inspect_model
from rocl_transfer.evaluation.doubts import Answers, doubts
from rocl_transfer.evaluation.engine import CLEAN, Engine, Verdicts, key, pixels_of
from rocl_transfer.evaluation.journal import Journal
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.evaluation.protocols import Ensemble, named_attacks, parts_of
from rocl_transfer.evaluation.results import Evaluation, Results, wilson_interval

log = logging.getLogger("rocl_transfer")

LOOKED_AT = 64  # images that a model is inspected on before it is attacked
BORDERLINE = 1e-3  # of the spread of a sample's logits: a margin that rounding, led through a hundred steps, can turn over


@torch.inference_mode(False)
def evaluate(
    model: nn.Module,
    images: Tensor | Store,
    labels: Tensor,
    *,
    attacks: str | Attack | Ensemble | Sequence[Attack | Ensemble] = "paper",
    epsilon: float = 8 / 255,
    norm: str = "linf",
    samples: Tensor | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    engine: str = "native",
    compiled: bool = False,
    search_precision: str = "fp32",
    journal: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    state: PartialState | None = None,
    progress: bool = False,
    say_doubts: bool = True,
    seen: Inspection | None = None,
    one_at_a_time: bool = False,
    pictured: int = 0,
) -> Results:
    """Clean accuracy, then accuracy under each attack; a sample counts as robust where the model is right on it before and after.

    Everything random in a sample's attacks follows from ``seed`` and its position: verdicts depend neither on the batch size, nor the order, nor
    the number of processes, but for samples whose margin is rounding (``Results.borderline``), and for models whose answer to an image depends on
    the images beside it, which is looked for and said.

    Args:
        model: Images (N, 3, H, W) in [0, 1] -> logits (N, K). Measured in eval mode and left as it came in.
        images: (N, 3, H, W), floats in [0, 1] or uint8, or a store of uint8 images; never written into.
        labels: (N,), whole numbers.
        attacks: A name (see :func:`~rocl_transfer.evaluation.protocols.named_attacks`), or attacks.
        epsilon: Radius of named attacks.
        norm: Ball of named attacks: linf, l2 or l1.
        samples: Positions of those measured (default: all).
        batch_size: Images at once (default: by their pixels, and where much is to be done measured).
        seed: Of shares random.
        engine: native, or reference (pyautoattack).
        compiled: Compile the network that is searched on.
        search_precision: fp32; or bf16, for devices with units for it: attacks then search with bf16 passes, the model itself judges every success
            in float32, and the results say so.
        journal: Folder in which every finding is written down; what it holds already is not searched again.
        identity: What the journal's findings belong to.
        state: Accelerate's, where several processes share the samples; each returns the whole.
        progress: Show a bar.
        say_doubts: Log what makes the accuracies doubtful; ``Results.doubts`` has it in any case.
        seen: What :func:`~rocl_transfer.evaluation.checks.inspect_model` saw of the model (default: it is called here, its warnings are logged).
        one_at_a_time: Show the model one image a pass: slow, and the only way to one answer of a model that mixes the images of a batch.
        pictured: Which of the attacks keeps a few of the images that it finds, to be shown (``Results.found``).

    Raises:
        UserError: Pixels lie outside [0, 1] or are not finite, there are no images, labels do not fit, the model gives no logits (N, K), an argument
            cannot be meant, or the journal is another evaluation's.
    """
    network = untouched(model, one_at_a_time)
    attacks = _checked(attacks, epsilon, norm, batch_size, engine, search_precision)
    given = images.device if isinstance(images, Tensor) else labels.device
    device = device_of(network, given)
    store = images if hasattr(images, "stream") else Resident(check_images(images, bytes_too=True).to(device))
    labels = check_labels(labels, len(store)).to(device)
    samples = _positions(samples, len(store))
    rank, world = (0, 1) if state is None else (state.process_index, state.num_processes)
    if len(samples) < world:
        raise UserError(f"{len(samples)} samples cannot be shared by {world} processes: start fewer processes")
    alone = {"one at a time": one_at_a_time}
    notes = Journal(journal, {**(identity or {}), "seed": seed, "engine": engine, "search precision": search_precision, **alone}, rank)
    with full_precision(), frozen(network), torch.no_grad():
        if seen is None:
            few = samples[torch.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).long()]
            seen = inspect_model(network, pixels_of(next(iter(store.stream([few])))), labels[few.to(device)])
            for warning in seen.warnings if rank == 0 else ():
                log.info("note: %s", warning)
        if isinstance(attacks, str):
            attacks = named_attacks(attacks, epsilon, norm, seen.classes, engine)
        runner = Engine(
            network, store, labels, samples[rank::world], seed=seed, journal=notes, batch_size=batch_size, compiled=compiled,
            precision=search_precision, plain=engine == "reference", pictured=pictured, progress=progress and rank == 0,
        )  # fmt: skip
        mine = runner.run(attacks)
    notes.close()
    shares: list[Verdicts] = [mine] if world == 1 else gather_object([mine])
    described = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    results = _results(shares, attacks, labels.cpu(), described, seed, search_precision, getattr(network.model, "class_names", ()))
    results.warnings, results.precision = seen.warnings, seen.precision
    if attacks:
        results.pictured, results.found = key(attacks[pictured]), {sample: kept for share in shares for sample, kept in share.found.items()}
    if say_doubts and rank == 0:
        for doubt in results.doubts:
            log.warning("doubt: %s", doubt)
    return results


def _checked(
    attacks: str | Attack | Ensemble | Sequence[Attack | Ensemble], epsilon: float, norm: str, batch_size: int | None, engine: str, precision: str
) -> str | Sequence[Attack | Ensemble]:  # fmt: skip
    """The attacks, once what the arguments say can be meant."""
    for what, value, known in (("engine", engine, ("native", "reference")), ("search_precision", precision, ("fp32", "bf16"))):
        if value not in known:
            raise UserError(f"{what} is {value!r}{did_you_mean(str(value), known)}: give {' or '.join(known)}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: give 1 or more, or None to have it measured")
    if isinstance(attacks, str):
        threat_model(norm, epsilon)
        return attacks
    several = [attacks] if isinstance(attacks, Attack | Ensemble) else list(attacks)
    if odd := next((attack for attack in several if not isinstance(attack, Attack | Ensemble)), None):
        raise UserError(f"attacks has {odd!r} in it: give one name, such as 'standard', or attacks, such as [PGD(8 / 255)]")
    return several


def _positions(samples: Tensor | None, count: int) -> Tensor:
    """Of the images that are measured."""
    if samples is None:
        return torch.arange(count)
    samples = torch.as_tensor(samples).cpu()
    whole = samples.ndim == 1 and len(samples) and samples.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
    if not whole or samples.min() < 0 or samples.max() >= count or len(samples.unique()) < len(samples):
        raise UserError(f"samples are no positions of {count} images: give different whole numbers from 0 to {count - 1}")
    return samples.long()


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
    seconds = {name: max(share.seconds[name] for share in shares) for name in shares[0].seconds}
    evaluations = [_evaluation("clean", standing[CLEAN], seconds[CLEAN])]
    rough = {} if precision == "fp32" else {"search_precision": precision}
    for attack in attacks:
        for part in parts_of(attack):
            conditions = {"norm": part.norm, "epsilon": float(part.epsilon), **part.conditions(), **rough}
            evaluations.append(_evaluation(part.name, standing[key(part)], seconds[key(part)], **conditions))
        if isinstance(attack, Ensemble):
            spent = sum(seconds[key(part)] for part in attack.attacks)
            version = f"{attack.version}, searched in {precision}" if rough else attack.version
            conditions = {"norm": attack.norm, "epsilon": attack.epsilon, "version": version}
            evaluations.append(_evaluation(attack.name, standing[key(attack)], spent, **conditions))
    said = Answers(truth.numpy(), {name: rows.numpy() for name, rows in standing.items()}, shares[0].classes, answers.numpy(), names)
    return Results(evaluations, verdicts, device, seed, refuted=sum(share.refuted for share in shares), doubts=doubts(said))


def _evaluation(name: str, standing: Tensor, seconds: float, **conditions: Any) -> Evaluation:
    right, n = int(standing.sum()), len(standing)
    return Evaluation(name=name, **conditions, accuracy=right / n, interval=wilson_interval(right, n), n=n, seconds=round(seconds, 3))


def borderline(results: Results) -> dict[str, Any]:
    """The samples whose lowest margin is so small that rounding decides, which differs between batch sizes and machines."""
    unsure = [line["index"] for line in results.verdicts if line.get("broken_by") != CLEAN and abs(line["margin"]) < BORDERLINE]
    return {"count": len(unsure), "indices": unsure, "tolerance": BORDERLINE}
