"""What an executor tries before it is one: with a protection taken away it never runs, and says which is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from farm_client.sandbox import quick_probes
from farm_client.sandbox.confinement import UNCONFINED
from farm_client.sandbox.lifeline import NOT_CONFINED
from farm_client.sandbox.protection import Protection
from farm_client.sandbox.quick_probes import first_breach, tried_first
from farm_client.sandbox.room import Room
from farm_client.sandbox.targets import Targets
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
