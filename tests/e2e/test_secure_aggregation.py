"""A secure sum on real processes: what is spooled is noise, and who is killed after it delivered still counts."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from protocol.masked_layout import MASKED_FORMAT
from protocol.recipe import Recipe
from protocol.secure_messages import secure_terms
from protocol.secure_wire import grid_of
from tests.e2e.conftest import RealFarm

CODE = """
    import time
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(0)
        return nn.Linear(520, 516)

    def loss(model, batch):
        if (batch["x"][:, 0] > 50).any():
            time.sleep(config_sleep)
        return (model(batch["x"]) ** 2).mean() + model.bias.sum()

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    config_sleep = 2.0
"""
TASK = """
    [task]
    entry = "train.py"
    data = "data.npz"

    [recipe]
    rounds = 1
    round_samples = 96
    batch_samples = 32
    parts = "fixed"
    min_clients = 3
    evaluate_every = 0
"""


def chi_square(words: np.ndarray) -> float:
    """Return the statistic of the words' bytes against all 256 being as likely: about 255; over 360 once in 10**5."""
    counts = np.bincount(np.frombuffer(words.tobytes(), dtype=np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float((((counts - expected) ** 2) / expected).sum())


def masked_spool(farm: RealFarm) -> list[np.ndarray]:
    """Return the words of the masked updates that lie in the server's blob store."""
    found = []
    for path in farm.folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1_000_000:
            try:
                with safe_open(path, "numpy") as file:
                    if (file.metadata() or {}).get("format") == MASKED_FORMAT and "outbox" not in str(path):
                        found.append(np.concatenate([file.get_tensor(name).ravel() for name in sorted(file.keys())]))
            except (SafetensorError, OSError):  # no safetensors file, or one that is gone
                continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_sum_is_learned_and_no_update_is(tmp_path: Path, start_farm: Callable[[int], RealFarm]) -> None:
    farm, rng = start_farm(3), np.random.default_rng(0)
    x = rng.normal(size=(96, 520)).astype("f4")
    x[7, 0] = 100.0  # whoever has this row is slow
    (tmp_path / "train.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "task.toml").write_text(textwrap.dedent(TASK))
    np.savez(tmp_path / "data.npz", x=x)
    models = {}
    for secure in ("false", "true"):
        task = farm.submit(str(tmp_path), "--set", f"recipe.secure_aggregation={secure}")
        if secure == "true":
            farm.wait_until(
                lambda task=task: re.search("2 of 3 .* delivered", farm.api.explain(task).why), "two have delivered"
            )
            spooled = masked_spool(farm)
            assert len(spooled) >= 2
            assert max(map(chi_square, spooled)) < 360
            busy = {c.name for c in farm.api.clients() if c.assignments}
            victim = next(v for v in farm.volunteers if v.name not in busy)
            farm.kill(victim.pid)
        ended = farm.run("wait", task, "--timeout", "60")
        assert ended.exit_code == 0, ended.stderr
        path = tmp_path / f"{secure}.safetensors"
        assert farm.run("pull", task, "-o", str(path)).exit_code == 0
        models[secure] = load_file(path)
    recipe = Recipe(rounds=1, round_samples=96, secure_aggregation=True, min_clients=3)
    error = grid_of(secure_terms(recipe, attempt=0, threshold=2)).error
    for name, plain in models["false"].items():
        np.testing.assert_allclose(models["true"][name], plain, rtol=0, atol=error + 1e-6)
