"""The keeper: what is set is on the disk and in force at once, and each change of the reasons is told once."""

import asyncio

import pytest

from farm_client.agent.errors import BadSettings
from farm_client.agent.owner import keeper as module
from farm_client.agent.owner.keeper import PolicyKeeper
from farm_client.agent.owner.policy import load_policy
from farm_client.agent.owner.reasons import MOST_FAILURES, RETRY_SECONDS, Observations, Reason


class Machine:
    def __init__(self, path):
        self.now = 1_700_000_000.0
        self.seen = Observations()
        self.told = []
        self.keeper = PolicyKeeper(path, lambda _policy: self.seen, lambda: self.now)
        self.keeper.on_change = lambda rests: self.told.append([rest.reason for rest in rests])


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "policy.json")


def test_a_change_is_on_the_disk_and_in_force(machine, tmp_path):
    machine.keeper.pause()
    assert load_policy(tmp_path / "policy.json").paused
    assert machine.told == [[Reason.PAUSED]]
    machine.keeper.resume()
    assert not load_policy(tmp_path / "policy.json").paused
    assert machine.told == [[Reason.PAUSED], []]


def test_a_pause_with_a_clock_ends_by_itself(machine):
    machine.keeper.pause(7200)
    machine.now += 7199
    machine.keeper.evaluate()
    assert machine.told == [[Reason.PAUSED]]
    machine.now += 1
    machine.keeper.evaluate()
    assert machine.told == [[Reason.PAUSED], []]


def test_what_is_observed_is_told_when_it_changes_and_once(machine):
    machine.keeper.evaluate()
    machine.seen = Observations(on_battery=True)
    machine.keeper.evaluate()
    machine.keeper.evaluate()
    machine.seen = Observations(on_battery=False)
    machine.keeper.evaluate()
    assert machine.told == [[Reason.BATTERY], []]


def test_a_wrong_change_leaves_all_as_it_was(machine, tmp_path):
    with pytest.raises(BadSettings):
        machine.keeper.change({"hours": "never"})
    assert not (tmp_path / "policy.json").exists()
    assert machine.told == []


def test_a_full_disk_leaves_all_as_it_was(machine, monkeypatch):
    def full(_path, _policy):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_policy", full)
    with pytest.raises(OSError, match="No space"):
        machine.keeper.pause()
    assert (machine.keeper.policy.paused, machine.told) == (False, [])


def test_without_a_sandbox_it_must_be_said_whose_tasks_run(machine):
    machine.keeper.change({"work_for": ["alice"]})
    machine.keeper.must_name_submitters = True
    with pytest.raises(BadSettings, match="without a sandbox"):
        machine.keeper.change({"work_for": []})
    assert machine.keeper.change({"work_for": ["bob"]}).work_for == ("bob",)


def test_failures_in_a_row_pause_until_the_owner_resumes(machine):
    for _ in range(MOST_FAILURES - 1):
        machine.keeper.failed("no memory")
    machine.keeper.worked()
    assert machine.told == []
    for _ in range(MOST_FAILURES):
        machine.keeper.failed("no memory")
    assert machine.told == [[Reason.FAILURES]]
    machine.keeper.resume()
    assert machine.told == [[Reason.FAILURES], []]
    machine.keeper.failed("no memory")
    assert machine.told[2:] == [], "they count anew"


def test_after_an_hour_it_tries_again_and_one_more_failure_pauses_it_again(machine):
    for _ in range(MOST_FAILURES):
        machine.keeper.failed("no memory")
    machine.now += RETRY_SECONDS
    machine.keeper.evaluate()
    assert machine.told == [[Reason.FAILURES], []]
    machine.keeper.failed("no memory")
    assert machine.told[2:] == [[Reason.FAILURES]]
    machine.now += RETRY_SECONDS
    machine.keeper.worked()
    machine.keeper.failed("no memory")
    assert machine.told[2:] == [[Reason.FAILURES], []]


def test_whom_it_works_for_is_told_when_that_changes_and_only_then(machine):
    changes = []
    machine.keeper.on_choice = lambda: changes.append(machine.keeper.policy.work_for)
    machine.keeper.change({"work_for": ["alice"]})
    machine.keeper.change({"only_idle": True})
    machine.keeper.change({"work_for": []})
    assert changes == [("alice",), ()]


@pytest.mark.parametrize("choice", [{"kinds": ["train"]}, {"topics": ["science"]}, {"not_topics": ["ads"]}])
def test_a_choice_of_work_is_told_when_it_changes(machine, choice):
    changes = []
    machine.keeper.on_choice = lambda: changes.append(machine.keeper.policy.wanted)
    machine.keeper.change(choice)
    machine.keeper.change(choice)
    assert changes == [machine.keeper.policy.wanted]


async def test_a_look_that_fails_is_told_once_and_the_next_one_counts(machine, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    looks, faults, changed = [], [], asyncio.Event()

    def look(_policy):
        looks.append(1)
        if len(looks) < 4:
            raise RuntimeError("no such sensor")
        return Observations(on_battery=True)

    keeper = PolicyKeeper(machine.keeper._path, look, lambda: machine.now)
    keeper.on_fault = lambda _text, error: faults.append(repr(error))
    keeper.on_change = lambda _rests: changed.set()
    watching = asyncio.create_task(keeper.watch())
    async with asyncio.timeout(10):
        await changed.wait()
    watching.cancel()
    assert faults == ["RuntimeError('no such sensor')"]


async def test_it_looks_again_by_itself(machine, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    changed = asyncio.Event()
    machine.keeper.on_change = lambda _rests: changed.set()
    watching = asyncio.create_task(machine.keeper.watch())
    machine.seen = Observations(on_battery=True)
    async with asyncio.timeout(10):
        await changed.wait()
    watching.cancel()
