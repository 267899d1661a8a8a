"""A device that is not the CPU, made of the CPU's memory: what mixes up devices fails on it, and what makes the host wait is written down.

Its name is ``meta``, the one kind besides the CPU whose backward pass autograd runs in the calling thread. Numbers are computed by the CPU, so
nothing is said of another's arithmetic, of pinned memory, of generators or of the kernels that optimisers choose on a GPU.
"""

import contextlib
import os
import runpy
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch._dynamo  # before its parts are replaced: it is imported late, by whoever needs it
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
PACKAGE = str(Path(__file__).parents[2] / "rocl_transfer")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index.Tensor}
# How many results there are depends on numbers: the host has to know them.
COUNTING = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.repeat_interleave.Tensor}
JOINING = {aten.cat.default, aten.stack.default}
MAKERS = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor}


class Elsewhere(torch.Tensor):
    """A tensor whose numbers, ``inner``, nobody sees but :class:`Device`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=DEVICE, **layout)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the device")


class Device(TorchDispatchMode):
    """While it is open, tensors may be on ``meta``; ``waits`` has a line for each time that the host had to wait for it."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, what):
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
        self.waits.append(f"{what}: {Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}" if frames else what)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
        target = kwargs.get("device")
        if not there and (target is None or torch.device(target) != DEVICE):
            return func(*args, **kwargs)
        self.check(func, args, kwargs, tensors, there)
        stays = torch.device(target or DEVICE) == DEVICE
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
        if not stays or (func is aten.copy_.default and not isinstance(args[0], Elsewhere)):
            return found
        return return_and_correct_aliasing(func, args, kwargs, tree_map(wrapped, found)) if there else tree_map(wrapped, found)

    def check(self, func, args, kwargs, tensors, there):
        if func in COPIES:
            blocks = not (kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))
            source, target = (args[1], args[0]) if func is aten.copy_.default else (args[0], kwargs.get("device", args[0].device))
            to = torch.device(target) if isinstance(target, str) else getattr(target, "device", target)
            if to.type == "cpu" and isinstance(source, Elsewhere):
                self.wait("copied to the host")
            elif to == DEVICE and not isinstance(source, Elsewhere) and blocks:
                self.wait("copied from the host")
            return
        strangers = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and (tensor.dim() or func in JOINING)]
        if func in INDEXING and isinstance(args[0], Elsewhere):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype == torch.bool for index in indices):
                self.wait("indexed by truth")
            if strangers:
                self.wait("indexed from the host")
                strangers = [tensor for tensor in strangers if not any(tensor is index for index in indices)]
        if there and strangers:
            raise RuntimeError(f"{func} mixes devices")
        if func is aten._local_scalar_dense.default:
            self.wait("a number read")
        if func in COUNTING:
            self.wait("counted")


def unwrapped(value):
    return value.inner if isinstance(value, Elsewhere) else value


def wrapped(value):
    return Elsewhere(value) if isinstance(value, torch.Tensor) and not isinstance(value, Elsewhere) else value


class Made(TorchFunctionMode):
    """Tensors made of Python numbers, which torch leaves without any on ``meta``, and the other way."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist and isinstance(args[0], Elsewhere):  # torch refuses it to subclasses
            return args[0].cpu().tolist()
        if func not in MAKERS:
            return func(*args, **kwargs)
        own = args[0].device if func is torch.Tensor.new_tensor else None
        target = torch.device(kwargs.pop("device", None) or own or "cpu")
        if func is torch.Tensor.new_tensor:
            args, kwargs = args[1:], {"dtype": args[0].dtype, **kwargs}
        if func is torch.as_tensor and isinstance(args[0], torch.Tensor):
            return args[0].to(target, kwargs.get("dtype") or args[0].dtype)
        return torch.tensor(*args, **kwargs).to(target)


@contextlib.contextmanager
def elsewhere():
    """Open the device; autocast does nothing on it, its generators are the CPU's, and Accelerate takes it for its own."""
    generator, real, enabled = torch.Generator, torch.autocast, torch.is_autocast_enabled

    class Generator(generator):
        def __new__(cls, device="cpu"):
            return generator()

    def autocast(kind, *words, **options):
        return contextlib.nullcontext() if kind == "meta" else real(kind, *words, **options)

    with pytest.MonkeyPatch.context() as patch, Device() as device, Made():
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "autocast", autocast)
        patch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
        for part in (Accelerator, AcceleratorState, PartialState):
            patch.setattr(part, "device", property(lambda self: DEVICE, lambda self, own: None), raising=False)
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that moves stays the one that its optimiser knows
        try:
            yield device
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)
            AcceleratorState._reset_state(reset_partial_state=True)


def run_recipe(folder, words):
    """In a process of its own: the recipe ``words[0]`` on the device."""
    os.chdir(folder)
    sys.path[0], sys.argv = str(Path(words[0]).parent), words
    with elsewhere():
        runpy.run_path(words[0], run_name="__main__")
