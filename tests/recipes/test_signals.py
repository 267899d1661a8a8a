"""What takes machines away, done to the recipes: signals, a launcher or a neighbour that dies, a disk that is full."""

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TORCHRUN, two_classes
from tests.recipes.test_recipes import BIN, EVERY_STEP, TINY, assert_same_course, metrics

SLOW = [*TINY, "--epochs", "12", "--optimizer.warmup_epochs", "1", "--checkpoint_every", "1", "--objective.group_size", "4"]


@pytest.fixture
def begin(fork, tmp_path):
    """Start a recipe, or a launcher of it, and wait until it has written its ``lines``-th line of metrics."""
    started = []

    def begin(folder, *words, launcher=(), lines=6):
        process = fork(tmp_path, *launcher, ROOT / "recipes" / "pretrain.py", *words, "--output_dir", folder)
        started.append(process)
        file, deadline = tmp_path / folder / "metrics.jsonl", time.monotonic() + 600
        while not (file.exists() and file.read_text().count("\n") >= lines):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


@pytest.fixture(scope="module")
def whole(fork, tmp_path_factory):
    """A run of ``SLOW`` on ``class_folder``'s images that nothing interrupts."""
    place = tmp_path_factory.mktemp("whole")
    done = fork(place, ROOT / "recipes" / "pretrain.py", *SLOW, "--data.name", two_classes(place / "classes"), "--output_dir", "run").communicate()
    assert done.returncode == 0, done.stderr
    return place / "run"


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def newest(folder):
    return max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def assert_same(one, two):
    a, b = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert metrics(one) == metrics(two)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_its_status(command, begin, whole, class_folder, tmp_path, number):
    words = [*SLOW, "--data.name", class_folder, "--checkpoint_every", "1000"]
    process = begin("parts", *words)
    process.send_signal(number)
    done = process.communicate(timeout=60)
    assert done.returncode == 128 + number
    found = re.fullmatch(rf"interrupted by {number.name} at step (\d+) of 48; the same command resumes from parts/checkpoints/step-(\d+)",
                         done.stderr.splitlines()[-1])  # fmt: skip
    assert found[1] == found[2]
    assert newest(tmp_path / "parts") == int(found[1]) >= 5
    done = command("pretrain.py", *words, "--output_dir", "parts", check=0)
    assert f"resumed from parts/checkpoints/step-{found[1]}" in done.stderr
    assert_same(whole, tmp_path / "parts")


def test_a_signal_to_the_whole_group_saves_although_workers_read(command, begin, class_folder, tmp_path):
    words = [*SLOW, "--epochs", "100", "--data.name", class_folder, "--data.in_memory", "false", "--checkpoint_every", "10000"]
    process = begin("parts", *words)
    os.killpg(process.pid, signal.SIGTERM)
    done = process.communicate(timeout=60)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert newest(tmp_path / "parts") >= 5


@pytest.mark.slow
def test_a_recipe_ends_with_its_launcher_and_saves(command, begin, class_folder, tmp_path):
    words = [*SLOW, "--epochs", "400", "--data.name", class_folder, "--checkpoint_every", "10000", "--keep_checkpoints", "9"]
    launcher = begin("parts", *words, launcher=(str(BIN / "accelerate"), "launch", "--cpu"))
    (recipe,) = children(launcher.pid)
    os.kill(launcher.pid, signal.SIGKILL)
    wait_for(lambda: ended(recipe))
    assert newest(tmp_path / "parts") >= 5
    assert not (tmp_path / "parts" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_process_whose_neighbour_is_killed_ends_with_a_sentence(command, begin, class_folder, tmp_path):
    words = [*SLOW, "--batch_size", "4", "--data.name", class_folder]
    command("pretrain.py", *words, "--output_dir", "whole", processes=2, check=0)
    process = begin("parts", *words, launcher=TORCHRUN)
    ranks = {int(Path(f"/proc/{pid}/environ").read_text().split("\0RANK=")[1].split("\0")[0]): pid for pid in children(process.pid)}
    os.kill(ranks[1], signal.SIGKILL)
    done = process.communicate(timeout=90)
    assert done.returncode != 0
    assert re.search(r"(another process of this run is gone, at step|interrupted by SIGTERM at step) \d+.*the same command resumes from", done.stderr)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    done = command("pretrain.py", *words, "--output_dir", "parts", processes=2, check=0)
    assert "resumed from parts/checkpoints/step-" in done.stderr
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(command, begin, whole, class_folder, tmp_path):
    words = [*SLOW, "--data.name", class_folder]
    for lines in (2, 20, 35):  # benchmarks/soak.py does it 50 times, and to the other recipes
        process = begin("parts", *words, lines=lines)
        time.sleep(random.uniform(0, 0.2))  # noqa: S311
        process.send_signal(signal.SIGKILL)
        process.wait()
    command("pretrain.py", *words, "--output_dir", "parts", check=0)
    assert_same(whole, tmp_path / "parts")
    assert not list((tmp_path / "parts" / "checkpoints").glob(".*"))


def test_a_disk_without_room_is_told_in_a_sentence(command, class_folder, tmp_path):
    words = [*TINY, "--data.name", class_folder, "--max_steps", "2", "--output_dir", "a"]
    # Files of at most 100 KiB: the kernel refuses the weights as it does on a full disk.
    (tmp_path / "small.py").write_text(
        "import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (102400, 102400))\nsys.argv.pop(0)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = command("pretrain.py", *words, launcher=[tmp_path / "small.py"])
    assert done.returncode == 2
    assert re.match(r"error: the checkpoint a/checkpoints/step-0 cannot be written \(.*File too large.*make room", done.stderr.splitlines()[-1])
    command("pretrain.py", *words, check=0)


def test_a_run_that_is_being_written_is_left_alone(command, begin, class_folder, tmp_path):
    words = [*SLOW, "--epochs", "400", "--data.name", class_folder]
    process = begin("a", *words)
    refused = command("pretrain.py", *words, "--output_dir", "a")
    assert refused.returncode == 2
    assert f"a is being written by another process (process {process.pid} on" in refused.stderr.splitlines()[-1]
    assert process.poll() is None


def test_another_run_is_only_overwritten_where_that_is_said(command, class_folder, tmp_path):
    words = [*TINY, "--data.name", class_folder, "--max_steps", "2", "--output_dir", "a"]
    command("pretrain.py", *words, check=0)
    refused = command("pretrain.py", *words, "--seed", "1")
    assert refused.returncode == 2
    assert "--seed was 0 in the run" in refused.stderr.splitlines()[-1]
    assert "--overwrite true to begin again" in refused.stderr.splitlines()[-1]
    before = load_file(tmp_path / "a" / "model.safetensors")
    mistaken = command("pretrain.py", *words, "--seed", "1", "--overwrite", "--model.name", "resnet8_cifr")
    assert mistaken.returncode == 2
    assert (tmp_path / "a" / "model.safetensors").exists()
    command("pretrain.py", *words, "--seed", "1", "--overwrite", check=0)
    after = load_file(tmp_path / "a" / "model.safetensors")
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_another_number_of_processes_resumes_with_the_same_batches(command, class_folder, tmp_path):
    words = ["--model.name", "test_vit", "--data.name", class_folder, "--data.image_size", "32", "--data.validation_fraction", "0",
             "--log_every", "1", "--objective.group_size", "8", "--objective.attack.steps", "3", *EVERY_STEP]  # fmt: skip
    command("pretrain.py", *words, "--batch_size", "16", "--output_dir", "one", "--max_steps", "4", check=0)
    command("pretrain.py", *words, "--batch_size", "8", "--output_dir", "two", "--max_steps", "2", processes=2, check=0)
    done = command("pretrain.py", *words, "--batch_size", "16", "--output_dir", "two", "--max_steps", "4", check=0)
    assert "the run is resumed with 1 process(es) instead of 2" in done.stderr
    assert_same_course(tmp_path / "one", tmp_path / "two", 4)
