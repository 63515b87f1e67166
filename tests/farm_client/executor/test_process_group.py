"""torch's interface to the links of an executor's ranks: what each operation leaves on each rank."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.executor import process_group
from farm_client.executor.process_group import BACKEND, LinkGroup, join_group, may_look_up_interfaces
from farm_client.executor.rank_links import Hub, OutOfStep, Spoke, pair
from farm_client.executor.ranks import Ranks
from tests.farm_client.executor.test_ranks import together


def groups(size: int, of_rank: Callable[[LinkGroup, int], Any]) -> list[Any]:
    """Do something in a group of so many ranks, on threads."""

    def of(ranks: Ranks) -> Any:
        return of_rank(LinkGroup(ranks.rank, size, ranks.links), ranks.rank)

    return together(size, of)


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 4), rows=st.integers(1, 5), seed=st.integers(0, 99))
def test_gathered_and_scattered_parts_are_those_of_all(size: int, rows: int, seed: int) -> None:
    owns = torch.randn(size, size * rows, 2, generator=torch.Generator().manual_seed(seed))

    def of_rank(group: LinkGroup, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        gathered = torch.zeros(size * size * rows, 2)
        mine = gathered[rank * size * rows : (rank + 1) * size * rows]  # FSDP2 gathers into what holds its own part
        mine.copy_(owns[rank])
        group.all_gather_single_coalesced([gathered], [mine]).wait()
        part = torch.zeros(rows, 2)
        group.reduce_scatter_single_coalesced([part], [owns[rank].clone()]).wait()
        return gathered, part

    for rank, (gathered, part) in enumerate(groups(size, of_rank)):
        assert torch.equal(gathered, owns.view(-1, 2))
        torch.testing.assert_close(part, owns.sum(0)[rank * rows : (rank + 1) * rows])


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (dist.ReduceOp.SUM, [3.0, -3.0]),
        (dist.ReduceOp.AVG, [1.0, -1.0]),
        (dist.ReduceOp.MAX, [2.0, 0.0]),
        (dist.ReduceOp.MIN, [0.0, -2.0]),
    ],
)
def test_ranks_reduce_as_they_are_asked(operation: Any, expected: list[float]) -> None:
    def of_rank(group: LinkGroup, rank: int) -> list[float]:
        tensor = torch.tensor([float(rank), -float(rank)])
        group.allreduce_coalesced([tensor], SimpleNamespace(reduceOp=operation)).wait()
        group.barrier().wait()
        return tensor.tolist()

    assert groups(3, of_rank) == [expected] * 3


def test_what_no_rank_can_reduce_is_refused_and_a_roots_tensor_is_everyones() -> None:
    def of_rank(group: LinkGroup, rank: int) -> float:
        with pytest.raises(NotImplementedError):
            group.allreduce([torch.ones(1)], SimpleNamespace(reduceOp=dist.ReduceOp.PRODUCT))
        tensor = torch.tensor(float(rank))
        group.broadcast([tensor], SimpleNamespace(rootRank=1)).wait()
        return float(tensor)

    assert groups(2, of_rank) == [1.0, 1.0]


def test_tensors_of_two_sizes_are_not_taken_for_one_another() -> None:
    ours, theirs = pair()
    Spoke(theirs, 2).collect(torch.ones(3), [])
    with pytest.raises(OutOfStep, match=r"sent 12 bytes where another waits for 8.*--processes 1"):
        Hub([ours]).collect(torch.ones(2), [torch.ones(2), torch.ones(2)])
    ours.close()
    theirs.close()


@pytest.mark.parametrize(("device", "is_open", "backend"), [("cuda", True, "nccl"), ("cuda", False, BACKEND)])
def test_cards_speak_over_nccl_where_interfaces_may_be_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, is_open: bool, backend: str
) -> None:
    """No host with cards is at hand: what torch is asked for."""
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(process_group, "may_look_up_interfaces", lambda: is_open)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **options: asked.append((name, options)))
    registered: list[list[str]] = []
    monkeypatch.setattr(
        dist.Backend, "register_backend", lambda _name, _make, devices: registered.append(devices), raising=True
    )
    join_group(Hub([]), 1, 2, torch.device(device), tmp_path)
    ((name, options),) = asked
    assert name == backend
    assert (options["rank"], options["world_size"]) == (1, 2)
    assert options.get("device_id") == (torch.device("cuda", 0) if is_open else None)
    assert registered == ([] if is_open else [["cuda"]])


def test_a_socket_that_is_refused_says_that_no_interface_may_be_looked_up() -> None:
    def refused(*_arguments: int) -> socket.socket:
        raise OSError("Address family not supported by protocol")

    assert not may_look_up_interfaces(refused)
    assert may_look_up_interfaces(lambda *_arguments: socket.socket())
