"""Image files or folders in; class, probability and, for each image, the smallest epsilon at which PGD changes the answer.

    python recipes/predict.py --model.name runs/probe path/to/images [--output predictions.csv]

Prints a table or writes a CSV. The images are brought to the model's size as in training: shorter side scaled, centre crop. An image that cannot
be read has a row that says so; the others are done, and the status is 2.
"""

import csv
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from rocl_transfer.bars import Bar
from rocl_transfer.config import ClassifierConfig, command_line
from rocl_transfer.data.decode import examine
from rocl_transfer.data.inventory import image_extensions, take_inventory
from rocl_transfer.data.value_range import ValueRange
from rocl_transfer.errors import UserError, path_of
from rocl_transfer.evaluation import FlipOptions, smallest_epsilon
from rocl_transfer.evaluation.precision import full_precision
from rocl_transfer.hub import load_classifier
from rocl_transfer.models import PixelModel
from rocl_transfer.options import require, require_untouched, was_given

log = logging.getLogger("rocl_transfer")


@dataclass(frozen=True)
class Row:
    """What is said of one image; empty if it could not be read."""

    image: Path
    answer: str = ""
    probability: float | None = None
    flips_at: float | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(FlipOptions):
    """The classes of images, and for each image the smallest epsilon at which PGD changes the answer.

    Args:
        images: Image files, and folders, in which images are looked for at every depth.
        model: Which classifier; its image size and normalisation come with it.
        output: CSV file to write, replacing one that is there (default: print a table).
        robustness: Look for the smallest epsilon that changes the answer; a stronger attack may need less. Without it only the classes are given.
        batch_size: Images at once; the answers do not depend on it.
        seed: For the random start, the same for every image, so that its row does not depend on the others.
    """

    images: tuple[str, ...] = field(metadata={"positional": "image files or folders"})
    model: ClassifierConfig
    output: str | None = None
    robustness: bool = True
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.images) > 0 and all(self.images), "an image's name is empty: name image files or folders")
        csv = self.output is None or self.output.lower().endswith(".csv")
        require(csv, f"--output is {self.output}: what is written is CSV, so name a file such as predictions.csv")
        if not self.robustness:
            require_untouched(self, ("norm", "steps", "max_epsilon", "seed"), "with --robustness false")
        given = self.norm != "l2" or was_given(self.max_epsilon, PredictConfig.max_epsilon)
        require(given, "the default --max_epsilon is meant for linf: give a radius with l2, such as 2 at 32 px")
        require(self.batch_size > 0, f"--batch_size is {self.batch_size}: it must be 1 or more")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}: give 0 or more, below 2**32")


def main(config: PredictConfig) -> list[Row]:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes > 1:
        raise UserError(f"{state.num_processes} processes were launched and only one is used: start it with python recipes/predict.py")
    paths = find_images(config.images)
    output = None if config.output is None else writable(path_of(config.output))
    model = load_classifier(config.model.name, config.model.sha256).to(state.device)
    log.info("images: %d, classes: %d, size: %d px, on %s", len(paths), len(model.class_names), model.input_size, state.device.type)

    rows: list[Row] = []
    with Bar(len(paths), "predicting") as bar:
        for row in predict(model, paths, state.device, config):
            rows.append(row)
            bar.update()
    if output is None:
        print(table(rows, config))
    else:
        write(rows, output, config.robustness)
        log.info("predictions: %s", output)
    if broken := [row for row in rows if row.error]:
        raise UserError(f"{len(broken)} of {len(rows)} images could not be read, the first is {broken[0].image}: repair or remove them")
    return rows


def find_images(names: Sequence[str]) -> list[Path]:
    """The files named, and the images below the folders named, each once."""
    paths: list[Path] = []
    for path in (path_of(name) for name in names):
        if not path.exists():
            raise UserError(f"there is no file or folder {path}: check the path")
        if not path.is_dir():
            paths.append(path)
            continue
        try:
            found = take_inventory(path)
        except OSError as error:
            raise UserError(f"the folder {error.filename} cannot be read ({error.strerror}): change its permissions or leave it out") from error
        for note in found.notes(path):
            log.info("%s: %s", path, note)
        if not found.images:
            known = ", ".join(sorted(image_extensions())[:6])
            raise UserError(f"{path} has no images ({known}, ...): name another folder, or the files themselves")
        paths += found.images
    return list(dict.fromkeys(paths))


def writable(path: Path) -> Path:
    """``path``, once it is sure that a file can be written there."""
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a file in it, such as {path / 'predictions.csv'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}): choose another file") from error
    return path


def predict(model: PixelModel, paths: Sequence[Path], device: torch.device, config: PredictConfig) -> Iterator[Row]:
    """A row for each image, in order."""
    odd: dict[str, list[Path]] = {}
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for start in range(0, len(paths), config.batch_size):
            part = paths[start : start + config.batch_size]
            decoded = list(pool.map(lambda path: read(path, model.input_size, model.value_range, odd), part))
            readable = [image for image in decoded if isinstance(image, Tensor)]
            answers = iter(answer(model, torch.stack(readable).to(device).float() / 255, config)) if readable else iter(())
            for path, image in zip(part, decoded, strict=True):
                yield Row(path, *next(answers)) if isinstance(image, Tensor) else Row(path, error=image)
    for oddity, found in sorted(odd.items()):
        log.info("%d of %d images %s %s; %s", len(found), len(paths), "is" if len(found) == 1 else "are", oddity, min(found))


def read(path: Path, size: int, values: dict[str, list[float]] | None, odd: dict[str, list[Path]]) -> Tensor | str:
    """The image as the model takes it, or why it cannot be read; what is odd about it joins ``odd``."""
    try:
        image, oddities = examine(path, size, "this", ValueRange.given(values))
    except UserError as error:
        return str(error)
    for oddity in oddities:
        odd.setdefault(oddity, []).append(path)
    return image


def answer(model: PixelModel, images: Tensor, config: PredictConfig) -> list[tuple[str, float, float | None]]:
    """Class, probability and smallest epsilon of each image."""
    with full_precision(), torch.no_grad():
        probability, label = model(images).softmax(1).max(1)
    epsilons: list[float | None] = [None] * len(images)
    if config.robustness:
        epsilons = smallest_epsilon(model, images, label, config, seed=[config.seed] * len(images)).tolist()
    names = [model.class_names[index] for index in label.tolist()]
    return list(zip(names, probability.tolist(), epsilons, strict=True))


def write(rows: Sequence[Row], path: Path, robustness: bool) -> None:
    """Write the CSV, complete or not at all; ``inf`` stands where no epsilon changed the answer."""
    aside = path.with_name(f".{path.name}.part")
    # Names of files are bytes: what is no UTF-8 goes through as it is.
    with aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "class", "probability", *(["flips_at"] if robustness else []), "error"])
        for row in rows:
            numbers = [row.probability, row.flips_at] if robustness else [row.probability]
            writer.writerow([row.image, row.answer, *("" if number is None else f"{number:.6g}" for number in numbers), row.error])
    aside.replace(path)


def table(rows: Sequence[Row], config: PredictConfig) -> str:
    """The rows, aligned; the column of errors only if there are any."""
    cells = [("image", "class", "probability", "flips_at", "error"), *(cell(row, config.max_epsilon) for row in rows)]
    shown = [0, 1, 2, *([3] if config.robustness else []), *([4] if any(row.error for row in rows) else [])]
    width = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = ["  ".join(line[i].rjust(width[i]) if i in (2, 3) else line[i].ljust(width[i]) for i in shown).rstrip() for line in cells]
    if any(row.flips_at is not None for row in rows):
        lines += [
            "",
            f"flips_at: the smallest {config.norm} epsilon (pixels in [0, 1]) found at which PGD-{config.steps} changes the answer.",
            "It is an upper bound: a stronger attack may need less.",
        ]
    return "\n".join(lines)


def cell(row: Row, largest: float) -> tuple[str, str, str, str, str]:
    """A row as the table shows it."""
    flips = "" if row.flips_at is None else f"> {largest:.4f}" if math.isinf(row.flips_at) else f"{row.flips_at:.4f}"
    image = str(row.image).encode(errors="replace").decode()  # names that are no UTF-8 cannot be printed
    return image, row.answer, "" if row.probability is None else f"{row.probability:.3f}", flips, row.error


if __name__ == "__main__":
    command_line(main, PredictConfig)
