"""Shared: small images in every layout a user may bring, and recipes run as a user runs them."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.stand_in_hub import StandInHub

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # tests that run side by side have a core each
# A shell's `&` and `nohup` leave these ignored, which recipes respect and tests of signals cannot have.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="run the tests that are made for a GPU, and no others")


def pytest_configure(config):
    """Hide a GPU from every test that is not made for one: recipes would train on it, and round differently from what they are held against."""
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    meant = [item for item in items if item.get_closest_marker("gpu")]
    if config.getoption("--gpu"):
        config.hook.pytest_deselected(items=[item for item in items if item not in meant])
        items[:] = meant
    if not torch.cuda.is_available():
        for item in meant:
            item.add_marker(pytest.mark.skip(reason="no GPU here, or no --gpu given"))


# Two processes that meet at a port which the launcher finds free: two runs of these tests on one machine do not fight for one.
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--standalone", "--local_addr", "localhost", "--nproc_per_node", "2")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


class Precise(nn.Module):
    """A network that computes in float64 between float32 images and outputs.

    The number of images chooses a network's kernels, kernels round, and the sign of a gradient turns a rounding into a whole step: what has to be the
    same for any batch is compared where rounding cannot decide it, on any CPU.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, images):
        return self.network(images.double()).float()


# What a recipe's process does that was forked from one with the imports done: they take 5 of the 8 seconds of a short run.
FORKED = """
import os, runpy, sys
os.chdir(folder)
os.dup2(os.open("stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
sys.path[0] = os.path.dirname(words[0])
sys.argv = words
runpy.run_path(words[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Processes that begin with everything imported."""
    os.environ.update(ENVIRONMENT, HF_HOME=str(tmp_path_factory.mktemp("hf")))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["rocl_transfer.config", "rocl_transfer.hub", "rocl_transfer.models.resnet_cifar", "datasets", "matplotlib.figure"]
    )
    return context


@pytest.fixture
def command(tmp_path, tmp_path_factory, forks):
    """Run ``python recipes/NAME.py WORDS`` (or another launcher) in an empty folder; the repository's recipes by absolute path.

    With a launcher or an environment it is a process of its own from the start.
    """

    def run(recipe, *words, launcher=None, check=None, environment=None):
        words = [str(ROOT / "recipes" / recipe), *map(str, words)]
        if launcher is None and environment is None:
            output = tmp_path_factory.mktemp("output")
            code = FORKED.replace('"std', f'"{output}/std')
            process = forks.Process(target=exec, args=(code, {"folder": str(tmp_path), "words": words}))
            process.start()
            process.join(600)
            texts = [(output / name).read_text() if (output / name).exists() else "" for name in ("stdout", "stderr")]
            done = subprocess.CompletedProcess(words, process.exitcode, *texts)
        else:
            environment, launcher = {**os.environ, **ENVIRONMENT, **(environment or {})}, launcher or [sys.executable]
            done = subprocess.run([*launcher, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
        if check is not None:
            assert done.returncode == check, done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def hub():
    """A Hub on loopback; a child process that is to use it needs ``hub.environment(home)``."""
    with StandInHub() as hub:
        yield hub


def _noise_image(seed, size=(20, 20), mode="RGB"):
    """An image whose colour tells its seed modulo 2, so that a class can be learned."""
    rng = np.random.default_rng(seed)
    base = np.array([200, 60, 60]) if seed % 2 else np.array([60, 60, 200])
    pixels = (base + rng.integers(-40, 40, (size[1], size[0], 3))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def noise_image():
    return _noise_image


@pytest.fixture
def flat_folder(tmp_path):
    """40 images, no labels."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(40):
        _noise_image(i).save(folder / f"photo_test_{i}.png")  # "test" in a name means nothing
    return folder


@pytest.fixture
def class_folder(tmp_path):
    """Two classes of 20 images, no splits."""
    folder = tmp_path / "classes"
    for i in range(40):
        (folder / "br"[i % 2]).mkdir(parents=True, exist_ok=True)
        _noise_image(i).save(folder / "br"[i % 2] / f"{i}.png")
    return folder


def settings(**options):
    """What :func:`rocl_transfer.training.train` is told, each setting in the group that it belongs to."""
    from rocl_transfer.training import Computing, Span, Watch

    kinds = {"span": Span, "computing": Computing, "watch": Watch}
    names = {group: {field.name for field in dataclasses.fields(kind)} for group, kind in kinds.items()}
    assert options.keys() <= set().union(*names.values())
    return {group: kind(**{name: value for name, value in options.items() if name in names[group]}) for group, kind in kinds.items()}
