"""Everything that makes a robustness number believable: what is attacked beside the headline, and what follows from it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from rocl_transfer.attacks import APGD, PGD, Attack, frozen
from rocl_transfer.attacks.transfer import Transfer
from rocl_transfer.bars import Bar
from rocl_transfer.data import Store
from rocl_transfer.evaluation.checks import Inspection
from rocl_transfer.evaluation.evaluate import evaluate
from rocl_transfer.evaluation.options import Context, SearchOptions
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.evaluation.protocols import RESTARTS, Ensemble, named_attacks
from rocl_transfer.evaluation.report.corruptions import CORRUPTIONS, corrupt
from rocl_transfer.evaluation.report.masking import Evidence, masking_checks, verdict
from rocl_transfer.evaluation.report.smoothing import Smoothed, Smoothing
from rocl_transfer.evaluation.results import Evaluation, Results, attack_key, verdict_key
from rocl_transfer.evaluation.samples import evenly, pixels_of

log = logging.getLogger("rocl_transfer")

CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # times the headline's radius
EXPECTED_TO = 2.0  # times the headline's radius: as far as expected robustness is averaged
SMOOTHED_SAMPLES = 200  # a smoothed attack costs as many passes as there are draws


def scaled(norm: str, epsilon: float, factor: float) -> float:
    """``factor`` times the radius; in L-inf no more than 1, beyond which nothing is left to be changed."""
    return min(factor * epsilon, 1.0) if norm == "linf" else factor * epsilon


def radii(norm: str, epsilon: float) -> list[float]:
    """Radii of the curve, each once."""
    return list(dict.fromkeys(scaled(norm, epsilon, factor) for factor in CURVE))


def huge(norm: str, epsilon: float, size: int) -> float:
    """A radius at which any image can be made any other's class without being it: 64/255, and what is as long in the other norms."""
    side = 64 / 255
    return max({"linf": side, "l2": side * size, "l1": side * size * size}[norm], scaled(norm, epsilon, 2))


def unseen(norm: str, epsilon: float, size: int) -> list[tuple[str, float]]:
    """Balls that a model trained for the headline's has not seen: twice the radius, and the other norms at the literature's radii for 32 px."""
    others = {"linf": 8 / 255, "l2": 0.5 * size / 32, "l1": 12 * size / 32}
    return [(norm, scaled(norm, epsilon, 2)), *((other, radius) for other, radius in others.items() if other != norm)]


def report_attacks(
    headline: Attack | Ensemble, size: int, classes: int, surrogates: Mapping[str, tuple[nn.Module, str]]
) -> list[Attack | Ensemble]:  # fmt: skip
    """What a full report runs beside the headline's ensemble."""
    epsilon, norm = float(headline.epsilon), headline.norm
    attacks: list[Attack | Ensemble] = [
        headline,
        PGD(epsilon, norm=norm, step_size=epsilon, steps=1),
        PGD(epsilon, norm=norm, steps=50, restarts=10),
        *(PGD(radius, norm=norm, steps=20) for radius in radii(norm, epsilon)),
        APGD(huge(norm, epsilon, size), norm, restarts=RESTARTS[norm]),  # as in an ensemble of that radius
        *(Transfer(model, APGD(epsilon, norm), f"transfer from {name}", sha) for name, (model, sha) in surrogates.items()),
    ]
    return attacks + [ensemble for ball, radius in unseen(norm, epsilon, size) for ensemble in named_attacks("fast", radius, ball, classes)]


def assemble(
    results: Results, headline: Ensemble, size: int, class_names: Sequence[str], seen: Inspection, surrogates: Mapping[str, tuple[nn.Module, str]]
) -> dict[str, Any]:
    """What follows from the verdicts: classes, curve, expected robustness, masking.

    Args:
        results: From :func:`report_attacks`.
        headline: Its first.
        size: Side of the images.
        class_names: One per label.
        seen: What inspecting the model gave.
        surrogates: By name, models and the SHA-256s of their weights.
    """
    epsilon, norm = headline.epsilon, headline.norm
    curve = [results["pgd-20", radius] for radius in radii(norm, epsilon)]
    expected_to = scaled(norm, epsilon, EXPECTED_TO)
    points = [(0.0, results["clean"]), *((float(e.epsilon or 0), e) for e in curve)]
    transfers = [results[f"transfer from {name}"] for name in surrogates]
    evidence = Evidence(
        inspection=seen, clean=results["clean"], pgd=results["pgd-20", epsilon], strong=results["pgd-50x10", epsilon],
        one_step=results["pgd-1", epsilon], ensemble=results[headline.name, epsilon],
        gradient=results["fab-t", epsilon] if headline.attacks[-1].name == "square" else None,
        curve=curve, huge=results["apgd-ce", huge(norm, epsilon, size)], transfers=transfers,
        missed=[_missed(results, verdict_key(e.name, norm, epsilon), verdict_key("pgd-50x10", norm, epsilon)) for e in transfers],
    )  # fmt: skip
    checks = masking_checks(evidence)
    classes = _classes(results, attack_key(headline), class_names)
    worst = min((entry for entry in classes if entry["n"]), key=lambda entry: entry["robust"])
    return {
        "headline": {"name": headline.name, "norm": norm, "epsilon": epsilon},
        "classes": classes,
        "worst_class": {"name": worst["name"], "robust": worst["robust"]},
        "curve": [{"epsilon": radius, "accuracy": e.accuracy, "interval": e.interval} for radius, e in points],
        "curve_attack": f"pgd-20 {norm}",
        "expected_robustness": _mean_over([(r / epsilon, e.accuracy) for r, e in points if r <= expected_to * (1 + 1e-9)]),
        "expected_to": expected_to,
        "transfer": [
            {"surrogate": name, "sha256": sha, "accuracy": e.accuracy, "interval": e.interval, "n": e.n}
            for (name, (_, sha)), e in zip(surrogates.items(), transfers, strict=True)
        ],
        "masking": {"verdict": verdict(checks), "checks": [asdict(check) for check in checks]},
    }


def _missed(results: Results, transfer: str, strong: str) -> int:
    return sum(line[strong] and not line[transfer] for line in results.verdicts)


def _classes(results: Results, robust: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    entries = []
    for label, name in enumerate(class_names):
        lines = [line for line in results.verdicts if line["label"] == label]
        shares = {column: sum(line[k] for line in lines) / len(lines) if lines else 0.0 for column, k in (("clean", "clean"), ("robust", robust))}
        entries.append({"name": name, "n": len(lines), **shares})
    return entries


def _mean_over(points: Sequence[tuple[float, float]]) -> float:
    """Area below a curve of (place, value), by trapezoids, per length."""
    area = sum((b - a) * (v + w) / 2 for (a, v), (b, w) in pairwise(points))
    return float(area / (points[-1][0] - points[0][0]))


@torch.no_grad()
def measure_corruptions(
    model: nn.Module, images: Store, labels: Tensor, samples: Tensor, seed: int, batch_size: int, state: PartialState
) -> dict[str, list[float]]:
    """Accuracy under each of the common corruptions, at severities 1 to 5; each image's noise has its own seed."""
    mine = samples[state.process_index :: state.num_processes]
    right = torch.zeros(len(CORRUPTIONS), 5, dtype=torch.float64, device=labels.device)
    bar = Bar(len(mine), "corruptions", shown=state.is_main_process)
    with full_precision(), frozen(model):
        plan = mine.split(batch_size)
        for chosen, batch in zip(plan, images.batches(plan), strict=True):
            pixels, truth = pixels_of(batch), labels[chosen.to(labels.device)]
            for row, name in enumerate(CORRUPTIONS):
                for severity in range(1, 6):
                    answers = model(corrupt(pixels, name, severity, [seed * 1_000_003 + int(i) for i in chosen])).argmax(1)
                    right[row, severity - 1] += (answers == truth).sum()
                    bar.update(len(chosen) / (5 * len(CORRUPTIONS)))
    bar.close()
    if state.num_processes > 1:
        torch.distributed.all_reduce(right)
    return {name: [round(share, 6) for share in row] for name, row in zip(CORRUPTIONS, (right / len(samples)).tolist(), strict=True)}


def measure_smoothed(
    model: nn.Module,
    smoothing: Smoothing,
    images: Store,
    labels: Tensor,
    samples: Tensor,
    headline: Ensemble,
    search: SearchOptions,
    context: Context,
) -> dict[str, Any]:
    """Smoothed inference: clean, under the ordinary attack on the model itself, and under the attack through the expectation (EoT).

    Args:
        model: Images (N, 3, H, W) in [0, 1] -> logits (N, K).
        smoothing: Over which views.
        images: All images.
        labels: (all,), whole numbers.
        samples: Positions; of more than 200, 200 at equal distances are measured.
        headline: Its ball is attacked, by PGD-20.
        search: How attacks search.
        context: Its identity need not name the smoothing.
    """
    attack = PGD(headline.epsilon, steps=20, norm=headline.norm)
    few = evenly(samples, SMOOTHED_SAMPLES)
    smoothed = Smoothed(model, smoothing.view, smoothing.draws, smoothing.seed)
    identity = {**context.identity, "smoothed": smoothing.words, "draws": smoothing.draws}
    results = evaluate(
        smoothed, images, labels, samples=few, attacks=[Transfer(model, attack, "ordinary"), attack], seed=smoothing.seed, search=search,
        context=replace(context, identity=identity),
    )  # fmt: skip

    def share(entry: Evaluation) -> dict[str, Any]:
        return {"accuracy": entry.accuracy, "interval": entry.interval}

    return {
        "draws": smoothing.draws, "transformations": smoothing.words, "n": len(few), "attack": attack_key(attack), "clean": share(results["clean"]),
        "ordinary": share(results["ordinary"]), "eot": share(results[attack.name]), "doubts": results.doubts,
    }  # fmt: skip


def say_report(report: Mapping[str, Any]) -> None:
    """Log what a record's ``report`` has beside the accuracies: how many verdicts rounding may decide; of a full one, masking and smoothing."""
    unsure = report["borderline"]
    log.info("samples whose verdict may hang on rounding (margin below %g of the spread of logits): %d", unsure["tolerance"], unsure["count"])
    if "masking" in report:
        log.info("gradient masking: %s", report["masking"]["verdict"])
        for check in report["masking"]["checks"]:
            log.info("  %s %s: %s", {True: "ok  ", False: "FAIL", None: "open"}[check["passed"]], check["name"], check["detail"])
        shares = (100 * report["smoothed"][name]["accuracy"] for name in ("clean", "ordinary", "eot"))
        log.info("smoothed inference: %.1f %% clean, %.1f %% under the ordinary attack, %.1f %% under EoT", *shares)
