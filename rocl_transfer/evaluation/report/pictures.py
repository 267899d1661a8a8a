"""A few samples as the evaluation found them: the very images that broke them, so that no picture says something else than the verdicts."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rocl_transfer.data import Store
from rocl_transfer.evaluation.results import Results
from rocl_transfer.evaluation.samples import pixels_of

MOST = 8


@dataclass(frozen=True)
class Pictures:
    """One row per sample.

    Attributes:
        samples: (n,) positions.
        labels: (n,).
        clean: (n, C, H, W) in [0, 1].
        adversarial: What broke the sample; if nothing did, the clean image.
        clean_answers: (n,).
        adversarial_answers: (n,).
    """

    samples: Tensor
    labels: Tensor
    clean: Tensor
    adversarial: Tensor
    clean_answers: Tensor
    adversarial_answers: Tensor

    def write(self, target: Path) -> None:
        """As safetensors."""
        save_file({name: tensor.cpu().contiguous() for name, tensor in vars(self).items()}, target)


def choose_pictures(images: Store, results: Results, most: int = MOST) -> Pictures | None:
    """Samples to be shown: first those that were right and then broken, of each class in turn, the least robust class first; None without attacks.

    Args:
        images: All images.
        results: What the evaluation of a model on them gave.
        most: How many samples.
    """
    if results.pictured is None:
        return None
    chosen = shown(results, most)
    lines = {line["index"]: line for line in results.verdicts}
    samples = torch.tensor(chosen)
    clean = pixels_of(next(iter(images.batches([samples])))).cpu()
    labels, before = (torch.tensor([lines[sample][name] for sample in chosen]) for name in ("label", "answer"))
    adversarial, after = clean.clone(), before.clone()
    for row, sample in enumerate(chosen):
        if lines[sample]["clean"] and not lines[sample][results.pictured]:
            adversarial[row], after[row] = results.found[sample]
    return Pictures(samples, labels, clean, adversarial, before, after)


def shown(results: Results, most: int = MOST) -> list[int]:
    """The samples of :func:`choose_pictures`: broken ones whose image was kept, then those that stood, then those that were wrong from the start."""
    by_class: dict[int, list[bool]] = defaultdict(list)
    for line in results.verdicts:
        by_class[line["label"]].append(line[str(results.pictured)])
    robust = {label: sum(stood) / len(stood) for label, stood in by_class.items()}
    groups: dict[int, dict[int, list[int]]] = {0: defaultdict(list), 1: defaultdict(list), 2: defaultdict(list)}
    for line in results.verdicts:
        kind = 2 if not line["clean"] else 1 if line[str(results.pictured)] else 0
        if kind or line["index"] in results.found:
            groups[kind][line["label"]].append(line["index"])
    order: list[int] = []
    for classes in groups.values():
        ranked = sorted(classes, key=lambda label: (robust[label], label))
        deepest = max(map(len, classes.values()), default=0)
        order += [classes[label][turn] for turn in range(deepest) for label in ranked if turn < len(classes[label])]
    return order[:most]
