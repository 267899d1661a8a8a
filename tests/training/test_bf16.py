"""bf16 on a CPU without units for it is said."""

import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rocl_transfer.evaluation.search_network import search_network
from rocl_transfer.models import create_backbone
from rocl_transfer.training import bf16, finish, start
from tests.conftest import ROOT


def test_the_factor_is_measured_and_differs_with_the_units():
    """A CPU kept to AVX2 has none; where this one has no more either, the two agree."""
    code = "import torch; torch.set_num_threads(1); from rocl_transfer.training.bf16 import bf16_factor; print(min(bf16_factor() for _ in range(3)))"

    def measured(**isa):
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT), **isa}, capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert measured(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2") > bf16._SLOWER
    assert measured() > 0


@pytest.mark.parametrize(("factor", "said"), [(8.9, True), (0.6, False)])
def test_training_in_bf16_without_units_is_said(tmp_path, monkeypatch, caplog, factor, said):
    monkeypatch.setattr(bf16, "bf16_factor", lambda: factor)
    caplog.set_level("INFO", "rocl_transfer")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(True)
    accelerator = start(tmp_path, 0)
    assert accelerator.mixed_precision == "bf16"
    finish(accelerator)
    AcceleratorState._reset_state(True)
    Accelerator(cpu=True, mixed_precision="no")
    assert ("a small convolution takes it 8.9 times as long as in float32" in caplog.text) == said
    assert ("leave out --mixed_precision bf16" in caplog.text) == said


def test_searching_in_bf16_without_units_is_said_and_float32_asks_nothing(monkeypatch, caplog):
    caplog.set_level("INFO", "rocl_transfer")
    monkeypatch.setattr(bf16, "bf16_factor", lambda: 3.5)
    torch.manual_seed(0)
    model = create_backbone("resnet8_cifar", 16)
    model.net.reset_classifier(3)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        search_network(model.eval(), images)
        assert "bf16" not in caplog.text
        search_network(model.eval(), images, precision="bf16")
    assert "3.5 times as long" in caplog.text
    assert "leave out --search_precision bf16" in caplog.text
