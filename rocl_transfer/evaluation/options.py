"""How attacks search, for whoever evaluates; and what an evaluation is part of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from rocl_transfer.errors import did_you_mean
from rocl_transfer.evaluation.checks import Inspection
from rocl_transfer.options import require, require_untouched


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How attacks search, and how many images the model is shown at once. Verdicts stay the same, but for models that mix the images of a batch.

    Args:
        engine: native, or reference (the pyautoattack package, for comparison).
        batch_size: Images at once in each process (default: measured); verdicts depend on it only if the model mixes the images of a batch.
        one_at_a_time: Show the model one image per pass. It is for models whose answer depends on the other images of a batch, which are looked for.
        compile: Compile the network that attacks search on, which pays on a GPU, or if the evaluation takes long.
        search_precision: What attacks search in: fp32, or bf16, which is faster on devices with bf16 units. Every success is judged in float32.
    """

    engine: Literal["native", "reference"] = "native"
    batch_size: int | None = None
    one_at_a_time: bool = False
    compile: bool = False
    search_precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name, value, known in (("engine", self.engine, ("native", "reference")), ("search_precision", self.search_precision, ("fp32", "bf16"))):
            require(value in known, f"{name} is {value!r}{did_you_mean(str(value), known)}: give {' or '.join(known)}")
        require(
            self.batch_size is None or self.batch_size > 0, f"batch_size is {self.batch_size}: give 1 or more, or leave it out to have it measured"
        )
        if self.engine == "reference":
            require_untouched(self, ("compile", "search_precision"), "with --engine reference, which attacks the model as it is")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an evaluation is part of: where its findings are kept, who shares the work, what is said and shown of it.

    Args:
        journal: Folder in which every finding is written down; what it holds already is not searched again.
        identity: What the journal's findings belong to.
        state: Accelerate's, where several processes share the samples; each returns the whole.
        seen: What :func:`~rocl_transfer.evaluation.checks.inspect_model` saw of the model (default: it is called, its warnings are logged).
        progress: Show a bar.
        say_doubts: Log what makes the accuracies doubtful; ``Results.doubts`` has it in any case.
        pictured: Which of the attacks keeps a few of the images that it finds, to be shown (``Results.found``).
    """

    journal: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    state: PartialState | None = None
    seen: Inspection | None = None
    progress: bool = False
    say_doubts: bool = True
    pictured: int = 0
