"""A rank from 1 on, in this process: what it does with orders, what it says, and when it ends.

Executors end their ranks by a kill, which takes the figures of coverage along; ``test_ranks.py`` runs real ones.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from farm_client import task
from farm_client.executor import follower
from farm_client.executor.channel import FD_VARIABLE
from farm_client.executor.followers import LINK_VARIABLE, PROCESSES_VARIABLE, RANK_VARIABLE
from farm_client.executor.messages import REPORT, Done, Failed, Loaded, Order, Report
from farm_client.executor.placing import SHARD_VARIABLE
from farm_client.executor.rank_links import Hub, pair
from farm_client.executor.ranks import Ranks
from protocol.assignments import Kind
from protocol.framing import FrameDecoder, pack_frame
from protocol.messages import Scope
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of, write_code


@dataclass
class FirstRank:
    """Rank 0's ends of its two sockets to a follower of two."""

    orders: socket.socket
    link: socket.socket

    def follow(self, *orders: Order) -> tuple[int, list[Report]]:
        """Have the follower do as it is ordered, then close its channel; return its exit code and what it said."""
        self.orders.sendall(b"".join(pack_frame(order.model_dump()) for order in orders))
        self.orders.shutdown(socket.SHUT_WR)
        code = follower.main()
        self.link.shutdown(socket.SHUT_RDWR)  # as the end of its process would: rank 0 waits for it no more
        decoder = FrameDecoder()
        frames = [frame for data in iter(self._heard, b"") for frame in decoder.feed(data)]
        return code, [REPORT.validate_python(frame) for frame in frames]

    def _heard(self) -> bytes:
        try:
            return self.orders.recv(1 << 16)
        except BlockingIOError:
            return b""


@pytest.fixture
def first_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FirstRank]:
    """Make the sockets that a follower finds in its environment; what it changes of this process is put back."""
    orders, their_orders = socket.socketpair()
    link, their_link = pair()
    monkeypatch.setenv(FD_VARIABLE, str(their_orders.detach()))
    monkeypatch.setenv(LINK_VARIABLE, str(their_link.detach()))
    monkeypatch.setenv(RANK_VARIABLE, "1")
    monkeypatch.setenv(PROCESSES_VARIABLE, "2")
    monkeypatch.setenv(SHARD_VARIABLE, "never")  # else the ranks agree on that while they load
    monkeypatch.chdir(tmp_path)
    with orders, link:
        orders.setblocking(False)
        yield FirstRank(orders, link)
    task.send_metrics_to(None)


def test_it_does_its_share_of_each_batch_and_holds_the_weights_of_what_it_has_no_share_of(
    first_rank: FirstRank, tmp_path: Path
) -> None:
    bench, other = Bench(tmp_path / "rank0", LINEAR), Bench(tmp_path / "rank1", LINEAR)
    expected = bench.train()

    def as_rank_0() -> Done:
        bench.runner.share_out(Ranks(0, 2, Hub([first_rank.link])))
        return bench.train()

    held = other.run_order(Kind.EVALUATE, weights=bench.weights)
    train = other.run_order(weights=None, weights_digest=held.weights_digest)
    with ThreadPoolExecutor(1) as threads:
        shared = threads.submit(as_rank_0)
        code, said = first_rank.follow(other.load_order(), held, train)
        done = shared.result()
    assert (code, said) == (0, [Loaded()])
    assert (done.samples, done.metrics) == (expected.samples, pytest.approx(expected.metrics, rel=1e-5))
    for name, tensor in update_of(expected).items():
        torch.testing.assert_close(update_of(done)[name], tensor, rtol=1e-4, atol=1e-6)


def test_an_assignment_before_any_task_is_let_be(first_rank: FirstRank, tmp_path: Path) -> None:
    assert first_rank.follow(Bench(tmp_path / "bench", LINEAR).run_order()) == (0, [])


def test_it_says_what_kept_it_from_a_task_and_ends(first_rank: FirstRank, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", LINEAR)
    entry = write_code(tmp_path / "broken", "raise RuntimeError('no such luck')")
    order = bench.load_order().model_copy(update={"code_dir": str(tmp_path / "broken"), "entry": entry})
    code, (failed,) = first_rank.follow(order, bench.load_order())
    assert code == 1
    assert isinstance(failed, Failed)
    assert "no such luck" in failed.message
    assert (failed.assignment_id, failed.scope) == (None, Scope.NOBODY)


def test_it_ends_without_a_word_when_rank_0_is_gone(first_rank: FirstRank, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", LINEAR)
    first_rank.link.shutdown(socket.SHUT_RDWR)
    assert first_rank.follow(bench.load_order(), bench.run_order()) == (1, [Loaded()])


def test_it_uses_the_tasks_packages_and_loads_batches_itself_where_it_must(
    first_rank: FirstRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[Path] = []
    monkeypatch.setattr(follower, "use_packages", used.append)
    monkeypatch.setattr(follower, "has_semaphores", lambda: False)
    monkeypatch.setattr(follower, "load_without_workers", lambda tell: tell("this is for rank 0 to say"))
    order = Bench(tmp_path / "bench", LINEAR).load_order()
    assert first_rank.follow(order.model_copy(update={"packages_dir": "/packages"})) == (0, [Loaded()])
    assert used == [Path("/packages")]
    assert Path.cwd() == Path(order.code_dir)
    assert capsys.readouterr() == ("", "")


def test_what_its_code_logs_is_rank_0s_to_report(first_rank: FirstRank, capsys: pytest.CaptureFixture[str]) -> None:
    assert first_rank.follow() == (0, [])
    task.log(step=1, metrics={"own": 2.0})
    assert capsys.readouterr().out == ""
