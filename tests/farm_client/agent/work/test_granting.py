"""The owner's limits, in force on a running agent as soon as they are set."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from farm_client.agent import daemon, owner_commands
from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.cli import app
from farm_client.agent.errors import BadSettings
from farm_client.agent.machine.accelerators import Accelerators
from farm_client.agent.machine.probe import Lending, usable_cores
from farm_client.agent.owner.limits import OwnerLimits
from farm_client.agent.owner.policy import OwnerPolicy, save_policy
from farm_client.agent.owner_limit_options import limits_given
from farm_client.agent.settings import load_settings
from farm_client.agent.work.granting import Grants, lent
from farm_client.sandbox.cgroups import ExecutorGroup
from farm_client.sandbox.policy import Bounds, Caps
from protocol.assignments import Progress, Reject, Result
from protocol.messages import Error, Heartbeat, Pause
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import until

GIB = 2**30


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> list[Grants]:
    """The grants of the agents that are started."""
    made: list[Grants] = []
    begin = Grants.__post_init__

    def note(self: Grants) -> None:
        made.append(self)
        begin(self)

    monkeypatch.setattr(Grants, "__post_init__", note)
    return made


async def set_limits(home: Path, *words: str) -> dict[str, Any]:
    done = await asyncio.to_thread(CliRunner().invoke, app, ["set", *words, "--home", str(home), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["data"]["policy"]


async def test_each_limit_is_in_force_when_set_returns_and_status_shows_it(farm, start_agent, home, caught) -> None:
    async with start_agent(max_ram="8GiB", upload_rate="3MB", cache_bytes="4GiB"):
        await joined(farm)
        (grants,) = caught
        words = "--cpu 50% --duty 60% --max-ram 2GiB --cache-bytes 1GiB --scratch-bytes 3GiB --upload-rate 1MB"
        await set_limits(home, *words.split(), "--download-rate", "2MB", "--daily-quota", "5GB")
        cores = usable_cores()
        assert grants.throttle.duty == pytest.approx(0.6 if cores % 2 == 0 else 0.6 * cores / (cores + 1))
        assert (grants.probe.lending.max_ram_bytes, grants.cache.stats().max_bytes) == (2 * GIB, GIB)
        assert (grants.pool.caps.memory_bytes, grants.pool.caps.scratch_bytes) == (2 * GIB, 3 * GIB)
        assert grants.transfers.rates() == (1e6, 2e6)
        assert grants.probe.resources().ram_bytes <= 2 * GIB
        done = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--home", str(home)])
        assert "limits: processor at most 50%, works 60% of the time, memory at most 2.0 GiB" in done.stdout
        assert "moved today 0 B of 4.7 GiB" in done.stdout
        assert "link down not measured (limited by you to 1.9 MiB/s)" in done.stdout
        options = [word for word in words.split() if word.startswith("--")]
        back = [word for option in (*options, "--download-rate", "--daily-quota") for word in (option, "none")]
        policy = await set_limits(home, *back)
        assert OwnerPolicy(**policy) == OwnerPolicy(work_for=policy["work_for"])
        assert (grants.throttle.duty, grants.probe.lending) == (1.0, Lending(cores, 8 * GIB))
        assert (grants.cache.stats().max_bytes, grants.transfers.rates()) == (4 * GIB, (3e6, None))


async def test_an_executor_over_a_new_bound_is_ended_and_reported_as_that(farm, start_agent, home, tmp_path) -> None:
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        await until((tmp_path / "pid").exists)
        await set_limits(home, "--max-ram", "1MiB")
        assert "may use 1.0 MiB" in (await peer.expect(Error)).message


async def test_a_quota_that_is_used_up_pauses_until_midnight_over_restarts(farm, start_agent, home) -> None:
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)
        await set_limits(home, "--daily-quota", "20B")
        assert (await peer.expect(Pause)).reason.startswith("quota: ")
    async with start_agent():
        peer = await joined(farm)
        reason = (await peer.expect(Pause)).reason
        assert "moved today, of 20 B that may: until 00:00" in reason
        await peer.send(farm.assign(farm.task()))
        assert (await peer.expect(Reject)).code == "paused"


async def test_a_gpu_is_taken_back_in_mid_step_and_the_assignment_begins_again(
    farm, start_agent, home, caught, tmp_path, monkeypatch
) -> None:
    lent = ["0,1"]
    monkeypatch.setattr(Accelerators, "visible", property(lambda _: lent[0]))
    monkeypatch.setattr(owner_commands, "refuse_unknown_gpus", lambda _numbers: None)  # there are none here
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        await until(lambda: environment_of(tmp_path / "pid").get("CUDA_VISIBLE_DEVICES") == "0,1")
        first = (tmp_path / "pid").read_text()
        lent[0] = "1"
        await set_limits(home, "--gpus", "1", "--vram", "50%")
        await until(lambda: (tmp_path / "pid").read_text() not in ("", first))
        environment = environment_of(tmp_path / "pid")
        assert (environment["CUDA_VISIBLE_DEVICES"], environment["AIFARM_VRAM_SHARE"]) == ("1", "0.5")
        assert not psutil.pid_exists(int(first))
        lines = [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs]
        assert not any(isinstance(message, Error) for message in peer.log), lines


def environment_of(pid_file: Path) -> dict[str, str]:
    """Return the environment of the process that wrote its id there; nothing before."""
    if not pid_file.exists() or not (pid := pid_file.read_text()):
        return {}
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


async def test_a_hot_card_slows_all_down_until_it_has_cooled(farm, start_agent, home, caught, monkeypatch) -> None:
    celsius = {0: 60.0, 1: 90.0}
    monkeypatch.setattr(Accelerators, "temperatures", lambda _: celsius)
    async with start_agent():
        await joined(farm)
        (grants,) = caught
        grants.regulate()
        assert grants.throttle.duty == 1.0  # nobody wants a temperature held
        await set_limits(home, "--gpu-temperature", "75C", "--duty", "50%", "--gpu-power", "200W")
        grants.regulate()
        assert grants.throttle.duty == pytest.approx(0.4)
        assert grants.in_words()["slowed down"] == "to 80% for the temperature"
        assert grants.in_words()["GPU power"] == "at most 200 W each"
        grants.power.refused = (0,)
        assert grants.in_words()["GPU power"] == "not limited: only root may"
        celsius[1] = 70.0
        for _ in range(4):
            grants.regulate()
        assert grants.throttle.duty == pytest.approx(0.5)
        celsius[1] = 90.0
        grants.regulate()
        await set_limits(home, "--gpu-temperature", "none")
        assert grants.throttle.duty == 0.5


async def test_what_was_set_before_holds_from_the_start(farm, start_agent, home, caught) -> None:
    save_policy(home / "policy.json", OwnerPolicy(max_ram_bytes=GIB, upload_rate=1000))
    async with start_agent():
        peer = await joined(farm)
        assert caught[0].transfers.rates() == (1000, None)
        assert (await peer.expect(Heartbeat)).load.ram_free_bytes < GIB


def test_the_lesser_is_lent() -> None:
    joined_with = load_settings(cpu_cores=1, max_ram="2GiB")
    assert lent(joined_with, OwnerLimits(max_ram_bytes=GIB)) == Lending(1, GIB)
    assert lent(joined_with, OwnerLimits(max_ram_bytes=3 * GIB, cpu_share=1.0)) == Lending(1, 2 * GIB)
    assert lent(load_settings(), OwnerLimits()) == Lending(usable_cores(), None)


def test_caps_only_make_bounds_narrower() -> None:
    assert Caps().within(Bounds(memory_bytes=5)) == Bounds(memory_bytes=5)
    assert Caps(9, 9).within(Bounds(memory_bytes=5)) == Bounds(memory_bytes=5, scratch_bytes=9)
    assert Caps(memory_bytes=3).within(Bounds(memory_bytes=5, scratch_bytes=1)) == Bounds(
        memory_bytes=3, scratch_bytes=1
    )


def test_a_smaller_cache_evicts_at_once_what_nobody_uses(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000)
    for number in range(5):
        cache.reserve(f"{number}" * 64, 10).write_bytes(b"x" * 10)
        cache.adopt(f"{number}" * 64, 10)
    with cache.pinned(("0" * 64, "1" * 64)):
        cache.resize(15)
        assert set(cache.digests(9)) == {"0" * 64, "1" * 64}
    cache.resize(15)
    assert len(cache.digests(9)) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cpu_share", "half", "--cpu: write a share"),
        ("upload_rate", "fast", "--upload-rate: write a size"),
        ("gpus", "first", "--gpus: write the GPUs' numbers"),
        ("power_watts", "much", "--gpu-power: write it as 70W"),
    ],
)
def test_what_cannot_be_read_names_its_option(name: str, text: str, words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        limits_given({name: text, "duty": None})


@pytest.mark.parametrize(
    ("words", "value"),
    [("2, 0,0", (0, 2)), ("all", None), ("none", ()), ("7", (7,))],
)
def test_gpus_are_named_by_their_numbers(words: str, value: tuple[int, ...] | None) -> None:
    assert limits_given({"gpus": words}) == {"gpus": value}
    assert OwnerLimits(gpus=value).gpus == value
    assert limits_given({"power_watts": "200 w", "target_celsius": "70"}) == {"power_watts": 200, "target_celsius": 70}


class GroupsOfAStandIn:
    """Control groups without a kernel: plain folders, and a process that only says that it entered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, []

    def make(self, bounds: Bounds, cpu_cores: float | None = None) -> ExecutorGroup:
        folder = self.folder / str(len(self.made))
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text("")
        (folder / "cpu.max").write_text("")
        group = ExecutorGroup(folder, shutil.rmtree)
        group.keep_within(bounds, cpu_cores)
        self.made.append(group)
        return group


async def test_with_control_groups_the_kernel_is_told_of_each_change(
    farm, start_agent, home, caught, tmp_path, monkeypatch
) -> None:
    groups = GroupsOfAStandIn(tmp_path / "groups")
    monkeypatch.setattr(daemon, "find_delegation", lambda: groups)
    async with start_agent():
        peer = await joined(farm)
        await set_limits(home, "--cpu", "25%")
        assert caught[0].throttle.duty == 1.0
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        await until((tmp_path / "pid").exists)
        quota = f"{round(25_000 * usable_cores())} 100000"
        await until(lambda: any((g.folder / "cpu.max").read_text() == quota for g in groups.made))
        (group,) = (g for g in groups.made if (g.folder / "cgroup.procs").exists())
        await set_limits(home, "--max-ram", "2GiB", "--cpu", "none")
        await until(lambda: (group.folder / "memory.max").read_text() == str(2 * GIB))
        assert (group.folder / "cpu.max").read_text() == "max 100000"
        (group.folder / "memory.events").write_text("oom 1\noom_kill 4\n")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        assert "all its processes together ran out of memory, and may use 2.0 GiB" in (await peer.expect(Error)).message
    assert not list((tmp_path / "groups").iterdir())
