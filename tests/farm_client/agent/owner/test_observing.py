"""Looks at the machine: each only if the policy asks, cheap for once a second, and None where nothing is told."""

import os
from types import SimpleNamespace

import psutil
import pytest

from farm_client.agent.owner import observing
from farm_client.agent.owner.observing import MachineWatch, input_idle_seconds, on_battery, process_names
from farm_client.agent.owner.policy import OwnerPolicy
from farm_client.agent.owner.reasons import Observations

IDLE = OwnerPolicy(only_idle=True, on_battery=True)


def test_what_the_policy_does_not_ask_about_is_not_looked_at():
    def looked(*_):
        raise AssertionError("nobody asked")

    watch = MachineWatch(cpu_times=looked, names=looked)
    assert watch.look(OwnerPolicy(on_battery=True)) == Observations()


def test_the_load_of_others_is_averaged_over_some_seconds():
    times = iter([(100.0, 10.0), (104.0, 14.0), (108.0, 14.0), (108.0, 14.0), None])
    watch = MachineWatch(cpu_times=lambda: next(times))
    assert watch.look(IDLE).others_load is None
    assert watch.look(IDLE).others_load == 1.0
    assert watch.look(IDLE).others_load == pytest.approx(0.9)
    assert watch.look(IDLE).others_load == pytest.approx(0.9)  # no time has passed
    assert watch.look(IDLE).others_load == pytest.approx(0.9)


def test_what_runs_at_a_lower_priority_is_not_of_others(monkeypatch):
    shares = {"user": 3.0, "nice": 5.0, "idle": 2.0}
    times = psutil.cpu_times()._replace(**{name: shares.get(name, 0.0) for name in psutil.cpu_times()._fields})
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    assert observing.processor_seconds() == (10.0, 3.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=3.0, system=1.0))
    assert observing.processor_seconds() is None


def test_programs_are_known_by_name_whatever_the_case_and_system():
    watch = MachineWatch(names=lambda: ["Game.EXE", "bash"])
    seen = watch.look(OwnerPolicy(pause_while=("game", "Bash", "other"), on_battery=True))
    assert seen.programs == ("game", "Bash")


def test_a_slow_look_at_all_processes_is_followed_by_a_long_rest():
    now, looks = [0.0], []

    def names():
        now[0] += 0.01
        looks.append(now[0])
        return ["game"] if len(looks) > 1 else []

    watch = MachineWatch(clock=lambda: now[0], names=names)
    policy = OwnerPolicy(pause_while=("game",), on_battery=True)
    assert watch.look(policy).programs == ()
    now[0] += 1
    assert watch.look(policy).programs == ()
    now[0] += 3.1
    assert watch.look(policy).programs == ("game",)
    assert len(looks) == 2
    watch.look(policy.changed({"pause_while": ["game", "chess"]}))  # a new name is looked for at once
    assert len(looks) == 3


def test_this_very_process_is_among_the_names():
    assert psutil.Process().name() in process_names()


@pytest.mark.parametrize(
    ("battery", "told"),
    [
        (None, None),
        (SimpleNamespace(power_plugged=None), None),
        (SimpleNamespace(power_plugged=True), False),
        (SimpleNamespace(power_plugged=False), True),
    ],
)
def test_a_battery_that_is_not_there_forbids_nothing(monkeypatch, battery, told):
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert on_battery() is told
    assert MachineWatch().look(OwnerPolicy()).on_battery is told


def test_a_system_without_sensors_forbids_nothing(monkeypatch):
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert on_battery() is None


def test_the_last_input_is_that_of_the_terminal_used_last(tmp_path):
    (tmp_path / "pts").mkdir()
    for name, accessed in {"pts/0": 100.0, "pts/1": 160.0, "tty1": 20.0, "null": 199.0}.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (accessed, 0.0))
    assert input_idle_seconds(tmp_path, 200.0) == 40.0
    assert input_idle_seconds(tmp_path, 100.0) == 0.0


def test_without_a_terminal_nothing_is_told(tmp_path):
    assert input_idle_seconds(tmp_path) is None
    (tmp_path / "tty1").symlink_to(tmp_path / "gone")
    assert input_idle_seconds(tmp_path) is None
