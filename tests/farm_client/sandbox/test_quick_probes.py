"""What an executor tries before it is one: with a protection taken away it never runs, and says which is missing."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from farm_client.sandbox import quick_probes
from farm_client.sandbox.confinement import UNCONFINED
from farm_client.sandbox.lifeline import NOT_CONFINED
from farm_client.sandbox.protection import Protection
from farm_client.sandbox.quick_probes import first_breach, tried_first
from farm_client.sandbox.room import Room
from farm_client.sandbox.targets import Targets
from farm_client.sandbox.words import in_words
from protocol.sandbox import Rung
from tests.farm_client.sandbox.machine import confinement, environment, policy

RUNGS = (Rung.STRICT, Rung.LANDLOCK)
_MODULE = "platform"
"""One that prints a line."""


def run(rung: Rung, tmp_path: Path, without: frozenset[Protection] = frozenset()) -> subprocess.CompletedProcess[str]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "identity.json").write_text("secret")
    how = confinement(rung, policy((home,)), without)
    room = Room.make(home)
    try:
        return subprocess.run(
            how.command(room, *tried_first(how, room, _MODULE)),
            env=dict(environment(room.scratch, {})),
            cwd=room.scratch,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
    finally:
        room.remove()


@pytest.mark.parametrize("rung", RUNGS)
def test_where_all_holds_the_module_runs(rung: Rung, tmp_path: Path) -> None:
    ended = run(rung, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Linux" in ended.stdout


@pytest.mark.parametrize(
    ("rung", "without", "said"),
    [
        (Rung.STRICT, Protection.FILES, "the probe of files could"),
        (Rung.STRICT, Protection.READ_ONLY, "the probe of read_only could"),
        (Rung.STRICT, Protection.NETWORK, "the probe of network could open a socket in the machine's own network"),
        (Rung.STRICT, Protection.PROCESSES, "the probe of processes could signal the agent"),
        (Rung.STRICT, Protection.SYSTEM_CALLS, "the probe of system_calls could call ptrace"),
        (Rung.LANDLOCK, Protection.FILES, "the probe of files could read"),
        (Rung.LANDLOCK, Protection.SYSTEM_CALLS, "the probe of network could open a socket"),
    ],
)
def test_without_a_protection_the_module_never_runs(rung: Rung, without: Protection, said: str, tmp_path: Path) -> None:
    ended = run(rung, tmp_path, frozenset({without}))
    assert ended.returncode == NOT_CONFINED
    assert said in ended.stderr
    assert not ended.stdout


def test_without_a_sandbox_nothing_is_tried(tmp_path: Path) -> None:
    assert tried_first(UNCONFINED, Room.make(tmp_path), _MODULE) == (_MODULE, ())


def test_outside_of_a_sandbox_they_get_out_and_what_is_skipped_is_not_tried(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    targets = Targets(secret_file=str(secret))
    assert first_breach(targets, 0, 0) == f"the sandbox does not hold: the probe of files could read {secret}"
    every = tuple(Protection)
    assert first_breach(Targets(secret_file=str(secret), skipped=every), 0, 0) is None


def test_probes_that_break_show_nothing_and_so_the_module_does_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["quick_probes", "no JSON", "0", "0", _MODULE])
    with pytest.raises(SystemExit) as ended:
        quick_probes.main()
    assert ended.value.code == NOT_CONFINED
    assert "the sandbox could not be tried: JSONDecodeError" in capsys.readouterr().err


# What runs in a sandbox lets no figures of coverage out. These are the same probes in this process, of a system that
# each test makes up.


def number_of(namespace: str) -> int:
    return Path(f"/proc/self/ns/{namespace}").stat().st_ino


def all_but(tried: Protection, secret_file: str = "", decoy_pid: int = 0) -> Targets:
    """Return what is there to be tried, so that one protection is."""
    skipped = tuple(one for one in Protection if one is not tried)
    return Targets(secret_file=secret_file, decoy_pid=decoy_pid, skipped=skipped)


@pytest.fixture
def way_out(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Have a network in which this is the answer to each try to connect: an error, or None."""
    answers: list[object] = [None]

    class Udp(socket.socket):
        def connect(self, address: object) -> None:
            assert address == ("192.0.2.1", 9)
            if isinstance(answers[0], OSError):
                raise answers[0]

    monkeypatch.setattr(socket, "socket", Udp)
    return answers


class TestNetwork:
    def test_a_socket_in_the_agents_own_network_is_a_way_out(self, way_out: list[object]) -> None:
        way_out[0] = OSError(errno.ENETUNREACH, "no route")
        assert first_breach(all_but(Protection.NETWORK), number_of("net"), 0) == (
            "the sandbox does not hold: the probe of network could open a socket in the machine's own network, "
            "loopback included"
        )

    def test_so_is_a_route_in_another_network(self, way_out: list[object]) -> None:
        breach = first_breach(all_but(Protection.NETWORK), 0, 0)
        assert breach is not None
        assert breach.endswith("could find a route out of this machine")
        way_out[0] = OSError(errno.ENETUNREACH, "no route")
        assert first_breach(all_but(Protection.NETWORK), 0, 0) is None

    def test_where_there_are_no_sockets_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_arguments: object) -> None:
            raise PermissionError

        monkeypatch.setattr(socket, "socket", refused)
        assert first_breach(all_but(Protection.NETWORK), number_of("net"), 0) is None


class TestProcesses:
    def test_an_agent_that_is_seen_can_be_signalled(self) -> None:
        targets = all_but(Protection.PROCESSES, decoy_pid=os.getpid())
        assert first_breach(targets, 0, number_of("pid")) == (
            "the sandbox does not hold: the probe of processes could signal the agent"
        )

    def test_or_be_looked_into_by_who_may_not_signal_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_arguments: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "kill", refused)
        breach = first_breach(all_but(Protection.PROCESSES, decoy_pid=os.getpid()), 0, number_of("pid"))
        assert breach is not None
        assert breach.endswith("could read the agent's variables")

    def test_its_number_in_other_namespaces_is_not_the_agent(self) -> None:
        assert first_breach(all_but(Protection.PROCESSES, decoy_pid=os.getpid()), 0, 0) is None

    def test_one_that_is_not_there_cannot_be_reached(self) -> None:
        gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
        gone.wait()
        assert first_breach(all_but(Protection.PROCESSES, decoy_pid=gone.pid), 0, number_of("pid")) is None


class TestSystemCalls:
    @staticmethod
    def answer(monkeypatch: pytest.MonkeyPatch, **errors: int) -> None:
        """Have the system's calls fail with these errors, or succeed where it is 0."""

        def call(error: int) -> int:
            ctypes.set_errno(error)
            return -1 if error else 0

        calls = {name: lambda *_arguments, error=error: call(error) for name, error in errors.items()}
        monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: SimpleNamespace(**calls))

    def test_what_the_filter_refuses_gets_nowhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer(monkeypatch, ptrace=errno.EPERM, mount=errno.ENOSYS, unshare=errno.EPERM)
        assert first_breach(all_but(Protection.SYSTEM_CALLS), 0, 0) is None

    @pytest.mark.parametrize(
        ("errors", "call"),
        [
            ({"ptrace": errno.ESRCH, "mount": errno.EPERM, "unshare": errno.EPERM}, "ptrace"),
            ({"ptrace": errno.EPERM, "mount": errno.EFAULT, "unshare": errno.EPERM}, "mount"),
            ({"ptrace": errno.EPERM, "mount": errno.EPERM, "unshare": 0}, "unshare"),
        ],
    )
    def test_any_other_answer_is_the_kernels_own(
        self, errors: dict[str, int], call: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.answer(monkeypatch, **errors)
        assert first_breach(all_but(Protection.SYSTEM_CALLS), 0, 0) == (
            f"the sandbox does not hold: the probe of system_calls could call {call}"
        )


class TestMain:
    @staticmethod
    def run(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
        """Return which modules ran, each with the arguments that it saw."""
        ran: list[tuple[str, list[str]]] = []
        monkeypatch.setattr("sys.argv", ["quick_probes", in_words(targets), "0", "0", _MODULE, "first", "second"])
        monkeypatch.setattr(
            quick_probes.runpy, "run_module", lambda module, **_how: ran.append((module, list(sys.argv[1:])))
        )
        quick_probes.main()
        return ran

    def test_where_all_holds_the_process_becomes_the_module(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nothing = Targets(skipped=tuple(Protection))
        assert self.run(nothing, monkeypatch) == [(_MODULE, ["first", "second"])]

    def test_what_gets_out_is_said_and_nothing_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_text("x")
        monkeypatch.setattr(quick_probes.runpy, "run_module", None)  # whoever calls it fails
        with pytest.raises(SystemExit) as ended:
            self.run(all_but(Protection.FILES, secret_file=str(secret)), monkeypatch)
        assert ended.value.code == NOT_CONFINED
        assert capsys.readouterr().err == f"the sandbox does not hold: the probe of files could read {secret}\n"
