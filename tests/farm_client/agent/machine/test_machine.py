"""What the agent finds out about its machine: devices, memory, deaths."""

import asyncio
import json
import signal
import sys

import pytest

from farm_client.agent.errors import DeviceRefused
from farm_client.agent.machine import probe as probe_module
from farm_client.agent.machine.accelerators import Accelerators
from farm_client.agent.machine.probe import Lending, Probe
from farm_client.agent.machine.selftest import Verdicts, self_test
from farm_client.agent.work.preflight import Standing, refusal
from farm_client.executor.environment import executor_environment
from farm_client.executor.postmortem import explain_death
from protocol.resources import Gpu

GOOD = {"device": "cpu", "name": "CPU", "device_class": "cpu", "gflops": 5.0}
BAD = {"device": "cuda:0", "name": "Old GPU", "device_class": "cuda", "reason": "a matrix product came out wrong"}


def test_only_what_is_lent_is_told(tmp_path):
    lent = Probe(tmp_path, Lending(cpu_cores=1, max_ram_bytes=10**9))
    assert (lent.resources().cpu_cores, lent.resources().ram_bytes) == (1, 10**9)
    assert lent.load().ram_free_bytes < 10**9
    assert Probe(tmp_path, Lending(cpu_cores=10**6)).resources().cpu_cores == probe_module.usable_cores()


def test_a_containers_limit_is_the_machines_memory(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(probe_module, "_CGROUP", tmp_path)
    assert probe_module.memory_limit_bytes() == 1_000_000
    assert probe_module.free_memory_bytes() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert probe_module.memory_limit_bytes() > 1_000_000


@pytest.mark.parametrize(
    ("free_bytes", "gpu_free_bytes", "room"),
    [(8000, None, True), (1999, None, False), (8000, 50, True), (8000, 49, False)],
)
def test_another_task_stays_warm_only_where_memory_is_plenty(tmp_path, monkeypatch, free_bytes, gpu_free_bytes, room):
    monkeypatch.setattr(probe_module, "memory_limit_bytes", lambda: 8000)
    monkeypatch.setattr(probe_module, "free_memory_bytes", lambda: free_bytes)
    probe = Probe(tmp_path)
    gpus = (
        () if gpu_free_bytes is None else (Gpu(index=0, name="G", memory_bytes=100, memory_free_bytes=gpu_free_bytes),)
    )
    monkeypatch.setattr(Accelerators, "sample", lambda _: gpus)
    assert probe.has_room_for(1000) is room


def test_a_machine_without_a_driver_has_no_gpu():
    accelerators = Accelerators()
    if accelerators.driver:
        pytest.skip("this machine has a driver")
    assert (accelerators.sample(), accelerators.visible) == ((), "")
    accelerators.close()


async def test_a_pass_is_remembered(tmp_path, passed_self_test):
    verdicts = await self_test(Probe(tmp_path), passed_self_test, ("/nonexistent",))
    assert verdicts.passed[0].device == "cpu"
    assert verdicts.bench_gflops > 0


def command_printing(output):
    return (sys.executable, "-c", f"print({output!r})")


async def test_another_machine_is_tested_anew(tmp_path):
    remembered = tmp_path / "self-test.json"
    remembered.write_text(json.dumps({"torch_version": "1", "devices": [GOOD], "key": "another machine"}))
    output = json.dumps({"torch_version": "2", "devices": [GOOD]})
    verdicts = await self_test(Probe(tmp_path), remembered, command_printing(output))
    assert verdicts.torch_version == "2"
    assert "another machine" not in remembered.read_text()


async def test_agents_that_share_the_file_test_their_machine_once(tmp_path):
    output = json.dumps({"torch_version": "2", "devices": [GOOD]})
    counting = f"open({str(tmp_path / 'runs')!r}, 'a').write('x'); print({output!r})"
    tests = [self_test(Probe(tmp_path), tmp_path / "shared.json", (sys.executable, "-c", counting)) for _ in range(3)]
    first, *others = await asyncio.gather(*tests)
    assert others == [first, first]
    assert (tmp_path / "runs").read_text() == "x"


async def test_a_device_that_computes_wrongly_is_refused_and_tested_again_next_time(tmp_path):
    output = json.dumps({"torch_version": "2", "devices": [GOOD, BAD]})
    verdicts = await self_test(Probe(tmp_path), tmp_path / "remembered", command_printing(output))
    assert [verdict.name for verdict in verdicts.refused] == ["Old GPU"]
    assert verdicts.gpu_indices == frozenset()
    assert not (tmp_path / "remembered").exists()


async def test_a_machine_without_a_good_device_is_refused(tmp_path):
    output = json.dumps({"torch_version": "2", "devices": [BAD]})
    with pytest.raises(DeviceRefused, match="Old GPU: a matrix product"):
        await self_test(Probe(tmp_path), tmp_path / "remembered", command_printing(output))


async def test_a_self_test_that_cannot_run_says_why(tmp_path):
    command = (sys.executable, "-c", "import no_such_torch")
    with pytest.raises(DeviceRefused, match=r"no_such_torch.*pip install"):
        await self_test(Probe(tmp_path), tmp_path / "remembered", command)


@pytest.mark.parametrize(
    ("exit_code", "oom", "broke", "code", "words"),
    [
        (-signal.SIGKILL, True, None, "out_of_memory", "memory ran out"),
        (-signal.SIGKILL, False, None, "killed", "SIGKILL"),
        (-signal.SIGSEGV, True, None, "killed", "SIGSEGV"),
        (3, False, None, "exited", "code 3"),
        (-signal.SIGKILL, True, "nonsense", "bad_report", "nonsense"),
        (-99, False, None, "killed", "signal 99"),
    ],
)
def test_a_death_is_explained(exit_code, oom, broke, code, words):
    death = explain_death(exit_code, oom, broke)
    assert death.code == code
    assert words in death.message


def test_the_environment_is_an_allow_list(tmp_path):
    inherited = {"PATH": "/bin", "LC_ALL": "C", "FARM_CLIENT_TOKEN": "x", "SSH_AUTH_SOCK": "x", "HOME": "/home/me"}
    environment = executor_environment(tmp_path, 3, inherited)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path)
    assert set(environment) & set(inherited) == {"PATH", "LC_ALL", "HOME"}


def test_memory_is_no_question_where_the_task_has_its_executor(farm_assign):
    assert refusal(farm_assign(2**40), Standing(free_slots=1, ram_free_bytes=None)) is None
    assert refusal(farm_assign(2**40), Standing(free_slots=1, ram_free_bytes=2**41)) is None
    assert "1.0 GiB are free" in refusal(farm_assign(2**40), Standing(free_slots=1, ram_free_bytes=2**30)).message


@pytest.fixture
def farm_assign():
    from tests.farm_client.agent.scripted_farm import ScriptedFarm

    farm = ScriptedFarm()
    return lambda needed: farm.assign(farm.task(needed_ram_bytes=needed))


def test_accelerators_that_are_not_nvidias_are_lent_as_the_self_test_found_them(tmp_path):
    cards = [
        {"device": f"cuda:{n}", "name": f"Radeon {n}", "device_class": "rocm", "memory_bytes": 9000} for n in range(3)
    ]
    cards[1]["reason"] = "a matrix product came out wrong"
    verdicts = Verdicts.model_validate({"torch_version": "2", "devices": [GOOD, *cards]})
    assert verdicts.gpu_indices == frozenset()
    probe = Probe(tmp_path)
    if probe.accelerators.driver:
        pytest.skip("this machine has a driver")
    assert (probe.resources().device_class, probe.accelerators.visible) == ("cpu", "")
    probe.accelerators.adopt(*verdicts.others)
    assert [(gpu.index, gpu.name, gpu.memory_bytes) for gpu in probe.resources().gpus] == [
        (0, "Radeon 0", 9000),
        (2, "Radeon 2", 9000),
    ]
    assert (probe.resources().device_class, probe.accelerators.visible) == ("rocm", "0,2")
    probe.accelerators.grant({2})
    assert probe.accelerators.visible == "2"
    probe.accelerators.grant(())
    assert (probe.resources().device_class, probe.resources().gpus) == ("cpu", ())


def test_apples_accelerator_has_no_number(tmp_path):
    apple = {"device": "mps", "name": "Apple GPU", "device_class": "mps", "memory_bytes": 5000}
    gpus, device_class = Verdicts.model_validate({"torch_version": "2", "devices": [GOOD, apple]}).others
    assert [(gpu.index, gpu.memory_free_bytes) for gpu in gpus] == [(0, 5000)]
    assert device_class == "mps"
    assert Verdicts.model_validate({"torch_version": "2", "devices": [GOOD]}).others == ((), "cpu")
