"""Which checkpoint is meant, what a model's file holds, how feeds are read to their end, and what is shown of texts."""

from __future__ import annotations

import json
import math
import struct
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from farm_client.sdk.api import FarmApi
from farm_client.sdk.blocking_transfers import Forward
from farm_client.sdk.checkpoints import best_round, find_best, find_checkpoint
from farm_client.sdk.errors import first_problem
from farm_client.sdk.feeds import follow, read_all
from farm_client.sdk.outcome import TaskOutcome, is_over, outcome_of
from farm_client.sdk.tidy import tidied
from farm_client.sdk.weights_file import write_model_file
from protocol.errors import InvalidTask, MalformedTensors, NotFound
from protocol.recipe import Recipe
from protocol.rest import CheckpointView
from protocol.tasks import TaskSpec
from protocol.tensors import DTYPE_BYTES, weights_metadata
from tests.farm_client.cli.fake_farm import make_spec, make_task


def checkpoint(number: int, accuracy: float | None = None, *, newest: bool = False) -> CheckpointView:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return CheckpointView.model_construct(
        round=number, digest="a" * 64, size_bytes=1, newest=newest, metrics=metrics, frozen=None
    )


class StandInApi:
    """A farm with these checkpoints and this rule."""

    def __init__(self, kept: Sequence[CheckpointView], rule: str | None = None) -> None:
        self._kept, self._rule = list(kept), rule

    def checkpoints(self, _task_id: str) -> list[CheckpointView]:
        return self._kept

    def task(self, _task_id: str) -> Any:
        return type("Detail", (), {"spec": make_spec(Recipe(rounds=20, keep_best=self._rule))})


def api(*kept: CheckpointView, rule: str | None = None) -> FarmApi:
    return cast("FarmApi", StandInApi(kept, rule))


class TestFindCheckpoint:
    """The one of a round, or the newest."""

    def test_it_is_the_one_that_was_asked_for(self) -> None:
        farm = api(checkpoint(0), checkpoint(5), checkpoint(20, newest=True))
        assert find_checkpoint(farm, "t1").round == 20
        assert find_checkpoint(farm, "t1", 5).round == 5
        assert find_checkpoint(farm, "t1", 0).round == 0

    @pytest.mark.parametrize(
        ("rounds", "words"),
        [
            ([7], "kept are: 7"),
            ([0, 1], "kept are: 0, 1"),
            ([0, 1, 2], "kept are: 0 to 2"),
            ([0, 5, 18, 19, 20], "kept are: 0, 5, 18 to 20"),
            ([20, 18, 19], "kept are: 18 to 20"),
        ],
    )
    def test_of_one_that_is_not_kept_the_kept_ones_are_told(self, rounds: list[int], words: str) -> None:
        with pytest.raises(NotFound, match=f"no checkpoint of round 99; {words}$"):
            find_checkpoint(api(*map(checkpoint, rounds)), "t1", 99)

    def test_a_task_that_has_none_waits_for_something(self) -> None:
        with pytest.raises(NotFound, match="`farm why t1` says what it waits for"):
            find_checkpoint(api(), "t1")


class TestBest:
    """By the task's own rule."""

    @pytest.mark.parametrize(
        ("rule", "found"), [("max:accuracy", 8), ("min:accuracy", 2), ("max:other", None), (None, None)]
    )
    def test_the_newest_of_equals_and_only_of_numbers(self, rule: str | None, found: int | None) -> None:
        kept = [
            checkpoint(2, 0.1), checkpoint(4, 0.9), checkpoint(6, math.nan), checkpoint(7, math.inf),
            checkpoint(8, 0.9), checkpoint(9),
        ]  # fmt: skip
        assert best_round(kept, rule) == found
        assert best_round(kept[::-1], rule) == found

    def test_a_round_and_the_best_are_two_wishes(self) -> None:
        with pytest.raises(InvalidTask, match="not both"):
            find_best(api(checkpoint(1, 0.5), rule="max:accuracy"), "t1", 1)

    def test_without_a_rule_or_a_measure_it_says_which_command_helps(self) -> None:
        with pytest.raises(InvalidTask, match="`farm checkpoints t1`"):
            find_best(api(checkpoint(1, 0.5)), "t1")
        with pytest.raises(NotFound, match="max:accuracy was not measured"):
            find_best(api(checkpoint(1), rule="max:accuracy"), "t1")

    def test_else_it_is_found(self) -> None:
        assert find_best(api(checkpoint(1, 0.5), checkpoint(2, 0.4), rule="max:accuracy"), "t1") == 1


DTYPES = {"F64": "d", "F32": "f", "I64": "q", "U8": "B"}


def weights_file(path: Path, tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]) -> Path:
    """Write a tensor file: each tensor's dtype and its numbers, in one dimension."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name, (dtype, numbers) in tensors.items():
        data = struct.pack(f"<{len(numbers)}{DTYPES[dtype]}", *numbers)
        entries[name] = {"dtype": dtype, "shape": [len(numbers)], "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)
    return path


def read_file(path: Path) -> tuple[dict[str, list[Any]], dict[str, str], dict[str, int]]:
    """Read a tensor file with nothing of this project: values, metadata, and where each tensor begins in the file."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    places = {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items()}
    values = {
        name: list(struct.unpack(f"<{entry['shape'][0]}{DTYPES[entry['dtype']]}", data[places[name] :][: end - start]))
        for name, entry in header.items()
        for start, end in [entry["data_offsets"]]
    }
    return values, metadata, places


class TestModelFile:
    """What any reader of such files loads into the model."""

    TENSORS = {"small": ("U8", [1, 2, 3]), "w": ("F32", [1, -2]), "steps": ("I64", [7]), "big": ("F64", [5])}

    def test_every_tensor_is_there_with_its_numbers_and_aligned(self, tmp_path: Path) -> None:
        roles = dict.fromkeys(self.TENSORS, "buffer")
        source = weights_file(tmp_path / "weights", self.TENSORS, dict(weights_metadata(roles, {})))
        write_model_file([source], tmp_path / "model", {"task": "t1"})
        values, metadata, places = read_file(tmp_path / "model")
        assert values == {name: numbers for name, (_, numbers) in self.TENSORS.items()}
        assert metadata == {"task": "t1", "format": "pt"}
        for name, (dtype, _) in self.TENSORS.items():
            assert places[name] % DTYPE_BYTES[dtype] == 0

    def test_tied_names_each_have_the_tensor(self, tmp_path: Path) -> None:
        metadata = dict(weights_metadata({"w": "parameter"}, {"alias": "w"}))
        source = weights_file(tmp_path / "weights", {"w": ("F32", [1, 2])}, metadata)
        write_model_file([source], tmp_path / "model", {})
        assert read_file(tmp_path / "model")[0] == {"w": [1, 2], "alias": [1, 2]}

    def test_frozen_tensors_come_from_their_own_file(self, tmp_path: Path) -> None:
        trained = weights_file(
            tmp_path / "trained", {"w": ("F32", [1])}, dict(weights_metadata({"w": "parameter"}, {}))
        )
        frozen = weights_file(tmp_path / "frozen", {"f": ("F32", [2])}, dict(weights_metadata({"f": "frozen"}, {})))
        write_model_file([trained, frozen], tmp_path / "model", {})
        assert read_file(tmp_path / "model")[0] == {"w": [1], "f": [2]}

    @pytest.mark.parametrize("data", [b"", b"x", b"\xff" * 100, struct.pack("<Q", 2) + b"{"], ids=range(4))
    def test_what_is_no_weights_file_is_refused(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "odd").write_bytes(data)
        with pytest.raises(MalformedTensors):
            write_model_file([tmp_path / "odd"], tmp_path / "model", {})


@dataclass(frozen=True)
class Entry:
    """Of a feed."""

    seq: int


@dataclass
class Feed:
    """A feed that grows by one entry at each question until it has them all; a task that ends after ``over_after``."""

    total: int
    over_after: int = 0
    page: int = 3
    here: int = 0
    asked: int = 0
    waits: list[float] = field(default_factory=list)

    def read(self, _task_id: str, after: int = 0, wait_seconds: float = 0) -> list[Entry]:
        self.waits.append(wait_seconds)
        found = [Entry(seq) for seq in range(1, self.here + 1) if seq > after][: self.page]
        self.here = min(self.here + 1, self.total)
        return found

    def task(self, _task_id: str) -> Any:
        self.asked += 1
        if self.asked > self.over_after:
            self.here = self.total  # all that was written up to the end is in the feed now
        state = "completed" if self.asked > self.over_after else "running"
        return type("Detail", (), {"task": make_task(state=state)})


@pytest.mark.parametrize("page", [1, 2, 100])
@pytest.mark.parametrize("total", [0, 1, 5])
def test_a_feed_is_read_page_by_page_to_its_end(total: int, page: int) -> None:
    feed = Feed(total, page=page, here=total)
    assert [entry.seq for entry in read_all(feed.read, "t1")] == list(range(1, total + 1))


@pytest.mark.parametrize("over_after", [0, 1, 3, 10])
@pytest.mark.parametrize("page", [1, 2, 100])
def test_whoever_follows_hears_all_of_it_once_though_the_task_ends_meanwhile(over_after: int, page: int) -> None:
    feed = Feed(7, over_after, page)
    heard = [entry.seq for entry in follow(cast("FarmApi", feed), feed.read, "t1")]
    assert heard == list(range(1, 8))
    assert all(wait == 0 for wait in feed.waits[over_after:])  # nobody waits for what cannot come


@pytest.mark.parametrize("state", ["pending", "assigned", "running", "paused", "completed", "failed", "cancelled"])
def test_a_task_is_over_in_its_final_states(state: str) -> None:
    task = make_task(state=state)
    assert outcome_of(task) == (TaskOutcome(state) if state in ("completed", "failed", "cancelled") else None)
    assert is_over(task) == (state in ("completed", "failed", "cancelled"))


@given(st.lists(st.integers(0, 100), max_size=20))
def test_progress_only_grows_and_ends_at_the_furthest(counts: list[int]) -> None:
    steps: list[int] = []
    forward = Forward(steps.append)
    for count in counts:
        forward(count)
    assert all(step > 0 for step in steps)
    assert sum(steps) == max(counts, default=0)


class Record(BaseModel):
    """A record with texts anywhere."""

    text: str
    inside: Any = None


class TestTidied:
    """Every text in a record is one line that does nothing on a terminal."""

    @given(st.text(st.characters()), st.text(st.characters()))
    def test_wherever_a_text_is(self, text: str, other: str) -> None:
        tidy = tidied(Record(text=text, inside={other: [text, (other,), {"x": text}, 7, None]}))
        shown = [tidy.text, *tidy.inside]
        shown += [one for value in tidy.inside.values() for one in (value[0], *value[1], *value[2].values())]
        hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
        left = {character for one in shown for character in one if unicodedata.category(character) in hidden}
        assert left <= {"\u200c", "\u200d"}  # joiners, which scripts need and which move nothing
        assert next(iter(tidy.inside.values()))[3:] == [7, None]

    def test_a_clean_record_is_itself(self) -> None:
        record = Record(text="clean", inside=[1, "clean"])
        assert tidied(record) is record

    def test_a_list_of_records_stays_one(self) -> None:
        assert tidied([Record(text="a\nb")])[0].text != "a\nb"


@pytest.mark.parametrize(
    ("change", "source", "said"),
    [
        ({"recipe": {"rounds": 0}}, "farm.toml", "farm.toml: recipe.rounds: "),
        ({"name": 7}, None, "name: "),
    ],
)
def test_the_first_mistake_of_a_record_is_told_in_a_line(change: dict[str, Any], source: str | None, said: str) -> None:
    document = make_spec().model_dump(mode="json") | change
    with pytest.raises(ValueError, match="validation error") as refused:
        TaskSpec.model_validate(document)
    line = first_problem(cast("Any", refused.value), source)
    assert line.startswith(said)
    assert "\n" not in line
    assert "Value error" not in line
