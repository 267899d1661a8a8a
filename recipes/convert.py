"""A checkpoint of another project to a folder that load_classifier, load_backbone and timm read: safetensors and config.json.

    python recipes/convert.py FILE --output_dir DIR [--family auto]

Nothing in FILE is executed. Prints which of its tensors became which of timm's; config.json says under ``converted_from`` where they come from and
what was chosen. What does not fit by name and shape ends in one sentence, and nothing is written. Leaves a run folder, with a card on which
recipes/evaluate.py puts what it measures, for recipes/publish.py.
"""

import logging
from typing import Any

from rocl_transfer.config import ConvertConfig, command_line
from rocl_transfer.errors import UserError, path_of
from rocl_transfer.evaluation import Results
from rocl_transfer.hub import complete_run
from rocl_transfer.hub.conversion import Conversion, Wishes, check_folder, convert
from rocl_transfer.options import write_options
from rocl_transfer.training import writable

log = logging.getLogger("rocl_transfer")
NOT_MEASURED: dict[str, Any] = {"name": "none", "split": "none", "revision": None, "n": 0, "classes": 0, "notes": []}


def main(config: ConvertConfig) -> Conversion:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    folder = check_folder(writable(path_of(config.output_dir)))
    wishes = Wishes(
        family=config.family,
        architecture=config.architecture,
        bn=None if config.bn == "auto" else config.bn,
        copy=config.copy,
        head=config.head,
        projector=config.projector,
        image_size=config.image_size,
        normalization=(tuple(map(float, config.mean)), tuple(map(float, config.std))) if config.mean else None,
        label_names=label_names(config.label_names),
        drop=config.drop,
    )
    conversion = convert(config.checkpoints[0], wishes)
    print(table(conversion))
    for note in conversion.notes:
        log.info("%s", note)
    write_options(config, folder / "config.yaml")
    complete_run(
        folder, conversion.model, Results([], [], "cpu", 0), tag=f"from_{conversion.facts['family']}", facts={"converted_from": conversion.facts},
        dataset=NOT_MEASURED, training={}, config=config, projector=conversion.projector,
    )  # fmt: skip
    log.info("model and card: %s", folder)
    return conversion


def label_names(names: tuple[str, ...] | str | None) -> list[str] | None:
    """The names themselves, also where a file with one a line was given."""
    if not isinstance(names, str):
        return None if names is None else list(names)
    try:
        lines = path_of(names).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--label_names {names} is no file of names: give one a line, or a list such as [cat, dog]") from error
    return [line.strip() for line in lines if line.strip()]


def table(conversion: Conversion) -> str:
    """A line a module: its name in the file, in the export, and how many tensors it has."""
    modules: dict[tuple[str, str], int] = {}
    for source, name in conversion.mapping.items():
        pair = (source.rpartition(".")[0], name.rpartition(".")[0])
        modules[pair] = modules.get(pair, 0) + 1
    width = max(len(source) for source, _ in modules)
    return "\n".join(f"{source.ljust(width)}  ->  {name} ({count})" for (source, name), count in modules.items())


if __name__ == "__main__":
    command_line(main, ConvertConfig)
