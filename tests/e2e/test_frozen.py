"""An adapter over a frozen base, on a real farm: the base travels and is stored once, and the pulled model is whole."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import RealFarm

CODE = """
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 300_000).requires_grad_(False), nn.Linear(300_000, 2))
        model[1].weight.requires_grad_(False)
        return model

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""
BASE_BYTES = 4 * 300_000 * (4 + 1 + 2)


def sent_bytes(farm: RealFarm) -> float:
    """Return the bytes of blobs that the server has sent over HTTP."""
    url = httpx.URL(farm.processes.farm_url).copy_with(path="/metrics", username="")
    lines = httpx.get(url, trust_env=False).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith('farm_blob_bytes_total{direction="out"}'))


@pytest.mark.slow
def test_a_frozen_base_is_sent_and_stored_once(tmp_path: Path, start_farm: Callable[[int], RealFarm]) -> None:
    farm = start_farm(2)
    code = tmp_path / "train.py"
    code.write_text(textwrap.dedent(CODE))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(64, 4)).astype("f4"), y=rng.integers(0, 2, 64))
    task = farm.submit(
        str(code), "--data", str(tmp_path / "data.npz"), "--mode", "weights", "--rounds", "4", "--min-clients", "2"
    )
    assert farm.run("wait", task, "--timeout", "80").exit_code == 0

    kept = farm.api.checkpoints(task)
    assert max(c.size_bytes for c in kept) < 1000, "a version has the two numbers that are trained"
    assert all(c.frozen is not None and c.frozen.size_bytes > BASE_BYTES for c in kept)
    assert BASE_BYTES < sent_bytes(farm) / 2 < 1.01 * BASE_BYTES, "each of two clients fetched it once in four rounds"
    assert farm.run("pull", task, "-o", str(tmp_path / "model.safetensors")).exit_code == 0
    model = load_file(tmp_path / "model.safetensors")
    torch.manual_seed(0)
    built = torch.nn.Sequential(torch.nn.Linear(4, 300_000), torch.nn.Linear(300_000, 2))
    built.load_state_dict(model)
    assert model.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    torch.manual_seed(0)
    fresh = torch.nn.Sequential(torch.nn.Linear(4, 300_000), torch.nn.Linear(300_000, 2))
    assert torch.equal(model["0.weight"], fresh[0].weight)
    assert not torch.equal(model["1.bias"], fresh[1].bias)
