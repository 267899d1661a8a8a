"""Shared: small images in every layout a user may bring, and recipes run as a user runs them."""

import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributed import TCPStore

from tests.support.stand_in_hub import StandInHub

ROOT = Path(__file__).parents[1]
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # tests that run side by side have a core each
torch.set_num_threads(THREADS)
with suppress(ImportError):  # datasets sleeps five seconds for arrow's threads where a pass over parquet ends, which is one over 40 images here
    import datasets

    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.2
# A shell's `&` and `nohup` leave these ignored, which recipes respect and tests of signals cannot have.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def threads():
    """As many for every test: a recipe that one runs in this process takes all cores for those after it, which wait for each other then (7x)."""
    yield
    torch.set_num_threads(THREADS)


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


# What a process does that was forked from one with the imports done, which take 5 of the 8 seconds of a short run.
FORKED = """
import multiprocessing, os, runpy, sys
multiprocessing.set_start_method(None, force=True)  # workers that read are started as in any other process
os.setsid()
os.chdir(folder)
os.environ.update(environment)
os.dup2(os.open(f"{output}/stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
os.dup2(os.open(f"{output}/stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
sys.path[0] = os.path.dirname(words[0])
sys.argv = words
if "datasets" in sys.modules:
    sys.modules["datasets"].config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.2
runpy.run_path(words[0], run_name="__main__")
"""


IMPORTED = ["rocl_transfer.config", "rocl_transfer.hub", "rocl_transfer.models.resnet_cifar", "datasets", "matplotlib.figure"]
# The same for an environment that is read while modules are imported: what to run comes as lines, and each one's status is the answer.
SERVER = f"""
import json, os, sys, {", ".join(IMPORTED)}
for line in sys.stdin:
    names = json.loads(line)
    if not (pid := os.fork()):
        exec({FORKED!r}, names)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forked:
    """A script that runs in a process forked from one with the imports done, in a session of its own."""

    def __init__(self, context, output, folder, words, environment=None):
        self.output, self.words = output, words
        names = {"folder": str(folder), "output": str(output), "words": words, "environment": environment or {}}
        self.process = context.Process(target=exec, args=(FORKED, names))
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=600):
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(self.words, timeout)

    def texts(self):
        """What it printed and what it said, up to now."""
        return [path.read_text() if path.exists() else "" for path in (self.output / "stdout", self.output / "stderr")]

    def communicate(self, timeout=600):
        """Its status, what it printed and what it said, once it has ended."""
        self.wait(timeout)
        return subprocess.CompletedProcess(self.words, self.process.exitcode, *self.texts())


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Processes that begin with everything imported."""
    os.environ.update(ENVIRONMENT, HF_HOME=str(tmp_path_factory.mktemp("hf")))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@pytest.fixture(scope="session")
def fork(forks, tmp_path_factory):
    """Start ``python WORDS`` in a folder, with everything imported."""

    def start(folder, *words, environment=None):
        return Forked(forks, tmp_path_factory.mktemp("output"), folder, [str(word) for word in words], environment)

    return start


@pytest.fixture(scope="session")
def together(fork):
    """Run ``python WORDS`` in two processes of one run, as torchrun starts them, but without importing torch three times: 15 s of a core.

    If one fails the other is ended, and the answer is what the failed one said.
    """

    def run(folder, *words):
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "localhost"}
        common["MASTER_PORT"] = str(store.port)
        both = [fork(folder, *words, environment={**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
        waiting = {one.process.sentinel: one for one in both}
        while waiting:
            ready = multiprocessing.connection.wait(waiting, timeout=600)
            ended = [waiting.pop(sentinel) for sentinel in ready]
            if failed := [one for one in ended if one.communicate().returncode]:
                for one in both:
                    one.process.kill()
                return failed[0].communicate()
            assert ready, "still not done after ten minutes"
        return both[0].communicate()

    return run


@pytest.fixture
def server(tmp_path, tmp_path_factory):
    """Run ``python WORDS`` in a process forked from one that imported everything in this environment."""
    servers = {}

    def run(environment, words):
        key, output = json.dumps(environment, sort_keys=True), tmp_path_factory.mktemp("output")
        if key not in servers:
            environment = {**os.environ, **ENVIRONMENT, **environment}
            pipe, code = subprocess.PIPE, [sys.executable, "-c", SERVER]
            servers[key] = subprocess.Popen(code, cwd=tmp_path, env=environment, stdin=pipe, stdout=pipe, text=True)
        servers[key].stdin.write(json.dumps({"folder": str(tmp_path), "output": str(output), "words": words, "environment": {}}) + "\n")
        servers[key].stdin.flush()
        status = int(servers[key].stdout.readline())
        return subprocess.CompletedProcess(words, status, *((output / name).read_text() for name in ("stdout", "stderr")))

    yield run
    for process in servers.values():
        process.kill()  # its runs are over, and taking the imports down takes seconds
        process.communicate(timeout=60)


@pytest.fixture
def command(tmp_path, fork, together, server):
    """Run ``python recipes/NAME.py WORDS`` in an empty folder; the repository's recipes by absolute path.

    A launcher is a script in Python, and starts new processes as always. With ``processes=2`` the recipe runs in two, as from torchrun.
    """

    def run(recipe, *words, launcher=(), check=None, environment=None, processes=1):
        words = [str(ROOT / "recipes" / recipe), *map(str, words)]
        if processes == 2:
            done = together(tmp_path, *words)
        elif environment is None:
            done = fork(tmp_path, *launcher, *words).communicate()
        else:
            done = server(environment, words)
        if check is not None:
            assert done.returncode == check, done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def hub():
    """A Hub on loopback; a child process that is to use it needs ``hub.environment(home)``."""
    with StandInHub() as hub:
        yield hub


def export_untrained(folder, size):
    """A backbone for images of ``size`` px that was never trained, exported into ``folder``."""
    from rocl_transfer.hub import export
    from rocl_transfer.models import create_backbone

    torch.manual_seed(0)
    export(create_backbone("resnet8_cifar", size), folder)
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """An exported backbone that tells red from blue no better than chance would."""
    return export_untrained(tmp_path_factory.mktemp("pre"), 32)


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


def two_classes(folder):
    """Two classes of 20 images, no splits."""
    for i in range(40):
        (folder / "br"[i % 2]).mkdir(parents=True, exist_ok=True)
        _noise_image(i).save(folder / "br"[i % 2] / f"{i}.png")
    return folder


@pytest.fixture
def class_folder(tmp_path):
    return two_classes(tmp_path / "classes")


def settings(**options):
    """What :func:`rocl_transfer.training.train` is told, each setting in the group that it belongs to."""
    from rocl_transfer.training import Computing, Span, Watch

    kinds = {"span": Span, "computing": Computing, "watch": Watch}
    names = {group: {field.name for field in dataclasses.fields(kind)} for group, kind in kinds.items()}
    assert options.keys() <= set().union(*names.values())
    return {group: kind(**{name: value for name, value in options.items() if name in names[group]}) for group, kind in kinds.items()}
