"""What a task's code carries from batch to batch: whose it is, where it begins anew, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from farm_client.executor.batch_states import BatchStates, refuse_without_order, without_graph
from farm_client.executor.contract import load_contract
from farm_client.executor.failures import CodeError
from farm_client.executor.messages import Piece
from protocol.assignments import Kind
from protocol.recipe import DataOrder, InnerState, Mode
from protocol.tasks import Split
from tests.farm_client.executor.bench_task import toy_arrays, write_code
from tests.farm_client.executor.ordered_task import LSTM, STREAMS, batches_of, detached, functions_of, ordered_bench
from tests.farm_client.executor.rehearsing import complaint, rehearsed

COUNTING = """
    import torch

    given = []

    def build_model(config):
        return torch.nn.Linear(1, 1)

    def initial_state(model, batch_size, config):
        return {"batch_size": batch_size, "rows": torch.zeros(batch_size), "of": config.get("of")}

    def loss(model, batch, state):
        given.append(state)
        value = model(state["rows"][:, None]).mean() ** 2
        return value, {**state, "rows": state["rows"] + value}
"""


def piece(shard: int, first_row: int, start: int, stop: int) -> Piece:
    return Piece(
        shard=shard,
        split=Split.TRAIN,
        shard_samples=40,
        first_row=first_row,
        stride=100,
        path=None,
        start=start * STREAMS,
        stop=stop * STREAMS,
    )


def states_of(folder: Path, *pieces: Piece, epoch: int = 0, source: str = COUNTING) -> tuple[BatchStates, list[Any]]:
    entry = write_code(folder / "code", source)
    contract = load_contract(folder / "code", entry, {"of": "b"})
    contract.module.given.clear()
    return BatchStates(contract, contract.build_model(), pieces, epoch, STREAMS), contract.module.given


def test_the_first_batch_gets_the_initial_state_and_each_other_one_what_the_one_before_left(tmp_path: Path) -> None:
    states, given = states_of(tmp_path, piece(0, 0, 0, 3))
    for step in (1, 2, 3):
        assert states.loss({}, step).loss.requires_grad
    assert given[0]["batch_size"] == STREAMS
    assert given[0]["of"] == "b"
    assert given[0]["rows"].tolist() == [0.0] * STREAMS
    assert all(not state["rows"].requires_grad for state in given)
    assert given[2]["rows"][0] > given[1]["rows"][0] > 0
    assert list(states.state_dict()) == ["0:3"]


def test_a_step_that_asks_again_is_given_the_same_state(tmp_path: Path) -> None:
    states, given = states_of(tmp_path, piece(0, 0, 0, 3))
    for step in (1, 1, 2, 2, 2, 3):
        states.loss({}, step)
    values = [float(state["rows"][0]) for state in given]
    assert values[0] == values[1] == 0
    assert values[2] == values[3] == values[4] != values[5]


def test_it_goes_on_over_parts_of_one_stretch_and_begins_anew_in_another(tmp_path: Path) -> None:
    states, given = states_of(tmp_path, piece(0, 0, 3, 4), piece(2, 4, 0, 2), piece(1, 500, 0, 1))
    for step in (1, 2, 3, 4):
        states.loss({}, step)
    assert [float(state["rows"][0]) > 0 for state in given] == [False, True, True, False]
    assert list(states.state_dict()) == ["0:501"]


def test_who_goes_on_where_another_left_is_given_its_state_and_nobody_else(tmp_path: Path) -> None:
    first, _ = states_of(tmp_path, piece(0, 0, 0, 2))
    for step in (1, 2):
        first.loss({}, step)
    left = {**first.state_dict(), "0:502": {"rows": torch.ones(STREAMS)}}
    for place, epoch, expected in (
        (piece(0, 0, 2, 3), 0, left["0:2"]["rows"]),
        (piece(1, 500, 2, 3), 0, torch.ones(STREAMS)),
        (piece(0, 0, 2, 3), 1, torch.zeros(STREAMS)),
        (piece(0, 0, 3, 4), 0, torch.zeros(STREAMS)),
    ):
        states, given = states_of(tmp_path, place, epoch=epoch)
        states.load_state_dict(left)
        assert states.state_dict().keys() == left.keys()
        states.loss({}, 1)
        assert torch.equal(given[0]["rows"], expected)
        assert len(states.state_dict()) == 1


def test_a_learned_initial_state_is_learned(tmp_path: Path) -> None:
    source = COUNTING.replace("torch.zeros(batch_size)", "model.bias.expand(batch_size)")
    states, _ = states_of(tmp_path, piece(0, 0, 0, 1), source=source)
    loss = states.loss({}, 1).loss
    weight, bias = states._model.parameters()
    (of_bias,) = torch.autograd.grad(loss, bias)
    scale = 2 * (bias * weight + bias)
    torch.testing.assert_close(of_bias, (scale * (weight + 1)).reshape(1))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (object(), "the state after a batch is a object"),
        ((1, [torch.zeros(1), {"a": {1, 2}}]), r"the state\[1\]\[1\]\['a'\] after a batch is a set"),
        ({(1, 2): 3}, "the state after a batch is a dict"),
        (torch.nn.utils.rnn.pack_sequence([torch.zeros(2)]), "is a PackedSequence"),
    ],
)
def test_a_state_that_no_file_holds_is_named(state: Any, said: str) -> None:
    with pytest.raises(CodeError, match=said):
        without_graph(state)


STEP = """
    def train_step(model, batch, optimizers, step, state):
        optimizers.zero_grad()
        values, state = loss(model, batch, state)
        values["loss"].backward()
        optimizers.step()
        return {**values, "step": step}, state
"""


@pytest.mark.parametrize(
    "source",
    [
        LSTM,
        LSTM + STEP,
        LSTM.replace("AdamW(model.parameters(), lr=0.02)", "LBFGS(model.parameters(), lr=0.1, max_iter=2)"),
    ],
    ids=["the farm's steps", "steps of the code", "a closure"],
)
def test_evaluation_reads_the_held_out_rows_in_order_and_leaves_training_alone(tmp_path: Path, source: str) -> None:
    bench = ordered_bench(tmp_path, source, rows=32, inner_state=InnerState.CARRIED)
    code = functions_of(LSTM)
    model = code["build_model"]({})
    state, losses = code["initial_state"](model, STREAMS, {}), []
    for batch in batches_of(32, STREAMS)[-2:]:  # of the last 8 rows two batches: not those of all rows side by side
        assert batch["x"].shape == (STREAMS, 2)
    data = bench.runner._source.batches(bench.pieces(Split.HOLDOUT), 0)
    with torch.no_grad():
        for batch in data:
            values, state = code["loss"](model, batch, state)
            losses.append(float(values["loss"]))
            state = detached(state)
    before = bench.evaluate().metrics
    assert before["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    trained = bench.train()
    assert trained.metrics["before"] > 0
    assert trained.update is not None
    names = sorted(name for name in safetensors.torch.load(trained.update) if "batch_states" in name)
    assert names == ["inner_state/batch_states/0:8/0", "inner_state/batch_states/0:8/1"]
    assert bench.evaluate(weights=None).metrics == before


def test_a_batch_with_a_state_is_not_taken_in_parts(tmp_path: Path) -> None:
    source = LSTM.replace("        scores, state = model", "        raise MemoryError\n        scores, state = model")
    bench = ordered_bench(tmp_path, source)
    with pytest.raises(MemoryError):
        bench.train()


def test_shuffled_rows_are_refused_where_they_are_read_too(tmp_path: Path) -> None:
    bench = ordered_bench(tmp_path)
    shuffled = tuple(one.model_copy(update={"stride": 0}) for one in bench.pieces(Split.TRAIN))
    with pytest.raises(CodeError, match="the rows are shuffled: add --order sequential"):
        bench.train(pieces=shuffled)


TOY = """
    import torch
    from torch import nn

    def build_model(config):
        return nn.Linear(3, 2)

    def initial_state(model, batch_size, config):
        return torch.zeros(batch_size, 2)

    def loss(model, batch, state):
        scores = model(batch["x"]) + state
        return nn.functional.cross_entropy(scores, batch["y"]), scores
"""
ORDERED: dict[str, Any] = {"order": DataOrder.SEQUENTIAL, "sample_rows": 8}


def test_a_trial_takes_two_batches_so_that_a_state_meets_its_next_one(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, TOY, order=DataOrder.SEQUENTIAL, batch_samples=4)
    assert complaint(report) == ""
    assert report.tried
    assert report.has_state
    wrong = TOY.replace(", scores\n", ", scores[:1].repeat(3, 1)\n")
    said = complaint(rehearsed(tmp_path, wrong, order=DataOrder.SEQUENTIAL, batch_samples=4))
    assert "in loss: RuntimeError: The size of tensor a (4) must match the size of tensor b (3)" in said


def test_where_the_mode_is_open_rows_in_order_are_for_the_plain_loop_of_one_client(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, TOY, mode=None, **ORDERED)
    assert complaint(report) == ""
    assert report.mode is Mode.WEIGHTS
    assert report.obstacle == "the rows are read in order, one batch after the other"


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        (TOY, {}, "the rows are shuffled: add --order sequential, or leave the function out"),
        (TOY, {"tries_batch": False}, "the rows are shuffled: add --order sequential"),
        (TOY, {"mode": Mode.GRADIENTS}, "in gradients mode no batch comes before another"),
        (TOY, {"mode": None}, "in gradients mode no batch comes before another"),
        (TOY.replace(", scores\n", "\n"), ORDERED, "loss must return (loss, state)"),
        (TOY.replace(", scores\n", ", {1: object()}\n"), ORDERED, "the state[1] after a batch is a object"),
        (TOY, {**ORDERED, "batch_samples": 9}, "reads 9 streams side by side, and the data has 8 rows"),
        (TOY.replace("def loss(", "def evaluate("), ORDERED, " has no loss(model, batch)"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(
    tmp_path: Path, source: str, changes: dict[str, Any], said: str
) -> None:
    assert said in complaint(rehearsed(tmp_path, source, **changes))


MADE = """
    def make_dataset(config):
        return [{"x": torch.full((3,), float(i)), "y": i % 2} for i in range(40)]
"""
STREAM = """
    class Endless:
        def __iter__(self):
            return iter({"x": torch.full((3,), float(i)), "y": i % 2} for i in range(40))

    def make_dataset(config):
        return Endless()
"""
LOADED = """
    def load_shard(shard):
        return {"x": torch.zeros(shard.samples, 3), "y": torch.zeros(shard.samples, dtype=torch.int64)}
"""


def test_a_data_set_made_by_code_is_read_in_order_and_what_has_no_places_is_refused(tmp_path: Path) -> None:
    made: dict[str, Any] = {"order": DataOrder.SEQUENTIAL, "sample_path": None, "sample_rows": 0}
    printing = TOY.replace("        scores =", '        print("rows", batch["x"][:, 0].tolist())\n        scores =')
    assert complaint(rehearsed(tmp_path, printing + MADE, **made, batch_samples=4)) == ""
    assert "make_dataset returned a stream" in complaint(rehearsed(tmp_path, TOY + STREAM, **made, rows=40))
    assert "load_shard is not told of" in complaint(rehearsed(tmp_path, TOY + LOADED, **made, rows=40))


def test_rows_made_by_code_are_those_of_the_streams(tmp_path: Path) -> None:
    bench = ordered_bench(tmp_path, LSTM + MADE)
    order = bench.load_order().model_copy(update={"dataset_kind": "code"})
    source = type(bench.runner._source)(bench.runner.contract, order, torch.device("cpu"))
    part = piece(0, 2, 1, 3).model_copy(update={"shard_samples": 4 * STREAMS, "stride": 11})
    rows = [batch["x"][:, 0].tolist() for batch in source.batches([part], 0)]
    assert rows == [[3.0, 14.0, 25.0], [4.0, 15.0, 26.0]]


def test_a_state_needs_a_loss_that_takes_it(tmp_path: Path) -> None:
    entry = write_code(tmp_path, COUNTING.partition("    def loss")[0])
    with pytest.raises(CodeError, match="no loss\\(model, batch, state\\) that would be given"):
        refuse_without_order(load_contract(tmp_path, entry, {}), Mode.WEIGHTS, in_order=True)


def test_a_script_with_a_loop_of_its_own_is_refused(tmp_path: Path) -> None:
    script = """
        import torch
        import farm_client as farm

        model = torch.nn.Linear(3, 2)
        for part in farm.parts(model):
            part.done()
    """
    said = complaint(rehearsed(tmp_path, script, order=DataOrder.SEQUENTIAL, sample_path=None, sample_rows=0))
    assert said == "a script with farm.parts is given shuffled rows: leave out --order sequential"


def test_evaluate_of_the_code_is_given_the_rows_in_order(tmp_path: Path) -> None:
    source = LSTM + '\n    def evaluate(model, data):\n        return {"first": float(next(iter(data))["x"][0, 0])}\n'
    bench = ordered_bench(tmp_path, source)
    first = next(iter(bench.runner._source.batches(bench.pieces(Split.HOLDOUT), 0)))
    assert bench.evaluate().metrics == {"first": float(first["x"][0, 0])}
    assert bench.run_order(Kind.EVALUATE).pieces[0].stride > 0
    assert len(toy_arrays()["x"]) == 96
