"""Whether a model is held in parts: by the owner's wish, the device's memory, and what the task needs whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from farm_client.executor import placing, process_group
from farm_client.executor.layout import ModelTensors
from farm_client.executor.own_parts import own_part
from farm_client.executor.placing import Placing, needed_bytes, why_whole
from farm_client.executor.rank_links import Hub
from farm_client.executor.ranks import Ranks
from protocol.recipe import InnerState, Precision
from tests.farm_client.executor.bench_task import LINEAR, Bench
from tests.farm_client.executor.test_shards import TRANSFORMER, tokens

CPU = torch.device("cpu")


@pytest.fixture
def _fake_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let three ranks that do nothing be beside this process."""

    def join(_links: Any, rank: int, size: int, _device: Any, _scratch: Path) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)

    monkeypatch.setattr(process_group, "join_group", join)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_fake_group")
def test_a_process_of_four_holds_a_quarter_of_a_model(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TRANSFORMER, arrays=tokens(8))
    whole = bench.runner.tensors
    model = bench.runner.contract.build_model()
    parts = Placing(Ranks(0, 4, Hub([])), "always")(bench.runner.contract, model, bench.load_order(), CPU)
    held = sum(own_part(tensor).nbytes for tensor in parts.parameters.values())
    total = sum(tensor.nbytes for tensor in whole.parameters.values())
    assert total / 4 <= held <= total / 4 + 64 * len(parts.parameters)
    assert parts.layout() == whole.layout()
    parts.check_structure()
    loaded = parts.placed(dict(whole.parameters))
    parts.load({**loaded, **whole.buffers})
    for name, tensor in parts.parameters.items():  # this rank's are the first rows
        part = own_part(tensor)
        assert torch.equal(part, whole.parameters[name][: len(part)])
        assert len(part) == -(-len(tensor) // 4)


def asked(tmp_path: Path, wish: str, source: str = LINEAR) -> list[bool]:
    """Return what the ranks were asked to agree on, where nobody wishes parts in the end."""
    bench = Bench(tmp_path, source)
    wishes: list[bool] = []

    class Asked(Ranks):
        def agree(self, *, wish: bool) -> bool:
            wishes.append(wish)
            return False

    found = Placing(Asked(0, 2, Hub([])), wish)(
        bench.runner.contract, bench.runner.contract.build_model(), bench.load_order(), CPU
    )
    assert found.shards is None
    return wishes


@pytest.mark.parametrize(("available", "wish"), [(319, True), (320, False)])
def test_ranks_without_gpus_share_the_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, wish: bool
) -> None:
    """A linear layer of 8 numbers: 32 bytes, five times, for each of two ranks."""
    monkeypatch.setattr(placing.psutil, "virtual_memory", lambda: type("M", (), {"available": available}))
    assert asked(tmp_path, "auto") == [wish]


@pytest.mark.parametrize(("memory", "share", "expected"), [(159, "1", True), (160, "1", False), (200, "0.5", True)])
def test_a_gpu_holds_what_the_owner_lends_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, share: str, expected: bool
) -> None:
    monkeypatch.setattr(placing, "device_memory_bytes", lambda _device: memory)
    monkeypatch.setenv("AIFARM_VRAM_SHARE", share)
    whole = Bench(tmp_path, LINEAR).runner.tensors
    assert Placing(Ranks(0, 2, Hub([])), "auto")._is_too_large(whole, torch.device("cuda")) is expected


def test_nobody_is_asked_where_the_owner_wants_none_or_one_process_works(tmp_path: Path) -> None:
    assert asked(tmp_path / "never", "never") == []
    own_step = LINEAR + "\n    def train_step(model, batch, optimizer): ...\n"
    assert asked(tmp_path / "alone", "always", own_step) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"inner_state": InnerState.CARRIED}, "state"),
        ({"fragments": 2}, "fragments"),
        ({"scaffold_clients": 2}, "control variates"),
        ({"precision": Precision.FP16}, "fp16"),
    ],
)
def test_some_recipes_want_a_whole_model(tmp_path: Path, changes: dict[str, Any], why: str | None) -> None:
    bench = Bench(tmp_path, LINEAR)
    found = why_whole(bench.runner.contract, bench.runner.tensors, bench.load_order().model_copy(update=changes))
    assert (found is None) if why is None else (found is not None and why in found)


def test_so_do_some_models_and_the_log_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = LINEAR.replace(
        "return nn.Linear(3, 2)",
        "m = nn.Linear(3, 2)\n        m.scale = nn.Parameter(torch.ones(()))\n        return m",
    )
    bench = Bench(tmp_path, source)
    place = Placing(Ranks(0, 2, Hub([])), "always")
    found = place(bench.runner.contract, bench.runner.contract.build_model(), bench.load_order(), CPU)
    assert found.shards is None
    assert "can't be held in parts: a parameter is a single number" in capsys.readouterr().err


def test_frozen_tensors_are_counted_once(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 2, bias=False))
    model[0].requires_grad_(False)
    assert needed_bytes(ModelTensors.of(model)) == 64 + 5 * 32
