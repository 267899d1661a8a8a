"""Long runs of harm and load; each part is one command and prints what it found.

    python benchmarks/soak.py kills --count 50         # SIGKILL at random moments of training, evaluation, export and upload
    python benchmarks/soak.py load --minutes 30        # the quick start's pre-training again and again: memory, files, threads, rate
    python benchmarks/soak.py checkpoints --count 10000
    python benchmarks/soak.py evaluation --samples 100000

Ends with status 1 where a promise is broken.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the stand-in Hub of the tests


def require(condition: bool, sentence: str) -> None:
    if not condition:
        print(f"BROKEN: {sentence}")
        sys.exit(1)


def make_images(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = number % 2
        pixels = (np.array([[200, 60, 60], [60, 60, 200]][kind]) + rng.integers(-60, 60, (16, 16, 3))).clip(0, 255).astype(np.uint8)
        (folder / "ab"[kind]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "ab"[kind] / f"{number}.png")
    return folder


def lines(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    read = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{key: value for key, value in line.items() if key not in ("images_per_second", "memory_bytes")} for line in read]


class Chain:
    """Recipes one after another in a folder, each given again until it ends."""

    options = ("--data.image_size", "16", "--batch_size", "16", "--log_every", "1", "--checkpoint_every", "1")
    recipes = {  # noqa: RUF012
        "pretrain": ("--model.name", "resnet8_cifar", "--epochs", "8", "--optimizer.warmup_epochs", "1", "--objective.attack.steps", "3"),
        "linear_probe": ("--model.name", "{0}/pretrain", "--robust", "true", "--epochs", "6"),
        "finetune": ("--model.name", "{0}/pretrain", "--epochs", "4", "--attack.steps", "3", "--evaluation.steps", "100"),
        "publish": (),
    }

    def __init__(self, work: Path, environment: dict[str, str], seed: int) -> None:
        self.work, self.environment = work, environment
        self.images = make_images(work / "images", 120)
        self.rng = random.Random(seed)  # noqa: S311
        self.where: Counter = Counter()

    def command(self, recipe: str, folder: Path) -> list[str]:
        begun = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py")]
        if recipe == "publish":
            return [*begun, "--run", str(folder / "linear_probe"), "--repo_id", f"user/{folder.name}"]
        own = [word.format(folder) for word in self.recipes[recipe]]
        return [*begun, *own, *self.options, "--data.name", str(self.images), "--output_dir", str(folder / recipe)]

    def seconds(self, words: list[str]) -> float:
        began = time.perf_counter()
        subprocess.run(words, env=self.environment, check=True, capture_output=True)
        return time.perf_counter() - began

    def kill(self, recipe: str, count: int, first: float, last: float) -> None:
        """Between ``first`` and ``last`` seconds after its start, ``count`` times; where it ended before, what it left is compared and removed."""
        folder = self.work / "killed" / recipe
        while True:
            process = subprocess.Popen(
                self.command(recipe, self.work / "killed"), env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )  # fmt: skip
            # Training gets a little further each time; what comes after it is met in the last kills.
            delay = self.rng.uniform(first, first + (last - first) * (0.35 if count > 4 and recipe != "publish" else 1))
            try:
                _, text = process.communicate(timeout=delay if count else 600)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                count -= 1
                found = moment(folder, self.work / "whole" / recipe)
                self.where[f"{recipe}: {found}" if recipe != "publish" else recipe] += 1
                if found == "figures and card":
                    shutil.rmtree(folder)  # little is left of it: the next kill is to meet another part
                continue
            require(process.returncode == 0, f"{recipe} after a kill: {text.decode()[-2000:]}")
            if recipe != "publish":
                compare(self.work, recipe)
            if not count:
                return
            shutil.rmtree(folder, ignore_errors=True)


def kills(words: argparse.Namespace) -> None:
    """Four commands in a chain, each killed at random moments; then everything is compared with a chain left alone."""
    from tests.support.stand_in_hub import OWNER, StandInHub

    work = Path(tempfile.mkdtemp())
    with StandInHub() as hub:
        chain = Chain(work, {**os.environ, **hub.environment(work / "home", OWNER), "TQDM_DISABLE": "1"}, words.seed)
        took = {recipe: chain.seconds(chain.command(recipe, work / "whole")) for recipe in chain.recipes}
        # A kill during imports says nothing.
        imports = 0.9 * chain.seconds([sys.executable, str(ROOT / "recipes/pretrain.py"), "--help"])
        for recipe, share in {"pretrain": 0.4, "linear_probe": 0.15, "finetune": 0.3, "publish": 0.15}.items():
            chain.kill(recipe, round(words.count * share), imports, took[recipe])
        mine, theirs = hub.files("user/killed"), hub.files("user/whole")
    require(set(mine) == set(theirs) and mine["model.safetensors"] == theirs["model.safetensors"], "the repository is another one")
    print(f"{sum(chain.where.values())} kills; weights, metrics, verdicts and the published repository are as without. Killed in:")
    for place, count in chain.where.most_common():
        print(f"  {place}: {count}")
    shutil.rmtree(work)


def moment(folder: Path, whole: Path) -> str:
    """What was going on when ``folder`` was left."""
    if list(folder.glob("**/.step-*")):
        return "saving"
    if (folder / "results.json").exists():
        return "figures and card"
    steps = [line["step"] for line in lines(folder)]
    if not steps:
        return "before the first step"
    return "evaluating or exporting" if steps[-1] == lines(whole)[-1]["step"] else "training"


def compare(work: Path, recipe: str) -> None:
    one, two = work / "whole" / recipe, work / "killed" / recipe
    require((one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes(), f"{recipe}: other weights")
    require(lines(one) == lines(two), f"{recipe}: metrics with a gap or a double")
    if (one / "verdicts.jsonl").exists():
        require((one / "verdicts.jsonl").read_text() == (two / "verdicts.jsonl").read_text(), f"{recipe}: other verdicts")
    left = [str(path) for path in two.rglob(".*") if path.name != ".lock"]
    require(not left, f"{recipe}: left behind {left}")


def resources() -> tuple[float, int, int]:
    """MiB resident, open files, threads."""
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return resident, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def slope(values: list[float]) -> float:
    """A unit, by least squares."""
    return float(np.polyfit(range(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


def load(words: argparse.Namespace) -> None:
    """One process, the quick start's pre-training in a loop."""
    sys.path.insert(0, str(ROOT / "recipes"))
    import pretrain
    from rocl_transfer.config import parse

    row = ROOT / "recipes/configs/digits_rocl.yaml"
    seen, began = [], time.monotonic()
    while time.monotonic() - began < 60 * words.minutes:
        with tempfile.TemporaryDirectory() as folder:
            began_run = time.perf_counter()
            options = ["--config", str(row), "--output_dir", folder, "--max_steps", str(words.steps), "--log_every", "10"]
            pretrain.main(parse(pretrain.PretrainConfig, options))
            rates = [line["images_per_second"] for line in map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
                     if "images_per_second" in line]  # fmt: skip
            seen.append((*resources(), statistics.median(rates), time.perf_counter() - began_run))
        print("\n{:5.1f} min: {:.0f} MiB, {} files, {} threads, {:.0f} images/s".format((time.monotonic() - began) / 60, *seen[-1]), flush=True)
    later = seen[len(seen) // 5 :]  # the first runs fill caches
    memory, files, threads, rate, _ = zip(*later, strict=True)
    growth = slope(list(memory)) * len(later)
    half = len(rate) // 2
    print(
        f"{len(seen)} runs of {words.steps} steps: memory {memory[0]:.0f} to {memory[-1]:.0f} MiB (trend {growth:+.0f} MiB), open files "
        f"{min(files)} to {max(files)}, threads {min(threads)} to {max(threads)}, median images/s {statistics.median(rate):.0f}, first half "
        f"{statistics.median(rate[:half]):.0f}, second {statistics.median(rate[half:]):.0f}"
    )
    require(growth < 0.1 * memory[0], f"memory grows: {growth:.0f} MiB")
    require(max(files) <= files[0] + 2 and max(threads) <= threads[0] + 2, "files or threads grow")


def checkpoints(words: argparse.Namespace) -> None:
    from rocl_transfer.training import Checkpoints, OptimizerOptions

    module = torch.nn.Linear(8, 8)
    optimizer = OptimizerOptions(name="adamw", lr=1e-3, weight_decay=0.0).create(module)
    module(torch.rand(2, 8)).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        rotated, seen, began = Checkpoints(folder, 2, {"a": 1}), [], time.perf_counter()
        for step in range(1, words.count + 1):
            rotated.save(step, module, optimizer, {})
            if step % max(words.count // 10, 1) == 0:
                seen.append(resources()[:2])
        seconds = time.perf_counter() - began
        left = sorted((path.name for path in (Path(folder) / "checkpoints").iterdir()), key=lambda name: (len(name), name))
    (memory, files), (memory_then, files_then) = seen[0], seen[-1]
    print(
        f"{words.count} checkpoints in {seconds:.0f} s ({1000 * seconds / words.count:.1f} ms each, flushed to the disk): memory {memory:.0f} to "
        f"{memory_then:.0f} MiB, open files {files} to {files_then}; left: {', '.join(left)}"
    )
    require(left == [f"step-{words.count - 1}", f"step-{words.count}"], "not rotated")
    require(memory_then < memory + 20 and files_then <= files, "memory or files grow")


def evaluation(words: argparse.Namespace) -> None:
    """A small classifier on many small images, streamed from a table on the disk; memory as it goes."""
    import rocl_transfer as rt
    from rocl_transfer.attacks import PGD
    from rocl_transfer.data import Resident
    from rocl_transfer.evaluation import Context, SearchOptions

    model = rt.load_classifier(str(ROOT / "model_cards/resnet8_cifar.r_le_digits"))
    images = torch.randint(0, 256, (words.samples, 3, 16, 16), dtype=torch.uint8)
    labels = torch.randint(0, 10, (words.samples,))
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.wait(5):
            seen.append(resources()[0])

    before = resources()[0]
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results = rt.evaluate(
            model, Resident(images), labels, attacks=[PGD(0.1, steps=5)], search=SearchOptions(batch_size=512),
            context=Context(journal=Path(folder) / "journal"),
        )  # fmt: skip
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    later = seen[len(seen) // 5 :]
    n = results["clean"].n
    print(
        f"{n} images of 16 px ({images.numel() / 2**20:.0f} MiB of pixels) under PGD-5 in {seconds:.0f} s: memory {before:.0f} MiB before, "
        f"{later[0]:.0f} to {later[-1]:.0f} MiB during, peak {max(seen):.0f} MiB; trend {slope(later) * len(later):+.0f} MiB"
    )
    require(n == words.samples, "samples are missing")
    require(slope(later) * len(later) < 300, "memory grows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for name, options in {
        "kills": {"count": 50, "seed": 0},
        "load": {"minutes": 30.0, "steps": 60},
        "checkpoints": {"count": 10_000},
        "evaluation": {"samples": 100_000},
    }.items():
        part = parts.add_parser(name)
        for option, default in options.items():
            part.add_argument(f"--{option}", type=type(default), default=default)
    words = parser.parse_args()
    {"kills": kills, "load": load, "checkpoints": checkpoints, "evaluation": evaluation}[words.part](words)


if __name__ == "__main__":
    main()
