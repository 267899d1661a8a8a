"""Which reader opens what a user calls data."""

from dataclasses import replace
from pathlib import Path

from rocl_transfer.data.files import open_csv, open_safetensors
from rocl_transfer.data.folders import open_image_folder
from rocl_transfer.data.hub_datasets import open_dataset
from rocl_transfer.data.local import holds_images, holds_shards
from rocl_transfer.data.shards import open_shards
from rocl_transfer.data.sources import Source, open_digits
from rocl_transfer.errors import UserError, is_pickle, one_line, path_of


def open_source(
    name: str, config: str | None, revision: str | None, image_column: str | None, label_column: str | None, train_needed: bool = True
) -> Source:
    """Open ``name``, whatever it is; the arguments are those of :func:`rocl_transfer.data.load_images`.

    Raises:
        UserError: It cannot be opened, or an option has no effect with it.
    """
    path = path_of(name)
    hub, columns = {"config": config, "revision": revision}, {"image_column": image_column, "label_column": label_column}
    if name == "digits":
        _refuse("the bundled", name, **hub, **columns)
        return open_digits()
    if path.is_dir():
        return _open_folder(path, hub, columns, train_needed)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        _refuse("the CSV", name, **hub)
        return open_csv(path, **columns)
    if path.is_file() and path.suffix == ".safetensors":
        _refuse("the file", name, **hub, **columns)
        return open_safetensors(path)
    if path.is_file():
        raise UserError(f"{name} is neither a CSV nor safetensors{is_pickle([path])}: give the folder of images that it is in")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise UserError(f"there is no folder {name}: check --data.name")
    return _open_with_datasets(name, config, revision, image_column, label_column)


def _open_folder(path: Path, hub: dict[str, str | None], columns: dict[str, str | None], train_needed: bool) -> Source:
    images, notes = holds_images(path)
    if images:
        _refuse("the image folder", path, **hub)
        return open_image_folder(path, **columns, train_needed=train_needed)
    if holds_shards(path):
        _refuse("the folder of shards", path, **hub)
        return open_shards(path, **columns)
    source = _open_with_datasets(str(path), *hub.values(), *columns.values())
    return replace(source, notes=(*notes, *source.notes))


def _refuse(kind: str, name: str | Path, **options: str | None) -> None:
    if given := [option for option, value in options.items() if value is not None]:
        raise UserError(f"--data.{given[0]} has no effect with {kind} {name}: leave it out")


def _open_with_datasets(name: str, *options: str | None) -> Source:
    try:
        return open_dataset(name, *options)
    except UserError:
        raise
    except Exception as error:  # datasets hands its files to a dozen libraries, each with errors of its own
        reason = one_line(str(error).strip().split("\n")[0])[:200]
        raise UserError(f"{name} cannot be opened ({type(error).__name__}: {reason}): repair its files, or leave out what is not an image") from error
