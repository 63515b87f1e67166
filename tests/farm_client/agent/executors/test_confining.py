"""Which sandbox an agent uses: the best that holds and its owner takes; none only where the owner said so."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from farm_client.agent.errors import NoSandbox
from farm_client.agent.executors import confining
from farm_client.agent.executors.confining import choose_sandbox, task_policy
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.machine.probe import Lending, Probe
from farm_client.agent.settings import load_settings
from farm_client.sandbox import ladder
from farm_client.sandbox.probes import VERSION, Breach
from farm_client.sandbox.prove import Proof
from protocol.sandbox import Rung, Sandbox

GIB = 1024**3


@pytest.fixture
def said():
    return []


@pytest.fixture
def choose(tmp_path, said):
    home = HomeFolder(tmp_path / "home")
    home.scratch_dir.mkdir(parents=True)

    async def choose(**given):
        settings = load_settings(home=home.root, **given)
        return await choose_sandbox(home, Probe(home.root), settings, "farm_client.executor", said.append)

    return choose


@pytest.fixture
def proofs(monkeypatch):
    """What each rung's proof comes to, in the place of a real one."""
    found = {}

    async def prove(confinement, _parent, _environment):
        return found.get(confinement.rung, Proof(confinement.rung, problem="not here"))

    monkeypatch.setattr(ladder, "prove", prove)
    return found


def holding(rung):
    return Proof(rung, probes=VERSION)


async def test_the_best_rung_of_this_machine_is_used_and_told(choose, said):
    choice = await choose()
    assert choice.confinement.rung is Rung.STRICT
    assert choice.sandbox == Sandbox(rung=Rung.STRICT, probes=VERSION)
    assert said[0].startswith("sandbox strict: holds (escape probes")


async def test_the_next_rung_is_tried_and_the_line_says_which_probe_got_out(choose, proofs, said):
    proofs[Rung.STRICT] = Proof(Rung.STRICT, (Breach("files", "read /home/me/secret"), Breach("ipc", "x")), probes=1)
    proofs[Rung.LANDLOCK] = holding(Rung.LANDLOCK)
    choice = await choose()
    assert (choice.confinement.rung, choice.sandbox.rung) == (Rung.LANDLOCK, Rung.LANDLOCK)
    assert said[0] == "sandbox strict: refused: the probe of files could read /home/me/secret, and 1 more"


async def test_below_the_owner_s_least_no_work_is_taken(choose, proofs):
    proofs[Rung.LANDLOCK] = holding(Rung.LANDLOCK)
    with pytest.raises(NoSandbox, match=r"strict: not available: not here.*apt install bubblewrap.*--for NAME"):
        await choose(sandbox="strict")


async def test_where_none_holds_the_owner_s_word_is_needed(choose, proofs, said):
    with pytest.raises(NoSandbox):
        await choose()
    choice = await choose(allow_unsandboxed=True, work_for=("alice",))
    assert (choice.confinement.rung, choice.sandbox) == (Rung.NONE, Sandbox(rung=Rung.NONE))
    assert said[-1].startswith("NO SANDBOX")
    assert not proofs


async def test_the_owner_s_word_does_not_take_a_sandbox_away(choose, proofs):
    proofs[Rung.STRICT] = holding(Rung.STRICT)
    choice = await choose(allow_unsandboxed=True, work_for=("alice",))
    assert choice.confinement.rung is Rung.STRICT


async def test_none_is_tried_where_the_owner_wants_none(choose, monkeypatch, said):
    monkeypatch.setattr(ladder, "prove", None)
    choice = await choose(sandbox="none", allow_unsandboxed=True, work_for=("alice",))
    assert choice.sandbox.proven is Rung.NONE
    assert len(said) == 1


async def test_another_system_has_no_rung_and_says_so(choose, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NoSandbox, match="on darwin yet"):
        await choose()


async def test_a_home_that_python_needs_to_see_is_refused(tmp_path, said):
    home = HomeFolder(tmp_path / "home")
    home.scratch_dir.mkdir(parents=True)

    def lies_in_it(*_):
        raise confining.SandboxUnavailable("it lies in Python's folder; --home")

    patched = pytest.MonkeyPatch()
    patched.setattr(confining, "interpreter_view", lies_in_it)
    try:
        with pytest.raises(NoSandbox, match="lies in Python's folder"):
            await choose_sandbox(home, Probe(home.root), load_settings(home=home.root), "farm_client", said.append)
    finally:
        patched.undo()


def test_memory_is_bound_by_what_is_lent(tmp_path):
    home = HomeFolder(tmp_path)
    policy = task_policy(home, Probe(tmp_path, Lending(max_ram_bytes=3 * GIB)), "farm_client.executor")
    assert (policy.bounds.memory_bytes, policy.bounds.counts_memory) == (3 * GIB, True)
    assert policy.bounds.scratch_bytes >= GIB
    assert policy.secrets == (tmp_path,)


def test_with_a_gpu_memory_is_only_measured(tmp_path):
    probe = Probe(tmp_path)
    probe.accelerators = SimpleNamespace(device_nodes=(tmp_path / "nvidia0",))
    policy = task_policy(HomeFolder(tmp_path), probe, "farm_client.executor")
    assert policy.view.devices == (tmp_path / "nvidia0",)
    assert not policy.bounds.counts_memory
