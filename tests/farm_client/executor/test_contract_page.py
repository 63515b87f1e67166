"""docs/reference/researcher-contract.md cannot lie: its example runs, and its names and codes are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from farm_client.data.readers import known_suffixes
from farm_client.executor.contract import Contract
from farm_client.executor.failures import CodeError, EmptyData, LossNotFinite, MissingFile, MissingModule
from farm_client.executor.messages import DISK_FULL, OUT_OF_MEMORY
from tests.farm_client.executor.bench_task import Bench

PAGE = (Path(__file__).parents[3] / "docs/reference/researcher-contract.md").read_text()


def test_the_example_trains(tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = Bench(tmp_path, example).train()
    assert set(done.metrics) == {"loss", "accuracy"}


def test_every_function_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)\((?:config|model|optimizer|shard|items)", PAGE, re.MULTILINE)
    methods = {name for name in vars(Contract) if not name.startswith("_")} - {
        "has",
        "has_schedulers",
        "begin",
        "finish",
        "collate",
        *("loss_with_state", "train_step_with_state"),
        *("takes_lightnings_steps", "is_manual", "manual_step", "begin_batch", "move", "evaluates"),
        *("tell", "reads_length"),
    }
    assert set(rows) == methods | {"collate_fn"}


def test_every_form_of_data_has_its_row() -> None:
    named = {suffix for row in re.findall(r"^\| (`\..*?) \|", PAGE, re.MULTILINE) for suffix in row.split("`")[1::2]}
    assert named == set(known_suffixes())


def test_every_code_has_its_row() -> None:
    codes = {error.code for error in (CodeError, LossNotFinite, EmptyData, MissingFile, MissingModule)}
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert set(rows) == codes | {OUT_OF_MEMORY, DISK_FULL, "executor_error"}
