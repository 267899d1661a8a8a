"""Which images: what every recipe takes of data, and what pre-training takes beside it."""

from dataclasses import dataclass

from rocl_transfer.errors import one_line
from rocl_transfer.options import Number, require, require_untouched


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """How images are read and held.

    Args:
        in_memory: Decode all images once into device memory (default: up to 96 px and 8 GiB in all), else stream them.
        workers: Threads that decode images in memory, or processes that decode streamed ones.
        max_unreadable: Largest share of a split's images that may be left out because they cannot be read; of the test split none may.
        check: Read streamed images once before training, to leave out what cannot be read and to count copies of training images held out.
    """

    in_memory: bool | None = None
    workers: int = 2
    max_unreadable: Number = Number(0.05)
    check: bool = True

    def __post_init__(self) -> None:
        require(0 < self.workers <= 1024, f"--data.workers is {self.workers}: give 1 to 1024")
        require(0 <= self.max_unreadable < 1, f"--data.max_unreadable is {self.max_unreadable}: give a share in [0, 1)")
        if self.in_memory:
            require_untouched(self, ("check",), "with --data.in_memory true, which reads all images", "data.")
        if not self.check:
            require_untouched(self, ("max_unreadable",), "with --data.check false, which leaves no image out", "data.")


@dataclass(frozen=True, kw_only=True)
class ImageOptions(StorageOptions):
    """Which images, and how they are held.

    Args:
        name: A Hub dataset id, a local folder (images, or parquet files), a CSV of paths and labels, a safetensors file of images and labels, or
            ``digits`` (scikit-learn's, bundled).
        title: What records and cards call it (default: its name; for a path, only its last part, so that they do not show where it lies).
        config: Configuration of a Hub dataset, if it has several.
        revision: Branch, tag or commit of a Hub dataset.
        image_column: Column of images, where more than one could be meant.
        label_column: Column of labels, where more than one could be meant.
        train_split: Split to train on (default: train).
        test_split: Split to test on (default: test; if there is none, 20 % of train).
        image_size: Side of the square images in pixels (default: the data's own).
        value_range: Values of black and white in images of more than 8 bits, such as [0,4095] (default: one range for all splits, found from up to
            256 images of each; an exported model brings its own to what it is evaluated on).
        validation_fraction: Share of train held out for validation where the data has no such split.
        split_seed: Seed of the splits cut from train. Apart from ``--seed``: runs that differ in seed must not train on each other's test images.
    """

    name: str
    title: str | None = None
    config: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    image_size: int | None = None
    value_range: tuple[Number, Number] | None = None
    validation_fraction: Number = Number(0.1)
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.name), "--data.name is empty: give a Hub dataset id, a folder, or digits")
        plain = self.title is None or (self.title.strip() and one_line(self.title) == self.title and len(self.title) <= 200)
        require(bool(plain), f"--data.title is {self.title!r}: write one line of 1 to 200 letters")
        require(self.image_size is None or 0 < self.image_size <= 4096, f"--data.image_size is {self.image_size}: give pixels, such as 32")
        ends = self.value_range
        require(ends is None or ends[0] < ends[1], f"--data.value_range is {ends}: give the values of black and of white, such as [0,4095]")
        require(0 <= self.validation_fraction < 1, f"--data.validation_fraction is {self.validation_fraction}: give a share in [0, 1)")
        require(0 <= self.split_seed < 2**32, f"--data.split_seed is {self.split_seed}: give 0 or more, below 2**32")
        if self.name == "digits":
            columns = ("config", "revision", "image_column", "label_column", "train_split", "test_split", "value_range", "max_unreadable")
            require_untouched(self, columns, "with the bundled digits", "data.")


@dataclass(frozen=True, kw_only=True)
class PretrainImageOptions(ImageOptions):
    """Which images, for pre-training.

    Args:
        streaming: Read shards of a Hub dataset over the network during training, without a copy on the disk. Leave it off for
            data that fits on the disk: its images come in one true permutation, and are checked beforehand.
        images: How many images a stream has, if the data itself does not say.
    """

    streaming: bool = False
    images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.images is None or self.images > 0, f"--data.images is {self.images}: give 1 or more")
        if self.streaming:
            held = ("label_column", "test_split", "validation_fraction", "split_seed", "in_memory", "check")
            require_untouched(self, held, "with --data.streaming true, which holds nothing out and reads nothing beforehand", "data.")
            require(self.image_size is not None, "--data.streaming true needs --data.image_size: of a stream it is not known")
        else:
            require_untouched(self, ("images",), "without --data.streaming true", "data.")
