"""Hub datasets, and local folders of parquet or of anything else ``datasets.load_dataset`` opens."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rocl_transfer.data.decode import Encoded, UnreadableImageError
from rocl_transfer.data.inventory import image_extensions
from rocl_transfer.data.local import parquet_splits
from rocl_transfer.data.sources import RawSplit, Source
from rocl_transfer.errors import UserError, did_you_mean


@dataclass(frozen=True)
class ColumnRows:
    """An undecoded image column of one split."""

    dataset: Any
    column: str
    split: str

    def __len__(self) -> int:
        return len(self.dataset)

    def encoded(self, index: int) -> Encoded:
        """See :class:`~rocl_transfer.data.sources.Rows`."""
        value = self.dataset[index][self.column]
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise UnreadableImageError(f"{self.where(index)} has no image in column {self.column!r}: remove the row", "there is no image in it")
        return value["bytes"] if value["bytes"] is not None else Path(value["path"])

    def where(self, index: int) -> str:
        """See :class:`~rocl_transfer.data.sources.Rows`."""
        return f"row {index} of split {self.split!r}"


def open_dataset(name: str, config: str | None, revision: str | None, image_column: str | None, label_column: str | None) -> Source:
    """Open ``name`` with ``datasets`` and find its columns by their feature types.

    Args:
        name: A Hub id or a local folder.
        config: Configuration of the dataset, if it has several.
        revision: Branch, tag or commit.
        image_column: Column of images; None: the only one there is.
        label_column: Column of labels; None: the only ClassLabel, else a column called label, labels or cls.

    Raises:
        UserError: It cannot be opened, or a column cannot be found or could be one of several.
    """
    files, notes = parquet_splits(Path(name)) if Path(name).is_dir() and config is None else (None, [])
    opened, asked = load_with_datasets(name, config, revision, files=files)
    import datasets

    first = opened[next(iter(opened))]
    image = image_column_of(first.features, image_column)
    label = _label_column(first.features, label_column, image)
    feature = first.features[label] if label else None
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    found = {}
    for split, dataset in opened.items():
        undecoded = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        found[split] = RawSplit(ColumnRows(undecoded, image, split), list(dataset[label]) if label else None, _remedy(label, first.features, image))
    if Path(name).is_dir():
        return Source(found, names, notes=tuple(notes))
    commit = _opened(name, revision, asked, first)
    return Source(found, names, commit, tuple(_left_out(name, commit if asked else None, sum(len(split.rows) for split in found.values()))))


def _remedy(label: str | None, features: Any, image: str) -> str:
    """What to do about labels that are missing."""
    if label is not None:
        return f"complete column {label!r} or remove these rows, or name another column with --data.label_column"
    others = [name for name in features if name != image]
    return f"name their column with --data.label_column (one of {', '.join(others)})" if others else "the data has no other column than the images"


def load_with_datasets(
    name: str, config: str | None, revision: str | None, streaming: bool = False, files: dict[str, list[str]] | None = None
) -> tuple[Any, str | None]:
    """The splits of ``name``, prepared on the disk or streamed, and the commit that was asked for, if the Hub could be asked.

    Without ``files``, which are those of each split, ``datasets`` decides by their names.

    Raises:
        UserError: It cannot be opened.
    """
    import datasets  # 1 s of import that training from other data does without
    from huggingface_hub.errors import HfHubHTTPError

    from rocl_transfer.hub_failures import explain

    datasets.disable_progress_bars()
    local = Path(name).is_dir()
    if local and revision is not None:
        raise UserError(f"--data.revision has no effect with the folder {name}: leave it out")
    if files is not None:  # datasets would look for relative ones below the folder once more
        files = {split: [str(Path(file).absolute()) for file in own] for split, own in files.items()}
    where = f"the folder {name}" if local else f"{name!r}, taken for a Hub dataset since no such folder exists,"
    what = f"{where} cannot be opened"
    asked, refusal = (None, None) if local else _commit(name, revision, what)  # first: a branch may move while it is read
    try:
        return datasets.load_dataset(name, config, revision=asked or revision, data_files=files, streaming=streaming), asked
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        if refusal is not None:
            raise refusal from error
        if isinstance(error, HfHubHTTPError):
            raise explain(error, what) from error
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{what}: {reason}") from error


def _is_image(feature: Any) -> bool:
    import datasets

    # Parquet written without datasets' metadata stores images as bare {bytes, path} structs.
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def image_column_of(features: Any, wanted: str | None) -> str:
    """The column of images among ``features``: ``wanted``, or the only one there is.

    Raises:
        UserError: There is none, or more than one.
    """
    images = [name for name, feature in features.items() if _is_image(feature)]
    if wanted is not None:
        if wanted not in features:
            raise UserError(f"there is no column {wanted!r}{did_you_mean(wanted, features)}: the columns are {', '.join(features)}")
        if wanted not in images:
            raise UserError(f"column {wanted!r} does not hold images: give --data.image_column one of {', '.join(images) or '(there is none)'}")
        return wanted
    if len(images) != 1:
        which = f"more than one image column: {', '.join(images)}" if images else f"no image column among {', '.join(features)}"
        raise UserError(f"the data has {which}; name one with --data.image_column")
    return str(images[0])


def _label_column(features: Any, wanted: str | None, image: str) -> str | None:
    import datasets

    if wanted is not None:
        if wanted not in features or wanted == image:
            others = [name for name in features if name != image]
            raise UserError(f"there is no label column {wanted!r}{did_you_mean(wanted, others)}: the columns are {', '.join(others)}")
        return wanted
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [name for name in ("label", "labels", "cls") if name in features]  # cls: of webdataset's shards
    if len(labels) > 1:
        raise UserError(f"the data has more than one label column ({', '.join(labels)}): name one with --data.label_column")
    return labels[0] if labels else None


def _commit(name: str, revision: str | None, what: str) -> tuple[str | None, UserError | None]:
    """What the Hub has under the revision; or nothing, and the sentence that begins with ``what``, which counts if the cache has nothing either."""
    from huggingface_hub import HfApi

    from rocl_transfer.hub_failures import patiently

    try:
        return patiently(lambda: HfApi().dataset_info(name, revision=revision).sha, what), None
    except UserError as error:
        return None, error


def _left_out(name: str, commit: str | None, rows: int) -> list[str]:
    """What is said where a repository of image files has more of them than rows came of it: ``datasets`` chooses files by their names."""
    from huggingface_hub import HfApi

    from rocl_transfer.hub_failures import patiently

    if commit is None:  # the Hub cannot be asked
        return []
    what = f"whether {name} holds more images than are used is not known"
    try:
        files = patiently(lambda: HfApi().list_repo_files(name, revision=commit, repo_type="dataset"), what)
    except UserError as error:
        return [str(error)]
    suffixes = [PurePosixPath(file).suffix.lower() for file in files]
    images = sum(suffix in image_extensions() for suffix in suffixes)
    if images <= rows or any(suffix in (".parquet", ".arrow", ".tar", ".zip", ".gz") for suffix in suffixes):
        return []
    return [
        f"{name} holds {images:,} image files, of which {rows:,} are used: datasets chooses them by names of files and folders and by metadata; "
        f"download it and give its folder to have all"
    ]


def _opened(name: str, revision: str | None, asked: str | None, dataset: Any) -> str | None:
    """The commit that was read.

    Where the Hub cannot be asked, ``datasets`` gives what it prepared last, whatever the revision that was wanted: its cache is named by commits.

    Raises:
        UserError: It is not the one that was asked for.
    """
    folder = Path(dataset.cache_files[0]["filename"]).parent.name if dataset.cache_files else ""
    found = folder if re.fullmatch("[0-9a-f]{40}", folder) else asked
    wanted = asked or revision
    if wanted is not None and found != wanted:
        have = f"the cache has {found}" if found else "what the cache has is not known"
        raise UserError(f"revision {wanted} of {name} cannot be had, since the Hub cannot be asked, and {have}: go online, or give that revision")
    return found
