"""A map in an executor: each item's output in its place, the same whoever runs it, and errors that name their item."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm_client.data.columns import Column
from farm_client.data.shard_file import write_shard_file
from farm_client.executor import map_runner
from farm_client.executor.failures import CodeError, MissingFile
from farm_client.executor.map_runner import MapRunner
from farm_client.executor.messages import Done, LoadTask, Piece, Run
from farm_client.outputs import ItemError, unpack_output
from protocol.assignments import Kind
from protocol.digests import digest_bytes
from protocol.maps import MapPlan
from protocol.outputs import split_outputs
from protocol.recipe import Mode
from protocol.tasks import Split

CPU = torch.device("cpu")
DOUBLE = "def map_item(item, config):\n    return item * 2\n"
QUIET = cast("Any", SimpleNamespace(advance=lambda _: None))


def loaded(tmp_path: Path, code: str, report_bytes: int = 10**6, **plan: Any) -> MapRunner:
    (tmp_path / "map.py").write_text(code)
    order = LoadTask(
        task_id="t",
        code_dir=str(tmp_path),
        entry="map.py",
        config={"factor": 3},
        mode=Mode.WEIGHTS,
        seed=7,
        batch_samples=1,
        dataset_kind="code",
        scratch_dir=str(tmp_path / "scratch"),
        report_bytes=report_bytes,
        map=MapPlan(**plan),
    )
    return MapRunner(order, CPU)


def numbers(start: int, stop: int) -> Run:
    piece = Piece(shard=0, split=Split.TRAIN, shard_samples=1000, first_row=0, path=None, start=start, stop=stop)
    return Run(
        assignment_id="a", kind=Kind.MAP, round=0, epoch=0, weights_digest="0" * 64, pieces=(piece,), position=start
    )


def values(done: Done) -> list[Any]:
    assert done.update is not None
    assert done.update_digest == digest_bytes(done.update)
    return [unpack_output(data) for data in split_outputs(done.update, done.samples)]


def test_each_item_has_its_output(tmp_path: Path) -> None:
    runner = loaded(tmp_path, DOUBLE)
    assert values(runner.run(numbers(3, 7), QUIET)) == [6, 8, 10, 12]


def test_what_is_written_beside_the_next_part_is_the_same(tmp_path: Path) -> None:
    runner = loaded(tmp_path, DOUBLE)
    write = runner.run_ahead(numbers(0, 2), QUIET)
    runner.run(numbers(2, 4), QUIET)
    assert not isinstance(write, Done)
    assert values(write()) == [0, 2]


def test_outputs_that_no_message_carries_are_a_file(tmp_path: Path) -> None:
    done = loaded(tmp_path, DOUBLE, report_bytes=4).run(numbers(0, 3), QUIET)
    assert done.update is None
    data = Path(str(done.update_path)).read_bytes()
    assert (digest_bytes(data), len(data)) == (done.update_digest, done.update_bytes)


def test_what_setup_returns_is_there_for_each_item(tmp_path: Path) -> None:
    code = "def setup(config):\n    return config['factor'] + 1\n"
    code += "def map_item(item, config):\n    return item * config['setup'] * config['factor']\n"
    assert values(loaded(tmp_path, code).run(numbers(1, 3), QUIET)) == [12, 24]


def test_a_batch_has_so_many_items_and_an_output_for_each(tmp_path: Path) -> None:
    code = "def map_batch(batch, config):\n    return [(n, len(batch)) for n in batch]\n"
    done = loaded(tmp_path, code, batch_items=4).run(numbers(4, 14), QUIET)
    assert values(done) == [[n, 4] for n in range(4, 12)] + [[12, 2], [13, 2]]


def test_arrays_and_dicts_of_arrays_are_parted(tmp_path: Path) -> None:
    code = "import numpy as np, torch\n"
    code += "def map_batch(batch, config):\n"
    code += "    return {'x': torch.tensor(batch), 'y': np.ones((len(batch), 2))}\n"
    found = values(loaded(tmp_path, code, batch_items=2).run(numbers(0, 2), QUIET))
    assert [int(one["x"]) for one in found] == [0, 1]
    np.testing.assert_array_equal(found[1]["y"], [1, 1])


RANDOM = (
    "import random, numpy, torch\ndef map_item(item, config):\n"
    "    return [random.random(), numpy.random.rand(), torch.rand(1).item()]\n"
)


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))
def test_an_item_draws_the_same_numbers_in_whichever_part(
    tmp_path_factory: pytest.TempPathFactory, start: int, first: int, second: int
) -> None:
    runner = loaded(tmp_path_factory.mktemp("map"), RANDOM)
    stop = start + first + second
    whole = values(runner.run(numbers(start, stop), QUIET))
    middle = start + first
    assert whole == [
        *values(runner.run(numbers(start, middle), QUIET)),
        *values(runner.run(numbers(middle, stop), QUIET)),
    ]
    assert len({tuple(one) for one in whole}) == len(whole), "each item has numbers of its own"


FRAGILE = "def map_item(item, config):\n    return 1 // (item - 5)\n"


def test_an_item_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"map.py:2, in map_item.*ZeroDivisionError.*\(item 5\)") as caught:
        loaded(tmp_path, FRAGILE, on_error="stop").run(numbers(3, 8), QUIET)
    assert "1 // (item - 5)" in str(caught.value.trace)


def test_an_item_that_is_skipped_has_its_error_in_its_place(tmp_path: Path) -> None:
    runner = loaded(tmp_path, FRAGILE, on_error="skip")
    done = runner.run(numbers(4, 7), QUIET)
    assert (done.metrics, runner.run(numbers(6, 9), QUIET).metrics) == ({"failed_items": 1.0}, {})
    found = values(done)
    assert (found[0], found[2]) == (-1, 1)
    assert isinstance(found[1], ItemError)
    assert found[1].position == 5
    assert "ZeroDivisionError" in found[1].error
    assert "1 // (item - 5)" in found[1].traceback


BATCH = "def map_batch(batch, config):\n    return [1 // (item - 5) for item in batch]\n"


def test_of_a_batch_that_fails_the_item_is_found(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"\(item 5\)"):
        loaded(tmp_path, BATCH, batch_items=4, on_error="stop").run(numbers(4, 8), QUIET)
    found = values(loaded(tmp_path, BATCH, batch_items=4, on_error="skip").run(numbers(4, 8), QUIET))
    assert [type(one) for one in found] == [int, ItemError, int, int]


def test_a_batch_that_fails_although_each_item_is_well_is_named(tmp_path: Path) -> None:
    code = "def map_batch(batch, config):\n    assert len(batch) < 2\n    return batch\n"
    with pytest.raises(CodeError, match=r"\(items 0 to 3\)"):
        loaded(tmp_path, code, batch_items=4, on_error="stop").run(numbers(0, 4), QUIET)
    assert values(loaded(tmp_path, code, batch_items=4, on_error="skip").run(numbers(0, 4), QUIET)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("returned", "says"),
    [("object()", "can't be an output"), ("[object()]", "can't be an output"), ("b'x' * 2**25", "is over the most")],
)
def test_what_is_no_output_is_told(tmp_path: Path, returned: str, says: str) -> None:
    code = f"def map_item(item, config):\n    return {returned}\n"
    with pytest.raises(CodeError, match=rf"map_item.*{says}.*\(item 0\)"):
        loaded(tmp_path, code, on_error="stop").run(numbers(0, 1), QUIET)


@pytest.mark.parametrize("returned", ["batch[:1]", "3", "'ab'", "{'x': [1]}"])
def test_a_batch_without_an_output_for_each_item_is_refused(tmp_path: Path, returned: str) -> None:
    code = f"def map_batch(batch, config):\n    return {returned}\n"
    with pytest.raises(CodeError, match="an output for each of the 2 items"):
        loaded(tmp_path, code, batch_items=2).run(numbers(0, 2), QUIET)


def test_a_part_with_too_large_outputs_is_told_how_to_be_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_runner, "MAX_PART_BYTES", 10)
    with pytest.raises(CodeError, match="--part"):
        loaded(tmp_path, "def map_item(item, config):\n    return 'x' * 20\n").run(numbers(0, 2), QUIET)


def test_code_without_a_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="no function map_item"):
        loaded(tmp_path, "x = 1\n")


def test_rows_of_files_are_read_in_order_over_shards(tmp_path: Path) -> None:
    pieces = []
    for index in range(2):
        path = tmp_path / f"{index}.safetensors"
        rows = {"x": np.arange(3, dtype=np.int64) + 3 * index, "name": [f"n{index}{row}".encode() for row in range(3)]}
        columns = (Column("x", "I64"), Column("name", "TEXT"))
        write_shard_file(path, columns, rows)  # type: ignore[arg-type]
        pieces.append((index, str(path)))
    runner = loaded(tmp_path, "def map_item(item, config):\n    return [int(item['x']), item['name']]\n")
    order = numbers(1, 5).model_copy(
        update={
            "pieces": tuple(
                Piece(shard=i, split=Split.TRAIN, shard_samples=3, first_row=0, path=path, start=1 - i, stop=3 - i)
                for i, path in pieces
            )
        }
    )
    assert values(runner.run(order, QUIET)) == [[1, "n01"], [2, "n02"], [3, "n10"], [4, "n11"]]
    Path(pieces[0][1]).unlink()
    with pytest.raises(MissingFile):
        runner.run(order, QUIET)


def test_a_map_is_never_guessed(tmp_path: Path) -> None:
    runner = loaded(tmp_path, DOUBLE)
    assert (runner.guess, runner.foresee()) == (None, None)
    runner.undo(is_wrong=False)
    runner.confirm()
    assert isinstance(runner.run_on(numbers(0, 1), QUIET), Done)
    with pytest.raises(RuntimeError):
        runner.run_guess(cast("Any", None))
