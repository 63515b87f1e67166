"""Streams that take any text and end no command, and the first lines of a child that ends with its parent."""

from __future__ import annotations

import ctypes
import io
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client import streams
from farm_client.sandbox import lifeline
from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.inside import Inside
from farm_client.sandbox.words import in_words
from farm_client.sdk.child_process import child_command
from farm_client.streams import discard, flush_streams, prepare_streams


@pytest.fixture(autouse=True)
def _own_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is done to the streams from whoever comes next; no descriptor is closed here."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(streams, "_fill_closed_descriptors", lambda: None)


def ascii_stream() -> tuple[io.TextIOWrapper, io.BytesIO]:
    raw = io.BytesIO()
    return io.TextIOWrapper(raw, encoding="ascii"), raw


def written(stream: io.TextIOWrapper, raw: io.BytesIO, text: str) -> bytes:
    stream.write(text)
    stream.flush()
    return raw.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", b"plain"),
        ("▁█ ━━ …", b"_@ == ~"),
        ("café", b"caf\\xe9"),
        ("🙂", b"\\U0001f642"),
        ("\udc80", b"\\udc80"),
        ("a·b•c", b"a.b*c"),
    ],
)
def test_a_terminal_that_has_ascii_only_gets_similar_signs_or_escapes(
    monkeypatch: pytest.MonkeyPatch, text: str, shown: bytes
) -> None:
    stream, raw = ascii_stream()
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_streams()
    assert written(stream, raw, text) == shown


@given(text=st.text(st.characters()))
def test_any_text_can_be_written_to_any_terminal(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stream, raw = ascii_stream()
        patch.setattr(sys, "stdout", stream)
        prepare_streams()
        assert written(stream, raw, text).isascii()


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_was_closed_before_the_start_is_nowhere(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, name, None)
    prepare_streams()
    stream = getattr(sys, name)
    assert stream.read() == "" if name == "stdin" else stream.write("into nothing") == 12
    stream.close()


class Broken(io.StringIO):
    """A stream that can no longer be flushed."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space left"), ValueError("closed file")], ids=repr
)
@pytest.mark.parametrize(("name", "is_written"), [("stdout", False), ("stderr", True)])
def test_whether_what_was_said_arrived(
    monkeypatch: pytest.MonkeyPatch, name: str, is_written: bool, error: Exception
) -> None:
    """A command whose result could not be written has failed; one whose notes could not be has not."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert flush_streams()
    monkeypatch.setattr(sys, name, Broken(error))
    assert flush_streams() is is_written


def test_a_discarded_stream_takes_everything_and_writes_nothing(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        file.write("before\n")
        file.flush()
        discard(file)
        file.write("after\n")
        file.flush()
    assert (tmp_path / "out").read_text() == "before\n"


@pytest.mark.parametrize("stream", [None, object(), io.StringIO()], ids=["none", "no stream", "no descriptor"])
def test_what_has_no_descriptor_is_left_alone(stream: Any) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    discard(stream)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


class TestLifeline:
    """An executor's first lines."""

    def test_a_child_whose_parent_is_gone_already_leaves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, ...]] = []

        class Library:
            def prctl(self, *arguments: int) -> None:
                asked.append(arguments)

        monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: Library())
        lifeline.die_with(os.getppid())
        with pytest.raises(SystemExit, match="the agent is gone"):
            lifeline.die_with(os.getppid() + 1)
        assert asked == [(1, 9, 0, 0, 0)] * 2  # PR_SET_PDEATHSIG, SIGKILL: asked for before it looks

    def test_a_system_that_forbids_the_score_keeps_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[Any] = []
        monkeypatch.setattr(os, "nice", done.append)
        monkeypatch.setattr(resource, "setrlimit", lambda *arguments: done.append(arguments))

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "write_text", refuse)
        lifeline.be_a_good_guest()
        assert done == [5, (resource.RLIMIT_CORE, (0, 0))]

    def test_the_module_gets_the_lifeline_s_own_arguments_not_to_see(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[Any] = []
        monkeypatch.setattr(sys, "argv", ["lifeline", str(os.getppid()), in_words(Inside()), "some.module", "ours"])
        monkeypatch.setattr(lifeline, "enter", ran.append)
        monkeypatch.setattr(lifeline, "die_with", ran.append)
        monkeypatch.setattr(lifeline, "be_a_good_guest", lambda: None)
        monkeypatch.setattr(
            lifeline.runpy, "run_module", lambda module, **options: ran.append((module, list(sys.argv), options))
        )
        lifeline.main()
        assert ran == [
            os.getppid(),
            Inside(),
            ("some.module", ["lifeline", "ours"], {"run_name": "__main__", "alter_sys": True}),
        ]

    def test_in_a_process_id_namespace_the_agent_has_no_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["lifeline", "0", in_words(Inside()), "some.module"])
        for name in ("enter", "be_a_good_guest"):
            monkeypatch.setattr(lifeline, name, lambda *_: None)
        monkeypatch.setattr(lifeline.runpy, "run_module", lambda *_, **__: None)
        lifeline.main()

    def test_what_could_not_be_confined_runs_nothing_of_a_task(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(_: Inside) -> None:
            raise SandboxUnavailable("this process could not be confined: no Landlock")

        monkeypatch.setattr(sys, "argv", ["lifeline", "0", in_words(Inside()), "some.module"])
        monkeypatch.setattr(lifeline, "be_a_good_guest", lambda: None)
        monkeypatch.setattr(lifeline, "enter", refuse)
        monkeypatch.setattr(lifeline.runpy, "run_module", None)
        with pytest.raises(SystemExit) as left:
            lifeline.main()
        assert left.value.code == lifeline.NOT_CONFINED
        assert capsys.readouterr().err == "this process could not be confined: no Landlock\n"


def test_a_child_s_command_names_its_parent_and_imports_nothing_of_the_folder_it_starts_in() -> None:
    command = child_command("farm_server", "up", "--json")
    assert command == [
        sys.executable, "-P", "-m", "farm_client.sdk.child_process", str(os.getpid()), "farm_server", "up", "--json",
    ]  # fmt: skip
