"""The configuration of ``recipes/predict.py``."""

import math
from dataclasses import dataclass, field
from typing import Literal

from rocl_transfer.options import Number, require, require_sha256, require_untouched


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Which classifier.

    Args:
        name: A run folder that holds a classifier, ``hf-hub:USER/NAME`` or ``local-dir:FOLDER``.
        sha256: What the weights file of an exported model must have; another one is refused.
    """

    name: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        require_sha256(self.sha256)
        require(bool(self.name), "--model.name is empty: give a run folder or hf-hub:USER/NAME")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The classes of images, and for each image the smallest epsilon at which PGD changes the answer.

    Args:
        images: Image files, and folders, in which images are looked for at every depth.
        model: Which classifier; its image size and normalisation come with it.
        output: CSV file to write, over one that is there (default: a table on the screen).
        robustness: Look for the smallest epsilon; it is an upper bound, a stronger attack may need less. Without it only the classes are given.
        norm: Ball: linf or l2.
        steps: Gradient steps of PGD; it starts at random and steps by epsilon / 10, so fewer than 20 cannot cross the ball.
        max_epsilon: The largest epsilon tried, in [0, 1] pixel units, a number or a fraction. What it does not change is ``inf`` in the CSV.
        batch_size: Images at once; the answers do not depend on it.
        seed: Of the random start, the same for every image, so that its row does not depend on the others.
    """

    images: tuple[str, ...] = field(metadata={"positional": "image files or folders"})
    model: ClassifierConfig
    output: str | None = None
    robustness: bool = True
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 20
    max_epsilon: Number = Number(64 / 255)
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.images) > 0 and all(self.images), "an image's name is empty: name image files or folders")
        csv = self.output is None or self.output.lower().endswith(".csv")
        require(csv, f"--output is {self.output}: what is written is CSV, so name a file such as predictions.csv")
        if not self.robustness:
            require_untouched(self, ("norm", "steps", "max_epsilon", "seed"), "with --robustness false")
        require(0 < self.max_epsilon < math.inf, f"--max_epsilon is {self.max_epsilon}: give a radius above 0, such as 64/255")
        above = self.norm == "linf" and self.max_epsilon > 1
        require(not above, f"--max_epsilon is {self.max_epsilon}: pixels are in [0, 1], so write 64/255 rather than 64")
        given = self.norm != "l2" or self.max_epsilon != PredictConfig.max_epsilon
        require(given, "the default --max_epsilon is meant for linf: give a radius with l2, such as 2 at 32 px")
        require(self.steps > 0 and self.batch_size > 0, "--steps and --batch_size must be 1 or more")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}: give 0 or more, below 2**32")
