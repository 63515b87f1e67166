"""The escape probes on this kernel: every rung holds, and each protection that is taken away is missed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from farm_client.sandbox import decoys
from farm_client.sandbox import prove as proving
from farm_client.sandbox.policy import Bounds, SandboxPolicy, VisibleFiles
from farm_client.sandbox.probes import VERSION
from farm_client.sandbox.protection import Protection
from farm_client.sandbox.prove import Proof, prove
from protocol.sandbox import Rung
from tests.farm_client.sandbox.machine import GIB, as_nobody, confinement, environment, policy

RUNGS = (Rung.STRICT, Rung.LANDLOCK)
OF_LANDLOCK = frozenset(
    {Protection.FILES, Protection.CAPABILITIES, Protection.SYSTEM_CALLS, Protection.MEMORY, Protection.FILE_SIZE}
)
"""On that rung one rule set stands for files, devices and processes, and the filter for the network."""
BY_THE_SPAWNER = frozenset({Protection.DESCRIPTORS, Protection.ENVIRONMENT})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


async def proof_without(home: Path, rung: Rung, protection: Protection | None) -> Proof:
    without = frozenset() if protection is None else frozenset({protection})
    return await prove(confinement(rung, policy((home,)), without), home, environment)


@pytest.mark.parametrize("rung", RUNGS)
async def test_every_rung_holds_here(home: Path, rung: Rung) -> None:
    proof = await proof_without(home, rung, None)
    assert (proof.breaches, proof.problem) == ((), "")
    assert (proof.holds, proof.rung, proof.probes) == (True, rung, VERSION)
    assert not os.listdir(home), "a proof leaves nothing behind"  # noqa: PTH208


@pytest.mark.parametrize("protection", sorted(set(Protection) - BY_THE_SPAWNER - {Protection.FORKS}))
async def test_each_protection_that_is_taken_from_the_strict_rung_is_missed(home: Path, protection: Protection) -> None:
    proof = await proof_without(home, Rung.STRICT, protection)
    assert not proof.holds
    if protection is Protection.NEW_NAMESPACES:  # bubblewrap itself looks: the filter of system calls hides it
        assert "user namespaces was not disabled" in proof.problem
    else:
        assert protection in {breach.protection for breach in proof.breaches}


@pytest.mark.parametrize("protection", sorted(OF_LANDLOCK))
async def test_each_protection_that_is_taken_from_landlock_is_missed(home: Path, protection: Protection) -> None:
    if protection is Protection.CAPABILITIES and os.getuid() != 0:
        pytest.skip("an ordinary user has no capability to give up")
    proof = await proof_without(home, Rung.LANDLOCK, protection)
    assert not proof.holds
    assert proof.breaches or proof.problem


@pytest.mark.parametrize("rung", RUNGS)
async def test_processes_over_the_bound_are_missed(home: Path, rung: Rung, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:  # the kernel counts none of root's: who measures sees nothing
        monkeypatch.setattr(proving, "excess", lambda *_: None)
        proof = await proof_without(home, rung, None)
    else:
        proof = await proof_without(home, rung, Protection.FORKS)
    assert {breach.protection for breach in proof.breaches} == {Protection.FORKS}


async def test_memory_that_is_only_measured_is_missed_by_who_does_not_measure(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = Bounds(memory_bytes=8 * GIB, counts_memory=False, scratch_bytes=GIB)
    rung = confinement(Rung.STRICT, policy((home,), bounds))
    assert (await prove(rung, home, environment)).holds
    monkeypatch.setattr(proving, "excess", lambda *_: None)
    proof = await prove(rung, home, environment)
    assert Protection.MEMORY in {breach.protection for breach in proof.breaches}


async def test_a_variable_of_the_agent_that_is_passed_on_is_missed(home: Path) -> None:
    def passes_all(scratch: Path, inherited: Mapping[str, str]) -> Mapping[str, str]:
        return {**inherited, "HOME": str(scratch)}

    proof = await prove(confinement(Rung.STRICT, policy((home,))), home, passes_all)
    assert [breach.protection for breach in proof.breaches] == [Protection.ENVIRONMENT]


@pytest.mark.parametrize("rung", RUNGS)
async def test_a_descriptor_that_is_kept_is_missed(home: Path, rung: Rung) -> None:
    class Leaky:
        def __init__(self) -> None:
            self.inner = confinement(rung, policy((home,)))

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def within(self, bounds: Bounds) -> Leaky:
            self.inner = self.inner.within(bounds)
            return self

        def command(self, room: object, module: str, arguments: tuple[str, ...] = ()) -> list[str]:
            kept = os.open("/etc/hostname", os.O_RDONLY)
            os.set_inheritable(kept, True)
            argv = self.inner.command(room, module, arguments, keep=(7,))  # type: ignore[arg-type]
            return ["sh", "-c", 'exec 7<&0 && exec "$@"', "sh", *argv]

    proof = await prove(Leaky(), home, environment)  # type: ignore[arg-type]
    assert Protection.DESCRIPTORS in {breach.protection for breach in proof.breaches}


class TestFailingClosed:
    @pytest.mark.parametrize(
        ("exit_code", "output"),
        [
            (0, b""),
            (0, b"not json"),
            (0, b"{}"),
            (0, b'{"probes": 0, "breaches": []}'),
            (1, b'{"probes": %d, "breaches": []}' % VERSION),
            (0, b'{"probes": %d, "breaches": [["files", "x"]]}' % VERSION),
            (0, b'{"probes": %d, "breaches": [1]}' % VERSION),
        ],
    )
    def test_what_the_probes_do_not_say_is_a_rung_that_does_not_work(self, exit_code: int, output: bytes) -> None:
        rung = confinement(Rung.LANDLOCK, SandboxPolicy(VisibleFiles()))
        proof = proving._judge(rung, exit_code, output, b"first line\nlast line\n")
        assert not proof.holds
        assert proof.problem == "last line"

    async def test_a_binary_that_is_not_there_or_says_no(self, home: Path, tmp_path: Path) -> None:
        from dataclasses import replace

        rung = confinement(Rung.STRICT, policy((home,)))
        missing = replace(rung, binary=tmp_path / "bwrap")  # type: ignore[type-var]
        assert "No such file" in (await prove(missing, home, environment)).problem
        refusing = tmp_path / "refusing"
        refusing.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
        refusing.chmod(0o755)
        proof = await prove(replace(rung, binary=refusing), home, environment)  # type: ignore[type-var]
        assert proof.in_words() == "strict: not available: bwrap: setting up uid map: Permission denied"

    async def test_probes_that_do_not_end(self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from dataclasses import replace

        hanging = tmp_path / "hanging"
        hanging.write_text("#!/bin/sh\nexec sleep 600\n")
        hanging.chmod(0o755)
        monkeypatch.setattr(proving, "_TIMEOUT_SECONDS", 0.2)
        rung = replace(confinement(Rung.STRICT, policy((home,))), binary=hanging)  # type: ignore[type-var]
        assert "did not end" in (await prove(rung, home, environment)).problem

    async def test_a_breach_that_only_shows_from_outside_counts(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decoys.Decoys, "reached", lambda _: iter(["reach ('127.0.0.1', 1)"]))
        proof = await proof_without(home, Rung.STRICT, None)
        assert not proof.holds
        assert "seen from outside" in proof.in_words()


def test_an_ordinary_user_s_rungs_hold_too(tmp_path: Path) -> None:
    """The same probes as another user, where the tests run as root and that user can read a Python with this code."""
    if os.getuid() != 0:
        pytest.skip("the tests above ran as an ordinary user")
    said, why = as_nobody("tests.farm_client.sandbox.machine", tmp_path)
    if not said:
        pytest.skip(f"no other user can read a Python with this code here: {why}")
    assert said.count(": holds") == len(RUNGS), said + why


async def test_a_file_system_without_sockets_has_none_to_reach(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(decoys, "short_path", refuse)
    assert (await proof_without(home, Rung.STRICT, None)).holds


async def test_two_proofs_at_once_do_not_disturb_each_other(home: Path) -> None:
    proofs = await asyncio.gather(*(proof_without(home, rung, None) for rung in RUNGS))
    assert all(proof.holds for proof in proofs)
