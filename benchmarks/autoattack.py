"""AutoAttack's standard version: ours against the reference (pyautoattack), same model, same samples, same run.

    python benchmarks/autoattack.py MODEL DATA --epsilon 0.1 [--norm l2] [--image_size 16] [--samples 100] [--processes 2] [--again]

Prints, part by part, how many samples stand and the seconds of both, and how many samples they disagree on. The reference runs as its users have it;
ours as recipes/evaluate.py does, which on a CPU keeps freed memory; with --processes the recipe itself as well, as so many, its seconds those of the
whole command; with --again the reference once more, with memory kept as well.
Needs the extra `autoattack`.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from pyautoattack import AutoAttack

from rocl_transfer.attacks.reference import PARTS
from rocl_transfer.data import load_images, store_splits, stratified_sample
from rocl_transfer.evaluation import SearchOptions, evaluate
from rocl_transfer.evaluation.protocols import named_attacks
from rocl_transfer.evaluation.results import attack_key
from rocl_transfer.evaluation.samples import pixels_of
from rocl_transfer.hub import load_classifier
from rocl_transfer.training import keep_memory

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Times(logging.Handler):
    """Reads how many stand after each part, and when, off the reference's log."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[float, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"robust accuracy after .*: ([\d.]+)% \(total time ([\d.]+) s\)", record.getMessage()):
            self.parts.append((float(found[1]) / 100, float(found[2])))


def ours(model, images, labels, epsilon, norm, compiled, precision):
    began = time.perf_counter()
    attacks = named_attacks("standard", epsilon, norm, 10)
    results = evaluate(model, images, labels, attacks=attacks, search=SearchOptions(compile=compiled, search_precision=precision))
    whole = time.perf_counter() - began
    entries = [results[part, epsilon] for part in PARTS]
    standing = torch.tensor([line[attack_key(attacks[0])] for line in results.verdicts])
    return [(entry.accuracy, entry.seconds) for entry in entries], whole, standing


def recipe(options, processes):
    """Seconds of the whole command, from nothing to its report; seconds of its attacks alone; and which samples stand."""
    size = ["--data.image_size", str(options.image_size)] if options.image_size else []
    samples = ["--samples", str(options.samples)] if options.samples else []
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "recipes/evaluate.py"]
    what = ["--model.name", options.model, "--data.name", options.data, *size, *samples, "--norm", options.norm]
    threads = max((os.cpu_count() or 1) // processes, 1)
    with tempfile.TemporaryDirectory() as folder:
        where = ["--epsilon", str(options.epsilon), "--update_card", "false", "--output_dir", folder]
        began = time.perf_counter()
        subprocess.run([*launch, *what, *where], check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        whole = time.perf_counter() - began
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (Path(folder) / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    attack = next(entry for entry in results["evaluations"] if entry["name"].startswith("autoattack"))
    name = next(name for name in lines[0] if name.startswith("autoattack"))
    return whole, attack["seconds"], torch.tensor([line[name] for line in lines])


def reference(model, images, labels, epsilon, norm, batch_size):
    log, times = logging.getLogger("auto-attack"), Times()
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(times)
    attack = AutoAttack(model, norm=NORMS[norm], eps=epsilon, seed=0, version="standard", device=images.device)
    began = time.perf_counter()
    _, answers = attack.run_standard_evaluation(images, labels, batch_size=batch_size)
    whole = time.perf_counter() - began
    log.removeHandler(times)
    ends = [0.0, *(end for _, end in times.parts)]
    return [(share, ends[i + 1] - ends[i]) for i, (share, _) in enumerate(times.parts)], whole, (answers == labels).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--norm", default="linf", choices=NORMS)
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--batch_size", type=int, default=500, help="of the reference")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--search_precision", default="fp32", choices=("fp32", "bf16"), help="of ours")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_classifier(options.model).to(device)
    data = load_images(options.data, image_size=options.image_size or model.input_size)
    data, stores = store_splits(data, ("test",), device)
    samples = stratified_sample(data.test.labels, options.samples, 0)
    images, labels = pixels_of(next(iter(stores["test"].batches([samples])))), data.test.labels[samples].to(device)
    where = f"{options.norm} {options.epsilon:.6g}, torch {torch.__version__}, {device}"
    print(f"{options.model} on {len(samples)} of {options.data}, {where}", flush=True)
    known, taken, theirs = reference(model, images, labels, options.epsilon, options.norm, options.batch_size)
    known += [(known[-1][0], 0.0)] * (len(PARTS) - len(known))  # it stops where nothing stands
    keep_memory()
    print(f"ours searches in {options.search_precision}")
    native, spent, standing = ours(model, images, labels, options.epsilon, options.norm, options.compile, options.search_precision)
    print("part      standing: ours  reference   seconds: ours  reference   ratio")
    for part, (share, seconds), (other, others) in zip(PARTS, native, known, strict=True):
        print(f"{part:8s} {100 * share:14.2f} {100 * other:10.2f} {seconds:15.1f} {others:10.1f} {others / max(seconds, 1e-9):7.2f}")
    print(f"only ours broke {int((theirs & ~standing).sum())}, only the reference broke {int((standing & ~theirs).sum())} of {len(samples)}")
    print(f"whole: ours {spent:.1f} s, reference {taken:.1f} s, ratio {taken / spent:.2f}", flush=True)
    if options.processes:
        seconds, searching, split = recipe(options, options.processes)
        print(f"the recipe as {options.processes} processes: {seconds:.1f} s from start to report, {searching:.1f} s of it attacks, "
              f"other verdicts on {int((split != standing).sum())}; ratio {taken / seconds:.2f}", flush=True)  # fmt: skip
    if options.again:
        _, taken, _ = reference(model, images, labels, options.epsilon, options.norm, options.batch_size)
        print(f"reference with memory kept: {taken:.1f} s, ratio {taken / spent:.2f}")


if __name__ == "__main__":
    main()
