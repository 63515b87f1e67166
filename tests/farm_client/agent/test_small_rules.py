"""The agent's small decisions: what fits, what is refused, what is said shorter, who is known, what is counted."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.blobs.cache_stats import CacheStats
from farm_client.agent.connection.link import shortened
from farm_client.agent.errors import BadHome, DamagedIdentity
from farm_client.agent.home.identity import Identity, load_identity
from farm_client.agent.home.known_farms import KnownFarms
from farm_client.agent.work.preflight import Standing, refusal
from farm_client.durable_file import write_durably
from protocol.assignments import Assign, AssignmentProgress, LogLine, MetricPoint, Phase, Progress, Reject, RejectCode
from protocol.messages import Error, Message, Scope
from protocol.wanted_work import WantedWork
from tests.protocol.samples import BY_TYPE, SAMPLES

ASSIGN = BY_TYPE["assign"]
assert isinstance(ASSIGN, Assign)
MIB = 1024**2


def assign_that_needs(ram_bytes: int) -> Assign:
    task = ASSIGN.task.model_copy(update={"needed_ram_bytes": ram_bytes})
    return ASSIGN.model_copy(update={"task": task})


class TestPreflight:
    """May this machine take this assignment?"""

    @pytest.mark.parametrize("free", [None, 10 * MIB, 11 * MIB])
    def test_what_fits_is_not_refused(self, free: int | None) -> None:
        assert refusal(assign_that_needs(10 * MIB), Standing(free_slots=1, ram_free_bytes=free)) is None

    @pytest.mark.parametrize("lacking_bytes", [1, MIB])
    def test_memory_is_compared_to_the_byte(self, lacking_bytes: int) -> None:
        refused = refusal(assign_that_needs(10 * MIB), Standing(1, 10 * MIB - lacking_bytes))
        assert refused is not None
        assert refused.code is RejectCode.DOES_NOT_FIT
        assert "needs 10.0 MiB of memory" in refused.message
        assert "are free to lend" in refused.message

    @pytest.mark.parametrize("slots", [0, -1])
    def test_without_a_slot_it_is_busy(self, slots: int) -> None:
        refused = refusal(ASSIGN, Standing(slots, None))
        assert refused is not None
        assert refused.code is RejectCode.BUSY

    def test_who_leaves_says_so_whatever_else_is_lacking(self) -> None:
        """The farm must not take a leaving client for a small one."""
        refused = refusal(assign_that_needs(10 * MIB), Standing(0, 0, draining=True))
        assert refused is not None
        assert refused.code is RejectCode.DRAINING

    @pytest.mark.parametrize(
        ("submitter", "names", "code"),
        [
            ("alice@lab", (), None),
            ("alice@lab", ("alice",), None),
            ("alice@lab", ("bob", "alice@lab"), None),
            ("alice@lab", ("alice@home",), RejectCode.OWNER),
            ("mallory@lab", ("alice", "lab"), RejectCode.OWNER),
            ("", ("alice",), RejectCode.DOES_NOT_FIT),
            ("", ("",), RejectCode.DOES_NOT_FIT),
        ],
    )
    def test_the_owner_works_for_whom_they_named(
        self, submitter: str, names: tuple[str, ...], code: RejectCode | None
    ) -> None:
        """A server that names nobody is older than the code for it."""
        assign = ASSIGN.model_copy(update={"task": ASSIGN.task.model_copy(update={"submitter": submitter})})
        refused = refusal(assign, Standing(1, None, work_for=names))
        assert (refused and refused.code) == code

    @pytest.mark.parametrize(
        ("wanted", "submitter", "code"),
        [
            (WantedWork(), "alice", None),
            (WantedWork(kinds=("train",), topics=("science",), not_topics=("ads",)), "alice", None),
            (WantedWork(kinds=("evaluate",)), "alice", RejectCode.OWNER),
            (WantedWork(topics=("physics",)), "alice", RejectCode.OWNER),
            (WantedWork(not_topics=("science",)), "alice", RejectCode.OWNER),
            (WantedWork(not_topics=("science",)), "", RejectCode.DOES_NOT_FIT),
        ],
    )
    def test_the_owner_wants_what_they_chose(self, wanted: WantedWork, submitter: str, code: RejectCode | None) -> None:
        task = ASSIGN.task.model_copy(update={"submitter": submitter, "topics": ("science",)})
        refused = refusal(ASSIGN.model_copy(update={"task": task}), Standing(1, None, wanted=wanted))
        assert (refused and refused.code) == code

    def test_a_task_that_has_its_executor_has_its_memory(self) -> None:
        assert refusal(assign_that_needs(2**50), Standing(1, None)) is None


_lines = st.lists(st.text(max_size=5).map(lambda text: LogLine(text=text)), max_size=9).map(tuple)
_points = st.lists(st.integers(0, 99).map(lambda step: MetricPoint(name="loss", value=0.5, step=step)), max_size=9)
DOING = AssignmentProgress(assignment_id="a", fence=1, phase=Phase.COMPUTING)


def fitted(message: Message) -> list[Message]:
    """Shorten until nothing can be shortened, as a link does for frames of which none is small enough."""
    parts = shortened(message)
    return [message] if parts is None else [short for part in parts for short in fitted(part)]


class TestFitting:
    """The same in shorter frames."""

    @given(logs=_lines, metrics=_points.map(tuple))
    def test_no_line_and_no_metric_is_lost_doubled_or_out_of_order(
        self, logs: tuple[LogLine, ...], metrics: tuple[MetricPoint, ...]
    ) -> None:
        said = fitted(Progress(progress=DOING, logs=logs, metrics=metrics))
        assert tuple(line for one in said for line in one.logs) == logs
        assert tuple(point for one in said for point in one.metrics) == metrics
        assert all(one.progress == DOING for one in said)
        assert all(len(one.logs) + len(one.metrics) <= 1 for one in said)

    def test_an_error_loses_its_traceback_before_its_words(self) -> None:
        error = Error(code="x", message="m" * 2000, assignment_id="a", fence=3, scope=Scope.NOBODY, traceback="t" * 999)
        (without,) = shortened(error) or ()
        assert without == error.model_copy(update={"traceback": None})
        (short,) = shortened(without) or ()
        assert short == without.model_copy(update={"message": "m" * 500})
        assert shortened(short) is None

    def test_a_reject_loses_words_and_nothing_else(self) -> None:
        reject = Reject(assignment_id="a", fence=1, code=RejectCode.BUSY, message="m" * 501)
        assert shortened(reject) == [reject.model_copy(update={"message": "m" * 500})]
        assert shortened(reject.model_copy(update={"message": "m" * 500})) is None

    @pytest.mark.parametrize(
        "message", [one for one in SAMPLES if not isinstance(one, Progress | Error)], ids=lambda one: one.type
    )
    def test_what_cannot_be_shortened_is_left_alone(self, message: Message) -> None:
        assert shortened(message) is None


class TestIdentity:
    """Who this client is, from one run to the next."""

    def test_it_is_made_once_and_read_ever_after(self, tmp_path: Path) -> None:
        first = load_identity(tmp_path / "identity.json")
        assert load_identity(tmp_path / "identity.json") == first
        other = load_identity(tmp_path / "other.json")
        assert other.client_id != first.client_id
        assert other.client_secret != first.client_secret

    def test_nobody_else_may_read_the_secret_nor_see_it_in_a_log(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            identity = load_identity(tmp_path / "identity.json")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "identity.json").stat().st_mode) == 0o600
        assert identity.client_secret not in repr(identity)

    def test_anew_is_another_one_and_stays(self, tmp_path: Path) -> None:
        first = load_identity(tmp_path / "identity.json")
        second = load_identity(tmp_path / "identity.json", anew=True)
        assert second.client_id != first.client_id
        assert load_identity(tmp_path / "identity.json") == second

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("", "is empty, as a power cut leaves a file"),
            ("{", "is damaged"),
            ("[]", "is damaged"),
            ('{"client_id": "c"}', "is damaged"),
            ('{"client_id": "", "client_secret": "0123456789abcdef"}', "is damaged"),
            ('{"client_id": "c", "client_secret": "short"}', "is damaged"),
        ],
    )
    def test_a_damaged_one_is_never_silently_replaced(self, tmp_path: Path, text: str, what: str) -> None:
        """A new identity would lose the client's past; a person decides that."""
        path = tmp_path / "identity.json"
        path.write_text(text)
        with pytest.raises(DamagedIdentity, match=what):
            load_identity(path)
        assert path.read_text() == text
        assert load_identity(path, anew=True) == load_identity(path)

    def test_a_folder_that_takes_no_file_is_explained(self, tmp_path: Path) -> None:
        with pytest.raises(BadHome, match=r"No such file.*--home"):
            load_identity(tmp_path / "absent" / "identity.json")
        (tmp_path / "identity.json").mkdir()
        with pytest.raises(BadHome, match="Is a directory"):
            load_identity(tmp_path / "identity.json")

    @pytest.mark.parametrize("size", [0, 65])
    def test_a_name_that_no_farm_takes_is_no_identity(self, size: int) -> None:
        with pytest.raises(ValueError, match="client_id"):
            Identity(client_id="c" * size, client_secret="s" * 32)


class TestAcquaintances:
    """Addresses that have welcomed this machine."""

    def test_they_are_known_in_the_next_run(self, tmp_path: Path) -> None:
        known = KnownFarms(tmp_path / "known.json")
        assert "ws://farm" not in known
        known.add("ws://farm")
        assert "ws://farm" in known
        assert "ws://farm" in KnownFarms(tmp_path / "known.json")
        assert "ws://far" not in known

    def test_the_oldest_of_many_is_forgotten(self, tmp_path: Path) -> None:
        known = KnownFarms(tmp_path / "known.json")
        for number in range(65):
            known.add(f"ws://{number}")
        again = KnownFarms(tmp_path / "known.json")
        assert "ws://0" not in known
        assert all(f"ws://{number}" in again for number in range(1, 65))

    def test_a_known_one_is_not_written_again(self, tmp_path: Path) -> None:
        known = KnownFarms(tmp_path / "known.json")
        known.add("ws://farm")
        (tmp_path / "known.json").unlink()
        known.add("ws://farm")
        assert not (tmp_path / "known.json").exists()

    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"{}", b'"ws://farm"', b"7", b"null", b"\xff\xfe", b"[" * 5000, b'["x"' + b" " * 70_000 + b"]"],
        ids=lambda text: repr(text[:10]),
    )
    def test_an_odd_file_is_done_without(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / "known.json").write_bytes(text)
        known = KnownFarms(tmp_path / "known.json")
        assert "ws://farm" not in known
        known.add("ws://farm")
        assert json.loads((tmp_path / "known.json").read_text()) == ["ws://farm"]

    def test_of_an_odd_list_the_addresses_are_kept(self, tmp_path: Path) -> None:
        (tmp_path / "known.json").write_text('[1, "ws://farm", null, ["x"]]')
        assert "ws://farm" in KnownFarms(tmp_path / "known.json")

    def test_a_disk_that_takes_nothing_costs_only_the_memory_of_it(self, tmp_path: Path) -> None:
        known = KnownFarms(tmp_path / "absent" / "known.json")
        known.add("ws://farm")
        assert "ws://farm" in known


class TestWriteDurably:
    """The old file or the new one, never half of one."""

    def test_the_whole_text_is_there_for_its_owner_alone(self, tmp_path: Path) -> None:
        write_durably(tmp_path / "file.json", "first, and longer")
        write_durably(tmp_path / "file.json", "zweite: ö")
        assert (tmp_path / "file.json").read_text(encoding="utf-8") == "zweite: ö"
        assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["file.json"]

    def test_a_half_written_one_of_before_is_no_obstacle_and_leads_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("mine")
        (tmp_path / "file.new").symlink_to(tmp_path / "victim")
        write_durably(tmp_path / "file.json", "text")
        assert (tmp_path / "victim").read_text() == "mine"
        assert (tmp_path / "file.json").read_text() == "text"

    def test_a_sync_that_fails_leaves_the_file_that_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_durably(tmp_path / "file.json", "old")

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match="Input/output"):
                write_durably(tmp_path / "file.json", "new")
        assert (tmp_path / "file.json").read_text() == "old"
        write_durably(tmp_path / "file.json", "new")
        assert (tmp_path / "file.json").read_text() == "new"

    def test_the_bytes_are_synced_before_the_name_and_the_name_after(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        fsync, replace = os.fsync, Path.replace

        def synced(handle: int) -> None:
            steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
            fsync(handle)

        def replaced(path: Path, target: Path) -> Path:
            steps.append("rename")
            return replace(path, target)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", replaced)
        write_durably(tmp_path / "file.json", "text")
        assert steps == ["file", "rename", "folder"]


class TestCacheStats:
    """How the cache fares, in numbers and in a line."""

    @pytest.mark.parametrize(("hits", "misses", "rate"), [(0, 0, 0.0), (0, 5, 0.0), (3, 1, 0.75), (4, 0, 1.0)])
    def test_the_hit_rate(self, hits: int, misses: int, rate: float) -> None:
        assert math.isclose(CacheStats(hits=hits, misses=misses).hit_rate, rate)

    def test_the_line_tells_each_number(self) -> None:
        stats = CacheStats(
            entries=7, used_bytes=2 << 30, max_bytes=5 << 30, hits=11, misses=2, served_bytes=3 << 20, evictions=17,
            evicted_bytes=19 << 20, damaged=23,
        )  # fmt: skip
        line = stats.in_words()
        for number in ("in 7 blobs", "11 of 13 asked for", "17 evicted", "23 damaged"):
            assert number in line
        assert "\n" not in line
