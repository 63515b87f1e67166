"""Several processes as one executor: what they return together is what one process returns."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from farm_client.executor import follower, process
from farm_client.executor.__main__ import _Executor
from farm_client.executor.followers import PROCESSES_VARIABLE, RANK_LOST, Followers, gpu_of
from farm_client.executor.messages import Done, Failed, Loaded, LoadTask, Report, Run, Warm
from farm_client.executor.placing import SHARD_VARIABLE
from farm_client.executor.process import Launch
from farm_client.executor.rank_links import Hub, RankLost, Spoke, pair
from farm_client.executor.ranks import Ranks, WentApart, may_share_out, rank_sizes
from farm_client.executor.runner import TaskRunner
from farm_client.executor.script import is_script
from farm_client.executor.step_metrics import StepMetrics
from protocol.assignments import Kind
from protocol.messages import Scope
from protocol.recipe import Mode
from tests.farm_client.executor.agent_side import started
from tests.farm_client.executor.bench_task import LINEAR, Bench, toy_arrays, update_of, write_code

SOURCE = """
    import os
    import time
    from pathlib import Path

    import torch
    from torch import nn

    def build_model(config):
        return nn.Linear(3, 2)

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss(model, batch):
        if Path("wait").exists():
            Path(f"waits-{os.getpid()}").touch()
            time.sleep(600)
        value = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        return {"loss": value, "first": batch["x"][:, 0].mean()}
"""


def together(size: int, of_rank: Callable[[Ranks], Any]) -> list[Any]:
    """Do something as each of some ranks, on threads of this process; return what each returned."""
    links = [pair() for _ in range(size - 1)]
    ranks = [Ranks(0, size, Hub([ours for ours, _ in links]))]
    ranks += [Ranks(rank, size, Spoke(theirs, size)) for rank, (_, theirs) in enumerate(links, start=1)]
    with ThreadPoolExecutor(size) as threads:
        found = list(threads.map(of_rank, ranks))
    for ours, theirs in links:
        ours.close()
        theirs.close()
    return found


@given(samples=st.integers(1, 300), ranks=st.integers(1, 9))
def test_a_batch_is_parted_evenly_and_nobody_gets_a_stray_sample(samples: int, ranks: int) -> None:
    sizes = rank_sizes(samples, ranks)
    assert len(sizes) == ranks
    assert sum(sizes) == samples
    with_rows = [size for size in sizes if size]
    assert sizes == with_rows + [0] * (ranks - len(with_rows))
    assert max(with_rows) - min(with_rows) <= 1
    assert samples == 1 or min(with_rows) > 1


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 13), size=st.integers(1, 4), seed=st.integers(0, 1000))
def test_the_sum_over_ranks_is_the_gradient_of_the_whole_batch(samples: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(samples, 3, generator=generator), torch.randn(samples, 2, generator=generator)
    weights = torch.randn(2, 3, generator=generator)

    def gradient(rows: slice, parameters: list[nn.Parameter]) -> float:
        loss = nn.functional.mse_loss(x[rows] @ parameters[0].t(), y[rows])
        loss.backward()
        return float(loss.detach())

    def of_rank(ranks: Ranks) -> tuple[list[torch.Tensor | None], float]:
        parameters = [nn.Parameter(weights.clone()), nn.Parameter(torch.ones(5))]  # the second one is in no loss
        start, stop = ranks.share(samples)
        values = {"loss": gradient(slice(start, stop), parameters)} if stop > start else {}
        total = ranks.add_up(parameters, values, samples)
        return [parameter.grad for parameter in parameters], float(total["loss"])

    whole = [nn.Parameter(weights.clone())]
    loss = gradient(slice(None), whole)
    found = together(size, of_rank)
    for gradients, total in found:
        torch.testing.assert_close(gradients[0], whole[0].grad)
        assert torch.equal(gradients[0], found[0][0][0])  # or the ranks' weights would go apart
        assert gradients[1] is None
        assert total == pytest.approx(loss, rel=1e-6)


def test_large_gradients_of_several_types_travel_in_buckets() -> None:
    def of_rank(ranks: Ranks) -> list[torch.Tensor]:
        sizes = ((3_000_000, torch.float32), (5_000_000, torch.float32), (7, torch.bfloat16))
        parameters = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in sizes]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, ranks.rank + 1.0)
        ranks.add_up(parameters, {"loss": 0.0}, 4)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    for gradients in together(2, of_rank):
        assert all(bool((gradient == 1.5).all()) for gradient in gradients)


def test_a_parameter_that_some_ranks_use_alone_counts_for_all() -> None:
    def of_rank(ranks: Ranks) -> torch.Tensor | None:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.ones(2) if ranks.rank else None
        ranks.add_up([parameter], {"loss": 0.0}, 4)
        return parameter.grad

    for gradient in together(2, of_rank):
        assert gradient is not None
        assert gradient.tolist() == [0.5, 0.5]


def test_metrics_are_means_over_the_samples_of_all_ranks() -> None:
    def of_rank(ranks: Ranks) -> dict[str, float]:
        means = StepMetrics()
        means.add(1, {"loss": 2.0, "own": float(ranks.rank)}, 3 if ranks.rank else 1)
        if ranks.rank:
            means.add(2, {"loss": 1.0, "late": 7.0}, 4)
        return ranks.merged(means, [torch.ones(2)])

    for found in together(2, of_rank):
        assert found == {"loss": 1.5, "own": 0.75, "late": 7.0}


def test_ranks_whose_weights_went_apart_are_found() -> None:
    def of_rank(ranks: Ranks) -> None:
        with pytest.raises(WentApart, match="--processes 1"):
            ranks.merged(StepMetrics(), [torch.ones(2) + ranks.rank])

    together(2, of_rank)


def test_a_rank_that_is_gone_is_noticed_by_the_others() -> None:
    ours, theirs = pair()
    heard: list[str] = []
    hub, spoke = Hub([ours], lambda: heard.append("lost")), Spoke(theirs, 2)
    theirs.close()
    for call in (lambda: hub.add_up(torch.ones(1)), lambda: hub.tell(b""), lambda: spoke.add_up(torch.ones(1))):
        with pytest.raises(RankLost):
            call()
    with pytest.raises(RankLost):
        spoke.tell(b"")
    assert heard == ["lost", "lost"]
    ours.close()


def test_who_goes_on_from_a_snapshot_draws_and_counts_on_its_own() -> None:
    def begun(rank: int) -> tuple[dict[str, float], float]:
        means = StepMetrics()
        means.add(1, {"loss": 1.0}, 8)
        torch.manual_seed(3)
        Ranks(rank, 2, Hub([])).begin(means, 8)
        return means.so_far()[0], float(torch.rand(()))

    (own, drawn), (others, drawn_there) = begun(0), begun(1)
    assert own == {"loss": 8.0}
    assert others == {}
    assert drawn != drawn_there


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("mode", list(Mode))
def test_an_assignment_is_the_same_work_however_many_share_it(tmp_path: Path, mode: Mode, size: int) -> None:
    arrays = toy_arrays(75)  # batches of 8 and 7
    folders = iter([tmp_path / name for name in "abcd"])

    def bench() -> Bench:
        return Bench(next(folders), SOURCE, mode=mode, arrays=arrays)

    alone, benches = bench(), [bench() for _ in range(size)]
    expected = alone.train()

    def of_rank(ranks: Ranks) -> Done:
        one = benches[ranks.rank]
        one.runner.share_out(ranks)
        one.weights = alone.weights
        return one.train()

    for done in together(size, of_rank):
        assert done.samples == expected.samples
        assert done.metrics == pytest.approx(expected.metrics, rel=1e-5)
        for name, tensor in update_of(expected).items():
            torch.testing.assert_close(update_of(done)[name], tensor, rtol=1e-4, atol=1e-6)
            assert bool(tensor.abs().sum() > 0)


@pytest.mark.parametrize(
    "more",
    [
        "def train_step(model, batch, optimizer): ...",
        "def on_before_step(model, optimizer, step): ...",
        "def build_model(config): return nn.EmbeddingBag(5, 2, sparse=True)",
    ],
)
def test_what_takes_steps_itself_is_not_shared_out(tmp_path: Path, more: str) -> None:
    source = LINEAR + "\n" + "\n".join(f"    {line}" for line in more.splitlines())
    runner = Bench(tmp_path, source).runner
    assert not may_share_out(runner.contract, runner.tensors.model)


def test_each_rank_has_a_gpu_of_its_own() -> None:
    assert [gpu_of(["0", "MIG-5"], rank) for rank in range(2)] == ["0", "MIG-5"]
    assert gpu_of([], 1) == ""


def test_two_processes_as_one_executor(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SOURCE)
    code = tmp_path / "code"
    expected = bench.train()
    load = bench.load_order()
    with started(**{PROCESSES_VARIABLE: "2"}) as agent:
        agent.connection.settimeout(120)

        def answer(order: LoadTask | Run) -> Report:
            agent.send(order)
            return agent.hear_end()[1]

        assert isinstance(agent.hear(), Warm)
        assert isinstance(answer(load), Loaded)
        assert isinstance(answer(bench.run_order(kind=Kind.EVALUATE)), Done)
        done = answer(bench.run_order().model_copy(update={"weights": None}))  # all ranks hold the evaluation's
        assert isinstance(done, Done)
        assert done.samples == expected.samples
        for name, tensor in update_of(expected).items():
            torch.testing.assert_close(update_of(done)[name], tensor, rtol=1e-4, atol=1e-6)
        (code / "wait").touch()
        agent.send(bench.run_order())
        os.kill(pid_of_waiting_follower(code, agent.process.pid), signal.SIGKILL)
        failed = agent.hear_end()[1]
        assert isinstance(failed, Failed)
        assert failed.scope is Scope.ELSEWHERE
        assert "process 1 of this executor's 2, from 0, ended by SIGKILL" in failed.message
        assert agent.process.wait(30) == RANK_LOST


def pid_of_waiting_follower(code: Path, first_rank: int) -> int:
    """Wait until another rank than the first is in its loss, and return its id."""
    for _ in range(12_000):
        for file in code.glob("waits-*"):
            if (pid := int(file.name.partition("-")[2])) != first_rank:
                return pid
        threading.Event().wait(0.01)
    raise AssertionError("no follower began")


@pytest.mark.parametrize(
    ("processes", "gpus", "ranks"), [(1, "0,1", 1), (4, "", 4), (4, "0,1", 2), ("gpus", "0,1,2", 3), ("gpus", "", 1)]
)
def test_an_executor_has_a_process_for_each_gpu_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int | Literal["gpus"], gpus: str, ranks: int
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # an agent that srun has started
        monkeypatch.setenv(name, "1")
    launch = Launch(tmp_path, cpu_cores=4, gpus=gpus, processes=processes, shard="always")
    environment = launch.environment(tmp_path, 3)
    assert launch.ranks == ranks
    assert environment.get(process.PROCESSES_VARIABLE) == (str(ranks) if ranks > 1 else None)
    assert environment["OMP_NUM_THREADS"] == str(4 // ranks)
    assert environment.get(process.SHARD_VARIABLE) == ("always" if ranks > 1 else None)
    assert process.SHARD_VARIABLE == SHARD_VARIABLE
    assert {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}.isdisjoint(environment)
    assert process.PROCESSES_VARIABLE == PROCESSES_VARIABLE


class Reports:
    """The agent's end, which hears and says nothing."""

    def __init__(self) -> None:
        self.sent: list[Report] = []

    def send(self, report: Report) -> None:
        self.sent.append(report)


class CalledFollowers:
    """Followers that only note what is asked of them."""

    size = 2

    def __init__(self) -> None:
        self.calls: list[str] = []

    def load(self, _order: LoadTask) -> None:
        self.calls.append("load")

    def meet(self) -> Ranks:
        self.calls.append("meet")
        return Ranks(0, 1, Hub([]))

    def run(self, _order: Run) -> None:
        self.calls.append("run")

    def restart(self) -> None:
        self.calls.append("restart")

    def end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        (LINEAR, ["load", "meet"]),
        (LINEAR + "\n    def train_step(model, batch, optimizer): ...\n", ["load", "end"]),
        ("import farm_client\nfor part in farm_client.parts(None):\n    pass\n", ["end"]),
    ],
)
def test_one_process_does_what_cannot_be_shared_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, calls: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path / "bench", LINEAR)
    order = bench.load_order().model_copy(
        update={"code_dir": str(tmp_path / "code"), "entry": write_code(tmp_path / "code", source)}
    )
    channel, followers = Reports(), CalledFollowers()
    served = _Executor(
        cast("Any", channel), lambda order, device, _imported: load(order, device), cast("Any", followers)
    )
    served._load(order)
    assert followers.calls == calls


def test_other_ranks_take_the_place_of_those_that_wait_for_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, LINEAR.replace("batch[", "batch.no["))
    channel, followers = Reports(), CalledFollowers()
    served = _Executor(cast("Any", channel), lambda order, device, _: load(order, device), cast("Any", followers))
    served._load(bench.load_order())
    served._run(bench.run_order())
    assert followers.calls == ["load", "meet", "run", "restart", "meet"]
    failed = channel.sent[-1]
    assert isinstance(failed, Failed)
    assert (failed.assignment_id, failed.scope) == ("a", Scope.NOBODY)


def load(order: LoadTask, device: torch.device) -> TaskRunner | Any:
    """Load a task; of a script nothing but its name counts here."""
    return object() if is_script(Path(order.code_dir) / order.entry) else TaskRunner(order, device)


def test_the_end_of_a_follower_is_told_and_ends_its_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Failed] = []
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr("farm_client.executor.followers.os._exit", leave)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv(PROCESSES_VARIABLE, "2")
    followers = Followers(2, told.append, module="this")  # which prints a poem and ends
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert ended.wait(60)
    followers.end()
    assert codes == [RANK_LOST]
    assert [one.message for one in told] == ["process 1 of this executor's 2, from 0, ended with exit code 0"]
    assert [one.code for one in told] == ["farm_error"]


def test_where_one_process_is_wanted_nobody_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROCESSES_VARIABLE, raising=False)
    assert Followers.from_environment(lambda _failed: None) is None


def test_a_rank_that_a_person_starts_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert follower.main() == 2
    assert "not by hand" in capsys.readouterr().err
