"""The configuration of an evaluation."""

from dataclasses import dataclass, field
from typing import Literal

from rocl_transfer.data import ImageOptions
from rocl_transfer.options.checks import require, require_sha256, require_untouched
from rocl_transfer.options.number import Number


@dataclass(frozen=True, kw_only=True)
class EvaluatedConfig:
    """Which classifier.

    Args:
        name: A run folder that holds a classifier, ``hf-hub:USER/NAME``, ``local-dir:FOLDER``, or a timm name with published weights.
        callable: Your own: ``module:function``, called without arguments, gives a torch module from images in [0, 1] to logits.
        sha256: What the weights file of an exported model must have; another one is refused.
    """

    name: str | None = None
    callable: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        require_sha256(self.sha256)
        given = (self.name is not None) + (self.callable is not None)
        require(given == 1, "give either --model.name (a run folder, hf-hub:USER/NAME or a timm name) or --model.callable module:function")
        if self.callable is not None:
            module, _, function = self.callable.partition(":")
            require(bool(module and function), f"--model.callable is {self.callable}: write module:function, such as mine:build")
            require_untouched(self, ("sha256",), "with --model.callable", "model.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Robustness that can be believed: AutoAttack for any number of classes, and with --report full everything around it.

    Args:
        model: Which classifier.
        data: Which images and labels.
        output_dir: Where results.json, verdicts.jsonl, the page and what is needed to go on go.
        attacks: standard (AutoAttack), fast (its APGD-CE and APGD-T), paper (RoCL's PGD-20) or strong-pgd (PGD-50, ten restarts).
        engine: native, or reference (the pyautoattack package, for comparison).
        norm: Ball: linf, l2 or l1.
        epsilon: Its radius in [0, 1] pixel units, a number or a fraction.
        report: none, or full: unseen balls, accuracy over epsilon and per class, corruptions, transfer, smoothing, gradient masking.
        surrogates: With --report full, other classifiers of these classes whose adversarial images are tried.
        split: test, validation, or all: every image of data that has no test split, where some would be held out.
        samples: Evaluate this many, drawn by --seed in proportion to the classes (default: all).
        batch_size: Images at once in each process (default: measured); verdicts do not depend on it, but with models that mix the images of a batch.
        one_at_a_time: Show the model one image a pass; for models whose answer to an image depends on the others, which is looked for and said.
        compile: Compile the network that attacks search on; pays on a GPU, or where evaluation takes long.
        search_precision: fp32; or bf16, faster where the device has units for it: attacks search so, every success is judged in float32.
        update_card: Write the results on the card of the run that --model.name names, where that is a folder.
        resume: auto (go on where the folder stands) or none.
        log_with: One of Accelerate's trackers, such as tensorboard.
        seed: Of everything random.
    """

    model: EvaluatedConfig
    data: ImageOptions
    output_dir: str
    attacks: Literal["standard", "fast", "paper", "strong-pgd"] = "standard"
    engine: Literal["native", "reference"] = "native"
    norm: Literal["linf", "l2", "l1"] = "linf"
    epsilon: Number = Number(8 / 255)
    report: Literal["none", "full"] = "none"
    surrogates: tuple[str, ...] = field(default_factory=tuple)
    split: Literal["test", "validation", "all"] = "test"
    samples: int | None = None
    batch_size: int | None = None
    one_at_a_time: bool = False
    compile: bool = False
    search_precision: Literal["fp32", "bf16"] = "fp32"
    update_card: bool = True
    resume: Literal["auto", "none"] = "auto"
    log_with: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "--output_dir is empty: name a folder, such as runs/eval")
        require(self.epsilon > 0, f"--epsilon is {self.epsilon}: give a radius above 0, such as 8/255")
        require(self.norm != "linf" or self.epsilon <= 1, f"--epsilon is {self.epsilon}: pixels are in [0, 1], so write 8/255 rather than 8")
        given = self.norm == "linf" or self.epsilon != EvaluateConfig.epsilon
        require(
            given, f"the default --epsilon is meant for linf: give a radius with {self.norm}, such as {'0.5' if self.norm == 'l2' else '12'} at 32 px"
        )
        for name in ("samples", "batch_size"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name} is {value}: give 1 or more")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}: give 0 or more, below 2**32")
        if self.report == "full":
            whole = self.engine == "native" and self.attacks in ("standard", "fast")
            require(whole, "--report full is built around --attacks standard or fast with the native engine: choose one of them")
        else:
            require_untouched(self, ("surrogates",), "without --report full")
        require(self.engine == "native" or self.attacks == "standard", f"--engine reference has no attacks {self.attacks}: give standard")
        if self.engine == "reference":
            require_untouched(self, ("compile", "search_precision"), "with --engine reference, which attacks the model as it is")
        if self.model.callable is not None:
            require_untouched(self, ("update_card",), "with --model.callable, which has no card")
