"""The network that attacks climb on: the same function in eval mode with BatchNorm folded away, up to rounding."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from rocl_transfer.models.multi_tensor import put

log = logging.getLogger("rocl_transfer")

_AGREE = 1e-3  # of the outputs' spread: more is another function, not another rounding


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's norms, some of which hold their activation, are otherwise traced into functions.
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def fold(model: nn.Module) -> nn.Module:
    """A frozen copy of ``model`` in eval mode with each BatchNorm that follows a convolution folded into it."""
    twin, pairs = _without_norms(model)
    _follow(model, twin, pairs)
    return twin


def _without_norms(model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """The copy, its weights not folded yet, and the name of each norm by that of the convolution it goes into."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    graph = _Tracer().trace(twin)
    modules: dict[Any, Any] = dict(twin.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    pairs: dict[str, str] = {}
    for node in list(graph.nodes):
        source = node.args[0] if node.op == "call_module" and isinstance(modules[node.target], _BatchNorm) else None
        if not (isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1):
            continue
        convolution, norm = modules[source.target], modules[node.target]
        once = calls.count(source.target) == calls.count(node.target) == 1
        if not (once and type(convolution) is nn.Conv2d and norm.track_running_stats) or parametrize.is_parametrized(convolution):
            continue
        pairs[str(source.target)] = str(node.target)
        if convolution.bias is None:
            convolution.bias = nn.Parameter(torch.zeros_like(norm.running_mean), requires_grad=False)
        # What timm's norms do after normalising.
        rest = nn.Sequential(*(part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None))
        twin.set_submodule(str(node.target), rest)
    return fx.GraphModule(twin, graph), pairs


@torch.no_grad()
def _follow(model: nn.Module, twin: nn.Module, pairs: dict[str, str]) -> None:
    """Give ``twin`` the weights that ``model`` has now."""
    folded = {f"{name}.{kind}" for name in pairs for kind in ("weight", "bias")}
    now = dict(model.named_parameters()) | dict(model.named_buffers())
    own = dict(twin.named_parameters()) | dict(twin.named_buffers())
    names = [name for name in own if name not in folded]
    put([own[name] for name in names], [now[name] for name in names])
    if not pairs:
        return
    weights, biases = _fused([(model.get_submodule(convolution), model.get_submodule(norm)) for convolution, norm in pairs.items()])
    put([own[f"{name}.weight"] for name in pairs], weights)
    put([own[f"{name}.bias"] for name in pairs], biases)


def _fused(layers: Sequence[tuple[Any, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of convolutions that have taken in the norms behind them: torch's ``fuse_conv_bn_weights`` for all layers in a few calls."""
    means, variances = [norm.running_mean for _, norm in layers], [norm.running_var for _, norm in layers]
    none = [torch.zeros_like(mean) for mean in means]
    scales = [norm.weight.detach() if norm.weight is not None else torch.ones_like(norm.running_mean) for _, norm in layers]
    shifts = [norm.bias.detach() if norm.bias is not None else zero for (_, norm), zero in zip(layers, none, strict=True)]
    offsets = [layer.bias.detach() if layer.bias is not None else zero for (layer, _), zero in zip(layers, none, strict=True)]
    roots = torch._foreach_rsqrt(torch._foreach_add(variances, [norm.eps for _, norm in layers]))
    # In torch's order, so that they are its roundings.
    biases = torch._foreach_sub(offsets, means)
    torch._foreach_mul_(biases, roots)
    torch._foreach_mul_(biases, scales)
    torch._foreach_add_(biases, shifts)
    factors = torch._foreach_mul(scales, roots)
    return [layer.weight * factor.view(-1, 1, 1, 1) for (layer, _), factor in zip(layers, factors, strict=True)], list(biases)


def hold_bf16(model: nn.Module) -> None:
    """Keep the weights of convolutions and linear maps in bf16.

    Under bf16 autocast the same function, bit for bit: it would cast these weights anew in every pass, because it remembers only casts of parameters
    that train. A pass of ResNet-18 at 16 px took 6.1 ms instead of 9.4 with 3 images, 17 instead of 21 with 32, 60 instead of 64 with 128 (on a CPU).
    """
    for part in model.modules():
        # Not subclasses, nor parametrized ones: what they make of their weights is to be made of all their digits.
        if type(part) in (nn.Conv2d, nn.Linear) and not parametrize.is_parametrized(part):
            part.to(torch.bfloat16)


class Folded:
    """``model`` as attacks see it, and follow it through training.

    A convolution and the BatchNorm behind it are one affine map in eval mode; as one layer, passes with gradient were 1.09 times as fast for a
    ResNet-18 at 32 px on a CPU, and 1.28 times for resnet8_cifar at 16 px. Where the network cannot be traced, or the folded one says something else,
    attacks see the model itself.

    Args:
        model: Followed, never changed.
        compiled: Have ``torch.compile`` make kernels of the folded network, for each number of images its own.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        self.model, self.compiled = model, compiled
        self.twin: nn.Module | None = None
        self.pairs: dict[str, str] = {}
        self.tried = False

    def current(self, images: Tensor) -> nn.Module:
        """A frozen network in eval mode with the model's weights as they are now; valid until the next call.

        Args:
            images: A few of these (N, C, H, W) are what the first call compares on.
        """
        if not any(isinstance(part, _BatchNorm) for part in self.model.modules()):
            return self.model
        if not self.tried:
            self.tried = True
            self._build(images[:4])
        elif self.twin is not None:
            _follow(self.model, self.twin, self.pairs)
        return self.twin or self.model

    def _build(self, images: Tensor) -> None:
        modes = [(part, part.training) for part in self.model.modules()]
        # bf16 and TF32 round by more than what is looked for here.
        precise = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
        try:
            self.twin, self.pairs = _without_norms(self.model)
            _follow(self.model, self.twin, self.pairs)
            # Compiled for these few images, the model would be compiled for any number of them from then on.
            plain = torch.compiler.set_stance("force_eager")
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False), precise, plain:
                truth, found = self.model.eval()(images), self.twin(images)
            difference = ((found - truth).abs().max() / (truth.max() - truth.min()).clamp_min(1e-12)).item()
            if not difference < _AGREE:
                self.twin = None
                log.info("attacks continue with BatchNorm apart: folded into the convolutions, outputs differ by %.1e of their spread", difference)
            elif torch.is_autocast_enabled(images.device.type):  # runtime.py refuses fp16
                hold_bf16(self.twin)
        except Exception as error:  # a network may refuse to be copied or traced in any way
            self.twin = None
            log.info("attacks continue with BatchNorm apart (%s)", (str(error).strip() or type(error).__name__).splitlines()[0][:150])
        finally:
            for part, mode in modes:
                part.training = mode
        if self.twin is not None and self.compiled:
            self.twin.compile(dynamic=False)
