"""What a round costs the server in memory: so many times the model, whatever the number of updates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TENSORS, ELEMENTS = 20, 1_000_000
MODEL_BYTES = 4 * TENSORS * ELEMENTS
FIXED_BYTES = 32 * 1024**2
"""Chunks in scratch, threads, and what the allocator keeps."""
TEMPORARY_BYTES = 96 * 1024**2
"""What encoding or an optimizer needs for one tensor at a time, and the allocator keeps."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def grown_bytes(folder: Path, updates: int = 1, **recipe: object) -> int:
    case = {"recipe": {"rounds": 1, **recipe}, "tensors": TENSORS, "elements": ELEMENTS, "updates": updates}
    command = [sys.executable, "-m", "tests.farm_server.tensors.round_memory", str(folder), json.dumps(case)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


@pytest.mark.parametrize("updates", [1, 8])
def test_averaging_takes_weights_and_accumulator_and_nothing_else(tmp_path, updates):
    assert grown_bytes(tmp_path, updates) < 2 * MODEL_BYTES + FIXED_BYTES


def test_a_median_takes_weights_and_its_result_and_reads_a_dozen_updates_at_once(tmp_path):
    assert grown_bytes(tmp_path, 12, aggregate="median") < 2 * MODEL_BYTES + FIXED_BYTES


def test_deltas_take_a_master_copy_besides(tmp_path):
    assert grown_bytes(tmp_path, weights_codec={"name": "int8"}) < 3.25 * MODEL_BYTES + TEMPORARY_BYTES


def test_an_optimizer_takes_its_state_besides(tmp_path):
    adam = {"name": "adam", "options": {"lr": 0.1}}
    assert grown_bytes(tmp_path, outer=adam) < 4 * MODEL_BYTES + TEMPORARY_BYTES


def test_a_carried_state_is_in_memory_once_however_many_bring_it(tmp_path):
    assert grown_bytes(tmp_path, 3, inner_state="carried") < (2 + 2) * MODEL_BYTES + FIXED_BYTES
