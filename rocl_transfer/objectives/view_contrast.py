"""What contrastive pre-trainings share: an encoder and a projector, and the main loss over views."""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rocl_transfer.attacks import AttackOptions
from rocl_transfer.models import Folded, PixelModel
from rocl_transfer.objectives.contrastive import gather_keys, nt_xent, recognised
from rocl_transfer.objectives.objective import Objective, ObjectiveOptions, Views
from rocl_transfer.options import Number, require

log = logging.getLogger("rocl_transfer")


@dataclass(frozen=True, kw_only=True)
class ContrastOptions(ObjectiveOptions):
    """Options of every contrastive pre-training.

    Args:
        temperature: Temperature of the softmax over similarities.
        group_size: Images that are each other's negatives in an attack on one process, and whose views are drawn by one seed (default: the batch of
            one process, or what is computed of it at once).
        compile: Have torch.compile make kernels of the backbone, in training and in the attack; the first steps take minutes.
    """

    temperature: Number = Number(0.5)
    group_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"--objective.temperature is {self.temperature}: give a number above 0")

    def images_together(self, part: int) -> int:
        """A group."""
        return self.group_size or part


class ViewContrast(Objective):
    """An encoder and a projector whose views of images are contrasted; subclasses say which views.

    Args:
        encoder: Images (N, 3, H, W) in [0, 1] -> features (N, D).
        projector: Features -> the space in which views are compared.
        views: Draws a view of each image, in pixel space.
        options: The subclass's ``Options`` (default: theirs).
    """

    Options: type[ContrastOptions]
    options: ContrastOptions

    def __init__(self, encoder: PixelModel, projector: nn.Module, views: Views, options: ContrastOptions | None = None) -> None:
        super().__init__()
        self.encoder, self.projector, self.views = encoder, projector, views
        self.options = options or self.Options()  # type: ignore[call-arg] # a method has a name by default
        self.temperature, self._to_compile = self.options.temperature, self.options.compile

    @property
    def exported(self) -> PixelModel:
        """The encoder."""
        return self.encoder

    @property
    def exported_projector(self) -> nn.Module:
        """The projector."""
        return self.projector

    def project(self, images: Tensor) -> Tensor:
        """Where images are compared: unit vectors (N, 128), float32."""
        return self.unit(self.encoder(images))

    def unit(self, features: Tensor) -> Tensor:
        """Features as they are compared."""
        return F.normalize(self.projector(features).float(), dim=-1)

    def compile_once(self) -> None:
        """Compile the encoder if that is wanted, now that it is known whether its BatchNorm goes over several GPUs."""
        if not self._to_compile:
            return
        self._to_compile = False
        if any(isinstance(part, nn.SyncBatchNorm) for part in self.encoder.modules()):
            # Its statistics are gathered by code that torch.compile cannot follow: what is left between are single layers.
            log.info("the network is compiled for the attack alone: BatchNorm over several GPUs would break it into pieces in training")
        else:
            self.encoder.compile(dynamic=False)

    def embed(self, *views: Tensor) -> Tensor:
        """(V, N, D), from one train-mode forward of all views."""
        z = self.project(torch.cat(views))
        return z.view(len(views), len(z) // len(views), z.shape[-1])

    def contrast(self, z: Tensor) -> Tensor:
        """The V-view loss of ``z`` (V, N, D) with the negatives of all processes."""
        keys, offset = gather_keys(z)
        return nt_xent(z, keys, self.temperature, offset)


@dataclass(frozen=True, kw_only=True)
class AttackedOptions(ContrastOptions):
    """Options of a contrastive pre-training with an adversary.

    Args:
        attack: What moves the views.
    """

    attack: AttackOptions = AttackOptions()


class AttackedContrast(ViewContrast):
    """A contrast in which an adversary moves views: it climbs on the encoder folded, by steps that may grow over training.

    Made as every :class:`ViewContrast` is.
    """

    Options: type[AttackedOptions]
    options: AttackedOptions

    def __init__(self, encoder: PixelModel, projector: nn.Module, views: Views, options: AttackedOptions | None = None) -> None:
        super().__init__(encoder, projector, views, options)
        self.attacked, self.attack = Folded(encoder, self.options.compile), self.options.attack.ascent()

    def begin_step(self, step: int, total: int) -> None:
        """The steps of the attack grow where they are to."""
        self.attack = self.options.attack.ascent(progress=step / total)

    @staticmethod
    def agreements(clean: Tensor, adversarial: Tensor, groups: int) -> dict[str, Tensor]:
        """How often a view is recognised by the other one: ``agreement`` of clean views (2, N, D), ``robust_agreement`` with attacked ones."""
        return {"agreement": recognised(clean[0], clean[1], groups), "robust_agreement": recognised(adversarial[0], adversarial[1], groups)}
