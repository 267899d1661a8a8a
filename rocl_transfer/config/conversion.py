"""The configuration of ``recipes/convert.py``."""

import math
from dataclasses import dataclass, field
from typing import Literal

from rocl_transfer.options.checks import require
from rocl_transfer.options.number import Number


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """A checkpoint of another project to safetensors in timm's layout; nothing in the file is executed.

    Args:
        checkpoints: A file of torch.save or safetensors.
        output_dir: Where config.json, model.safetensors and, with a projector of RoCL's shape, projector.safetensors go.
        family: Whose checkpoint it is; auto looks at its names. acl is also DynACL's and AIR's.
        architecture: A timm name (default: the ResNet whose shapes they are).
        bn: Of two sets of BatchNorm statistics, the adversarial or the clean one; auto: adversarial.
        copy: Where the network is in a file that holds several, such as encoder_q, or . for its outermost dictionary (default: the
            family's choice, or the averaged one).
        head: A file with a linear layer, or none to leave out the one in the checkpoint, which is kept otherwise.
        projector: A file with a projector (default: the one in the checkpoint, where it has RoCL's shape).
        label_names: A list, or a file with a name a line, in the order of the logits (default: 0, 1, ...).
        image_size: Side in pixels (default: 32 with a 3x3 stem, else timm's).
        mean: Subtracted from images in [0, 1], a number a channel (default: what the file says, else what the family trains with).
        std: Divided by next.
        drop: Beginnings of names in the file that are no part of the network.
    """

    checkpoints: tuple[str, ...] = field(metadata={"positional": "a checkpoint file"})
    output_dir: str
    family: Literal["auto", "rocl", "acl", "deacl", "solo-learn", "robustness", "robustbench", "torchvision", "timm"] = "auto"
    architecture: str | None = None
    bn: Literal["auto", "adversarial", "clean"] = "auto"
    copy: str | None = None
    head: str | None = None
    projector: str | None = None
    label_names: tuple[str, ...] | str | None = None
    image_size: int | None = None
    mean: tuple[Number, ...] = field(default_factory=tuple)
    std: tuple[Number, ...] = field(default_factory=tuple)
    drop: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        require(len(self.checkpoints) == 1 and all(self.checkpoints), "one checkpoint is converted at a time: name one file")
        require(bool(self.output_dir), "--output_dir is empty: name a folder, such as runs/converted")
        require(self.image_size is None or 0 < self.image_size <= 4096, f"--image_size is {self.image_size}: give pixels, such as 32")
        for name in ("mean", "std"):
            value = getattr(self, name)
            require(len(value) in (0, 3), f"--{name} has {len(value)} numbers: give one a channel, such as [0.485, 0.456, 0.406]")
        require(len(self.mean) == len(self.std), "--mean and --std belong together: give both")
        if self.mean:
            finite = all(map(math.isfinite, (*self.mean, *self.std)))
            small = max(map(abs, self.mean)) <= 1 and min(self.std) > 0 and max(self.std) <= 10
            require(finite and small, "--mean and --std are not of pixels in [0, 1]: divide numbers of 0 to 255 by 255; std is above 0")
        require(all(self.drop), "--drop has an empty name, which every name begins with: leave it out")
        names = self.label_names
        doubled = None if names is None or isinstance(names, str) else next((name for name in names if names.count(name) > 1), None)
        require(doubled is None, f"--label_names has {doubled} twice: name each class once")
