"""A checkpoint of another project to a folder that load_classifier, load_backbone and timm read: safetensors and config.json.

    python recipes/convert.py FILE --output_dir DIR [--family auto]

Nothing in FILE is executed. Prints which of its tensors became which of timm's; config.json says under ``converted_from`` where they come from and
what was chosen. What does not fit by name and shape ends in one sentence, and nothing is written. Leaves a run folder, with a card on which
recipes/evaluate.py puts what it measures, for recipes/publish.py.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from rocl_transfer.config import command_line
from rocl_transfer.errors import path_of
from rocl_transfer.evaluation import Results
from rocl_transfer.hub import Making, complete_run
from rocl_transfer.hub.conversion import Conversion, ConversionOptions, check_folder, convert
from rocl_transfer.options import require, write_options
from rocl_transfer.training import writable

log = logging.getLogger("rocl_transfer")
NOT_MEASURED: dict[str, Any] = {"name": "none", "split": "none", "revision": None, "n": 0, "classes": 0, "notes": []}


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(ConversionOptions):
    """A checkpoint of another project to safetensors in timm's layout; nothing in the file is executed.

    Args:
        checkpoints: A file written by torch.save or safetensors.
        output_dir: Folder for config.json, model.safetensors and, with a projector of RoCL's shape, projector.safetensors.
    """

    checkpoints: tuple[str, ...] = field(metadata={"positional": "a checkpoint file"})
    output_dir: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.checkpoints) == 1 and all(self.checkpoints), "one checkpoint is converted at a time: name one file")
        require(bool(self.output_dir), "--output_dir is empty: name a folder, such as runs/converted")


def main(config: ConvertConfig) -> Conversion:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    folder = check_folder(writable(path_of(config.output_dir)))
    conversion = convert(config.checkpoints[0], config)
    print(table(conversion))
    for note in conversion.notes:
        log.info("%s", note)
    write_options(config, folder / "config.yaml")
    complete_run(
        folder, conversion.model, Results([], [], "cpu", 0),
        Making(config, tag=f"from_{conversion.facts['family']}", facts={"converted_from": conversion.facts}),
        dataset=NOT_MEASURED, projector=conversion.projector,
    )  # fmt: skip
    log.info("model and card: %s", folder)
    return conversion


def table(conversion: Conversion) -> str:
    """One line per module: its name in the file, in the export, and how many tensors it has."""
    modules: dict[tuple[str, str], int] = {}
    for source, name in conversion.mapping.items():
        pair = (source.rpartition(".")[0], name.rpartition(".")[0])
        modules[pair] = modules.get(pair, 0) + 1
    width = max(len(source) for source, _ in modules)
    return "\n".join(f"{source.ljust(width)}  ->  {name} ({count})" for (source, name), count in modules.items())


if __name__ == "__main__":
    command_line(main, ConvertConfig)
