"""The script for a GPU's first quarter of an hour runs through without one, on next to nothing."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TINY = {
    "ANYWHERE": "1", "MODEL": "resnet8_cifar", "SIZE": "16", "IMAGES": "4", "DATA": "digits", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
    "PATIENCE": "10",
    "PRETRAIN_WORDS": "--data.image_size 16 --batch_size 8 --objective.group_size 4 --objective.attack.steps 1 --max_steps 2 --checkpoint_every 1",
    "PROBE_WORDS": "--data.image_size 16 --epochs 60 --batch_size 64 --evaluation.steps 1", "EVALUATE_WORDS": "--samples 2 --attacks fast",
}  # fmt: skip


def on_a_gpu(tmp_path, *words, **more):
    places = {"OUT": str(tmp_path / "out"), "RUN": str(tmp_path / "run")}
    environment = {**os.environ, **TINY, **places, **more}
    return subprocess.run(["bash", "benchmarks/on_a_gpu.sh", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_or_a_task_it_says_so(tmp_path):
    assert on_a_gpu(tmp_path).returncode == 2
    done = on_a_gpu(tmp_path, "check", ANYWHERE="")
    assert done.returncode == 1
    assert "versions: status 1" in done.stdout
    assert "no GPU" in done.stdout
    assert not (tmp_path / "run" / "rate").exists()


@pytest.mark.slow
def test_the_gpu_script_checks_and_trains_to_the_end(tmp_path):
    done = on_a_gpu(tmp_path, "check")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    measured = [json.loads(line)["what"] for line in (tmp_path / "out" / "probe.jsonl").read_text().splitlines()]
    assert {"machine", "host", "step", "pass"} <= set(measured)
    assert "ratio reference / exact" in done.stdout
    assert int((tmp_path / "run" / "rate").read_text()) >= 1
    done = on_a_gpu(tmp_path, "train", "900", KILL_AFTER="300")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "le: status 0" in done.stdout
    for name, kind in (("pre", "kNN"), ("le", "clean"), ("aa", "apgd-ce")):
        record = json.loads((tmp_path / "run" / name / "results.json").read_text())
        assert any(kind in one["name"] for one in record["evaluations"]), (name, record["evaluations"])
