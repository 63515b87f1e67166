"""Steps that are begun before their order is here: adopted to the bit, or put back as if they had never been."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from farm_client.executor.channel import Channel
from farm_client.executor.failures import MissingFile
from farm_client.executor.layout import ModelTensors, apart
from farm_client.executor.messages import Done, Run
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.speculation import MOST_MISSES, Before, Speculation, Superseded, guessed
from protocol.digests import digest_bytes
from protocol.framing import pack_frame
from protocol.recipe import InnerState
from protocol.tasks import Split
from tests.farm_client.executor.agent_side import load_order, run_order, started
from tests.farm_client.executor.bench_task import Bench, write_data

NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 2)
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.seen += 1
            return self.norm(self.body(nn.functional.dropout(x, 0.3)))

    def build_model(config):
        return Net()

    def build_optimizer(model, config):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"]) + 0.001 * model.seen
"""


class OneClient:
    """A task's executor by its own calls, and the farm that orders one round after the other from it."""

    def __init__(self, folder: Path, inner_state: InnerState, *, goes_on: bool) -> None:
        self.bench = Bench(folder, NET, inner_state=inner_state, report_bytes=0)
        self.goes_on = goes_on
        self.ours, theirs = socket.socketpair()
        self.channel = Channel(theirs)
        self.progress = ProgressReporter(self.bench.advances.append)
        self.weights = self.bench.weights
        self.pieces = self.bench.pieces(Split.TRAIN)
        self.round = 0
        self.writes: Callable[[], Done] | None = None
        self.adopted = 0

    def order(self, pieces: slice = slice(0, 1), **changes: Any) -> Run:
        path = self.bench.folder / "version.weights"
        path.write_bytes(self.weights)
        mine = self.pieces[pieces]
        order = Run(
            assignment_id=f"a{self.round}",
            kind="train",
            round=self.round,
            epoch=0,
            weights_digest=digest_bytes(self.weights),
            weights_path=str(path),
            samples_before=1000 * self.round,
            round_samples=1000,
            pieces=mine,
        )
        samples = sum(piece.stop - piece.start for piece in mine)
        changes = {"round_samples": samples, "samples_before": samples * self.round, **changes}
        return order.model_copy(update={**changes, "upcoming": mine if self.goes_on else ()})

    def do(self, order: Run) -> Done:
        """Carry out an order, as the executor process does, and let the farm make the next version of it."""
        runner = self.bench.runner
        outcome: Done | Callable[[], Done] | None = None
        if runner.guess is not None:
            outcome = self.met(order)
        if outcome is None:
            outcome = runner.run_on(order, self.progress)
        done = outcome if isinstance(outcome, Done) else outcome()
        update = safetensors.torch.load_file(done.update_path)
        base = safetensors.torch.load(self.weights)
        names = dict(runner.tensors.parameters)
        made = {n: base[n] - update[n] * done.samples / done.samples if n in names else update[n] for n in base}
        self.weights = with_header_of(self.weights, made)
        self.round += 1
        if done.holds is not None:
            assert done.holds == digest_bytes(self.weights)
        return done

    def met(self, order: Run) -> Done | Callable[[], Done] | None:
        runner = self.bench.runner
        assert runner.guess is not None
        if runner._weights.is_held(order.weights_digest):  # as the agent, who knows what is held
            order = order.model_copy(update={"weights_path": None})
        self.ours.sendall(pack_frame(order.model_dump()))
        speculation = Speculation(runner.guess, self.channel, self.progress, lambda: None)
        try:
            outcome = runner.run_guess(speculation)
        except Superseded:
            runner.undo(is_wrong=True)
            self.progress.drop()
            assert self.channel.receive() == order, "the order is still there"
            return None
        self.adopted += 1
        return outcome


def with_header_of(weights: bytes, tensors: dict[str, torch.Tensor]) -> bytes:
    """Return a weights file with the same header."""
    length = 8 + int.from_bytes(weights[:8], "little")
    header = safetensors.torch.load(weights)
    start = {name: weights.index(tensor.numpy().tobytes(), length) for name, tensor in header.items() if tensor.numel()}
    names = sorted(start, key=lambda name: offset(weights, name))
    return weights[:length] + b"".join(tensors[name].contiguous().numpy().tobytes() for name in names)


def offset(weights: bytes, name: str) -> int:
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    return int(header[name]["data_offsets"][0])


def updates(client: OneClient, script: list[dict[str, Any]]) -> list[tuple[str | None, dict[str, float]]]:
    found = []
    for changes in script:
        done = client.do(client.order(**changes))
        found.append((done.update_digest, done.metrics))
    return found


@pytest.mark.parametrize("inner_state", [InnerState.FRESH, InnerState.KEPT])
def test_rounds_that_were_begun_early_have_the_bits_of_those_that_waited(tmp_path, inner_state):
    early, waiting = (OneClient(tmp_path / str(on), inner_state, goes_on=on) for on in (True, False))
    assert updates(early, [{}] * 4) == updates(waiting, [{}] * 4)
    assert (early.adopted, waiting.adopted) == (3, 0)


@pytest.mark.parametrize("inner_state", [InnerState.FRESH, InnerState.KEPT])
def test_what_was_begun_in_vain_leaves_no_trace(tmp_path, inner_state):
    script = [{}, {"epoch": 1}, {"epoch": 1}]  # the second order is not what was guessed
    early, waiting = (OneClient(tmp_path / str(on), inner_state, goes_on=on) for on in (True, False))
    assert updates(early, script) == updates(waiting, script)
    assert early.adopted == 1


def test_orders_as_they_come_have_the_bits_of_those_that_waited(tmp_path):
    draw = random.Random(7)
    script = [draw.choice([{}, {}, {"epoch": 1}]) for _ in range(10)]
    early, waiting = (OneClient(tmp_path / str(on), InnerState.KEPT, goes_on=on) for on in (True, False))
    assert updates(early, script) == updates(waiting, script)
    assert early.adopted


def test_a_defect_in_the_putting_back_shows_in_the_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(Before, "restore", lambda self: self.loop)
    script = [{}, {"epoch": 1}]
    early, waiting = (OneClient(tmp_path / str(on), InnerState.KEPT, goes_on=on) for on in (True, False))
    assert updates(early, script) != updates(waiting, script)


def test_another_version_is_begun_anew_and_nothing_foreseen_again(tmp_path):
    early, waiting = (OneClient(tmp_path / str(on), InnerState.KEPT, goes_on=on) for on in (True, False))
    results = []
    for client in (early, waiting):
        first = updates(client, [{}])
        client.weights = client.bench.weights  # the farm went back to where it began
        results.append([*first, *updates(client, [{}, {}])])
    assert results[0] == results[1]
    assert (early.adopted, early.bench.runner.guess) == (0, None)


def test_an_executor_that_guesses_wrong_waits_for_its_orders(tmp_path):
    client = OneClient(tmp_path, InnerState.FRESH, goes_on=True)
    for epoch in range(MOST_MISSES + 1):
        client.do(client.order(epoch=epoch))
    assert client.bench.runner.guess is None


def test_samples_that_are_not_here_yet_are_waited_for(tmp_path):
    early, waiting = (OneClient(tmp_path / str(on), InnerState.KEPT, goes_on=on) for on in (True, False))
    first = [updates(client, [{}]) for client in (early, waiting)]
    guess = early.bench.runner.guess
    assert guess is not None
    elsewhere = tuple(p.model_copy(update={"shard": 99, "path": str(tmp_path / "gone")}) for p in guess.pieces)
    late = guess.model_copy(update={"pieces": elsewhere})
    with pytest.raises(MissingFile):
        early.bench.runner.run_guess(Speculation(late, early.channel, early.progress, lambda: None))
    early.bench.runner.undo(is_wrong=False)
    assert first[0] == first[1]
    assert updates(early, [{}, {}]) == updates(waiting, [{}, {}])
    assert early.adopted == 1, "a file that was late says nothing against guessing"


def test_progress_is_reported_of_an_order_alone(tmp_path):
    client = OneClient(tmp_path, InnerState.FRESH, goes_on=True)
    client.progress.start("a0")
    client.do(client.order())
    client.progress.finish()
    client.bench.advances.clear()
    runner, order = client.bench.runner, client.order(weights_path=None)
    assert runner.guess is not None
    speculation = Speculation(runner.guess, client.channel, client.progress, lambda: None)
    runner.undo(is_wrong=True)
    speculation.holds = lambda digest: digest == order.weights_digest
    client.progress.log(1, {"loss": 1.0})
    speculation.advance(8)
    assert not client.bench.advances
    client.ours.sendall(pack_frame(order.model_dump()))
    speculation.advance(8)
    client.progress.finish()
    (advance,) = client.bench.advances
    assert (advance.assignment_id, advance.samples_done) == (order.assignment_id, 16)


def test_the_guess_follows_from_the_order(tmp_path):
    client = OneClient(tmp_path, InnerState.FRESH, goes_on=True)
    order = client.order(samples_before=100)
    guess = guessed(order)
    assert (guess.round, guess.samples_before) == (1, 100 + order.round_samples)
    assert guess.pieces == order.upcoming


def test_copies_take_the_memory_of_earlier_ones_where_it_fits() -> None:
    first = apart({"a": torch.ones(3), "b": torch.ones(2)})
    second = apart({"a": torch.zeros(3), "b": torch.zeros(4)}, first)
    assert second["a"] is first["a"]
    assert second["a"].tolist() == [0, 0, 0]
    assert second["b"].tolist() == [0, 0, 0, 0]


def test_a_kept_state_of_any_form_is_put_back() -> None:
    model = nn.Linear(2, 1)
    tensors = ModelTensors.of(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)

    class Loop:
        def stateful(self) -> dict[str, Any]:
            return {"optimizer": optimizer}

    def step() -> None:
        def closure() -> float:
            optimizer.zero_grad()
            loss = model(torch.ones(1, 2)).square().sum()
            torch.autograd.backward(loss)
            return loss.item()

        optimizer.step(closure)

    step()
    loop: Any = Loop()
    weights = model.weight.detach().clone()
    before = Before.of(loop, tensors, {})
    step()
    optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["new"] = 5.0, 1
    after = model.weight.detach().clone()
    assert before.restore() is loop
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert "new" not in optimizer.param_groups[0]
    with torch.no_grad():
        model.weight.copy_(weights)
    assert not torch.equal(after, weights)


SAYS_ITS_STEPS = """
    import os
    import torch
    from torch import nn

    steps = 0

    def build_model(config):
        return nn.Linear(3, 2)

    def loss(model, batch):
        global steps
        steps += 1
        if steps == config_steps() + 1:
            with open(os.environ["AIFARM_STEPS"], "wb") as fifo:  # until the test reads it
                fifo.write(b"on")
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def config_steps():
        return int(os.environ["AIFARM_FIRST_STEPS"])
"""


def test_a_real_executor_begins_the_next_round_before_its_order(tmp_path):
    """Nobody waits for the farm: the first step of the next round is taken while no order is there."""
    shards, files = write_data(tmp_path)
    first = run_order([s for s in shards if s.split is Split.TRAIN][:1], files)
    samples = first.pieces[0].stop
    path = tmp_path / "weights"
    path.write_bytes(first.weights or b"")
    first = first.model_copy(
        update={"weights": None, "weights_path": str(path), "round_samples": samples, "upcoming": first.pieces}
    )
    os.mkfifo(tmp_path / "steps")
    variables = {"AIFARM_STEPS": str(tmp_path / "steps"), "AIFARM_FIRST_STEPS": str(-(-samples // 8))}
    with started(**variables) as agent:
        agent.hear()
        agent.send(load_order(tmp_path, SAYS_ITS_STEPS))
        agent.hear()
        agent.send(first)
        assert (tmp_path / "steps").read_bytes() == b"on"
        _, done = agent.hear_end()
        assert isinstance(done, Done)
        assert done.holds is not None
        second = {"assignment_id": "a2", "round": 1, "weights_digest": done.holds, "samples_before": samples}
        agent.send(first.model_copy(update={**second, "weights_path": None, "upcoming": ()}))
        _, answer = agent.hear_end()
        assert isinstance(answer, Done)
        assert (answer.assignment_id, answer.samples, answer.holds) == ("a2", samples, None)
