"""The script of the reference models runs through on next to nothing, and makes nothing twice."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ENVIRONMENT, ROOT


@pytest.mark.slow
def test_the_reference_models_are_made_measured_and_kept(tmp_path):
    words = ["--data", "digits", "--title", "digits", "--rows", "twin", "--samples", "3", "--output_dir", str(tmp_path)]
    words += ["--words", "epochs=2", "data.image_size=16", "evaluation.steps=1"]
    command = [sys.executable, ROOT / "benchmarks" / "cifar10.py", *words]
    first = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    rows = [line for line in first.stdout.splitlines() if line.startswith("| an ordinary network")]
    assert [row.split("|")[3].strip() for row in rows] == ["4/255", "8/255"]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    assert {path.parent.name for path in written} == {
        "standard",
        "twin",
        *(f"twin-{attacks}-{radius}" for attacks in ("paper", "standard") for radius in (4, 8)),
    }
    shutil.rmtree(tmp_path / "standard")  # the twin is there, so what it was made from need not be
    written = {path: time for path, time in written.items() if path.exists()}
    again = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")} == written
