from __future__ import annotations

import json

import pytest
import torch

from benchmarks.fold import PARTED, measure, measure_parts, measure_robust
from protocol.compression import OF_UPDATES, CodecName


@pytest.mark.parametrize("codec", OF_UPDATES)
@pytest.mark.parametrize("mapped", [False, True])
def test_every_codec_is_measured_beside_axpy(tmp_path, codec, mapped):
    threads = torch.get_num_threads()
    found = json.loads(measure(codec, 90_000, 2, tmp_path, mapped=mapped).to_json())
    assert (found["codec"], found["mapped"], found["params"]) == (codec, mapped, 90_000)
    assert found["ratio"] == pytest.approx(found["params_per_s"] / found["axpy_params_per_s"], rel=1e-2)
    assert (found["bytes_per_param"] < 2.1) == (codec is not CodecName.NONE)
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("trim", "name"), [(2, "median"), (1, "mean without 1 at either end")])
def test_robust_aggregates_are_measured_beside_axpy(tmp_path, trim, name):
    found = json.loads(measure_robust(6, 50_000, trim, 1, tmp_path).to_json())
    assert (found["aggregate"], found["rows"], found["params"]) == (name, 6, 50_000)
    expected = 6 * 50_000 / found["seconds"] / found["axpy_params_per_s"]
    assert found["ratio"] == pytest.approx(expected, rel=1e-2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", PARTED)
def test_the_parts_of_a_fold_are_measured_alone(tmp_path, codec):
    found = json.loads(measure_parts(codec, 300_000, 2, tmp_path).to_json())
    assert (found["codec"], found["params"]) == (codec, 547**2)
    parts = found["map_ns"] + found["convert_ns"] + found["add_ns"]
    assert found["limit"] == pytest.approx(found["axpy_ns"] / parts, rel=1e-2)
    assert list(tmp_path.iterdir()) == []
