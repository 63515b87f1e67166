"""PyTorch DDP beside the farm: it takes steps of the same model, and a failure of it is told."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import distributed

from benchmarks import ddp
from benchmarks.farm import BenchmarkError
from benchmarks.noop_task import train


def test_it_has_the_parameters_of_the_farms_task_and_a_gradient_for_each_tensor(monkeypatch):
    monkeypatch.setattr(train, "TENSOR_PARAMS", 400)
    model = ddp.Idle(1000)
    model(torch.ones(1)).backward()
    assert [part.grad.numel() for part in model.parts] == [400, 400, 200]


def test_a_process_counts_steps_and_all_reduces(tmp_path):
    found = ddp.run(rank=0, processes=1, params=100, seconds=0.01, rendezvous=tmp_path / "rendezvous")
    assert found.steps_per_s > 0
    assert found.all_reduce_s > 0
    assert not distributed.is_initialized()


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(ddp.sys, "executable", shutil.which("false"))
    with pytest.raises(BenchmarkError, match=r"DDP failed: exit codes \[1, 1\]"):
        ddp.measure(params=100, processes=2, seconds=0.01)


def test_a_process_that_aborts_while_it_exits_costs_no_figure(monkeypatch, tmp_path, capsys):
    script = tmp_path / "python"
    script.write_text("""#!/bin/sh\necho '{"steps_per_s": 5.0, "all_reduce_s": 0.5}'\nkill -ABRT $$\n""")
    script.chmod(0o755)
    monkeypatch.setattr(ddp.sys, "executable", str(script))
    assert ddp.measure(params=100, processes=2, seconds=0.01) == ddp.Ddp(steps_per_s=5.0, all_reduce_s=0.5)
    assert "did not exit cleanly: exit codes [-6, -6]" in capsys.readouterr().err
