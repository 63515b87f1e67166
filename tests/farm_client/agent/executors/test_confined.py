"""Real executors on each rung: hostile code at its import finds nothing, leaves nothing, and dies by its right name."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import torch

from farm_client.agent.errors import ExecutorDied, ExecutorFailed
from farm_client.agent.executors.executor import Executor
from farm_client.agent.executors.orders import TaskFiles
from farm_client.executor import data_loaders, process
from farm_client.executor.process import Launch
from farm_client.sandbox.halting import halt
from farm_client.sandbox.policy import Bounds
from protocol.sandbox import Rung
from tests.farm_client.agent.executors.test_bundle import zipped
from tests.farm_client.agent.scripted_farm import ScriptedFarm
from tests.farm_client.agent.waiting import until
from tests.farm_client.executor.bench_task import Bench, update_of
from tests.farm_client.sandbox.machine import GIB, confinement, policy

__all__ = ["zipped"]

RUNGS = (Rung.STRICT, Rung.LANDLOCK)
TRIES = """
import ctypes, json, os, signal, socket, subprocess, sys
from pathlib import Path
tried = {}
def attempt(name):
    def run(do):
        try:
            tried[name] = "done: " + repr(do())
        except BaseException as error:
            tried[name] = type(error).__name__
    return run
SECRET, AGENT = %(secret)r, %(agent)d
attempt("read the secret")(lambda: Path(SECRET).read_text())
attempt("see it in its folder")(lambda: 1 / ("identity.json" in os.listdir(Path(SECRET).parent)))
attempt("write beside it")(lambda: Path(SECRET).with_name("mine").write_text("x"))
attempt("write to what is given")(lambda: (Path.cwd().parents[1] / "given" / "x").write_text("x"))
attempt("write to its own program")(lambda: Path(__import__("farm_client").__file__).open("a"))
attempt("reach loopback")(lambda: socket.create_connection(("127.0.0.1", 1), timeout=1))
attempt("signal the agent")(lambda: os.kill(AGENT, 0))
attempt("read the agent's memory")(lambda: open(f"/proc/{AGENT}/mem", "rb").read(1))
attempt("read the agent's variables")(lambda: open(f"/proc/{AGENT}/environ", "rb").read(1))
attempt("be traced")(lambda: 1 / (ctypes.CDLL(None, use_errno=True).ptrace(0, 0, 0, 0) + 1))
raise RuntimeError("TRIED " + json.dumps(tried))
"""
DAEMON = """
import os, signal
MARK = %(mark)r
started, starting = os.pipe()  # which closes when the last of them has become another program
for _ in range(3):
    if os.fork() == 0:
        try:
            os.setsid()
        except OSError:
            pass
        if os.fork() == 0:
            os.execv("/bin/sleep", ["sleep", MARK])
        os._exit(0)
os.close(starting)
os.read(started, 1)
raise RuntimeError("and goes")
"""


@asynccontextmanager
async def executor_on(
    rung: Rung, tmp_path: Path, bounds: Bounds | None = None, processes: int = 1
) -> AsyncIterator[Executor]:
    scratch = tmp_path / "home" / "scratch"
    scratch.mkdir(parents=True)
    how = confinement(rung, policy((tmp_path / "home",), bounds))
    executor = await Executor.start(Launch(scratch_root=scratch, cpu_cores=1, processes=processes, confinement=how))
    try:
        yield executor
    finally:
        executor.kill()
        await executor.closed()
    assert not os.listdir(scratch), "its folders are gone"  # noqa: PTH208


@pytest.mark.parametrize("rung", RUNGS)
async def test_code_finds_nothing_of_the_machine(tmp_path, zipped, rung):
    async with executor_on(rung, tmp_path) as executor:
        secret = tmp_path / "home" / "identity.json"
        secret.write_text("secret")
        bundle = zipped(("train.py", TRIES % {"secret": str(secret), "agent": os.getpid()}))
        with pytest.raises(ExecutorFailed) as failed:
            await executor.load(ScriptedFarm().task(), TaskFiles(bundle))
        assert not secret.with_name("mine").exists()
    tried = json.loads(failed.value.report.message.partition("TRIED ")[2])
    assert len(tried) == 10
    if rung is Rung.STRICT:  # it could, on a way of its own to its folders; outside there is nothing, as was seen
        tried.pop("write beside it")
    assert {name: how for name, how in tried.items() if how.startswith("done")} == {}


@pytest.mark.parametrize("rung", RUNGS)
async def test_nothing_that_it_started_outlives_it(tmp_path, zipped, rung):
    mark = f"6{os.getpid()}{rung is Rung.STRICT:d}"
    async with executor_on(rung, tmp_path) as executor:
        bundle = zipped(("train.py", DAEMON % {"mark": mark}))
        with pytest.raises(ExecutorFailed):
            await executor.load(ScriptedFarm().task(), TaskFiles(bundle))
        assert len(sleepers(mark)) == 3
    assert sleepers(mark) == []


def sleepers(mark: str) -> list[int]:
    listed = psutil.process_iter(["cmdline"])
    return [process.pid for process in listed if process.info["cmdline"] == ["sleep", mark]]


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("ctypes.string_at(0)", "killed", "SIGSEGV while it was importing the task's code"),
        ("os._exit(3)", "exited", "code 3 while it was importing the task's code"),
    ],
)
async def test_the_death_is_the_executor_s_and_not_that_of_what_is_around_it(tmp_path, zipped, rung, line, code, words):
    async with executor_on(rung, tmp_path) as executor:
        bundle = zipped(("train.py", f"import ctypes, os\n{line}\n"))
        with pytest.raises(ExecutorDied) as died:
            await executor.load(ScriptedFarm().task(), TaskFiles(bundle))
    assert died.value.death.code == code
    assert words in died.value.message


@pytest.mark.parametrize("rung", RUNGS)
async def test_an_executor_over_a_bound_is_ended_and_says_which(tmp_path, zipped, rung):
    bounds = Bounds(memory_bytes=8 * GIB, scratch_bytes=GIB, scratch_files=300)
    async with executor_on(rung, tmp_path, bounds) as executor:
        code = "import time\nfor n in range(1000):\n    open(f'{n}', 'w').close()\ntime.sleep(600)\n"
        with pytest.raises(ExecutorDied) as died:
            await executor.load(ScriptedFarm().task(), TaskFiles(zipped(("train.py", code))))
    assert died.value.death.code == "over_bound"
    assert "it made over 300 files" in died.value.message


async def test_a_new_bound_on_scratch_files_is_measured_at_once(tmp_path, zipped, monkeypatch):
    monkeypatch.setattr(process, "_SCRATCH_TURNS", 2**40)  # it would not be its turn for years
    async with executor_on(RUNGS[0], tmp_path, Bounds(memory_bytes=8 * GIB, scratch_bytes=GIB)) as executor:
        code = "import time\nopen('large', 'wb').write(bytes(2**22))\nprint('written', flush=True)\ntime.sleep(600)\n"
        written = asyncio.Event()
        executor.on_line = lambda _stream, line: written.set() if line == "written" else None
        loading = asyncio.create_task(executor.load(ScriptedFarm().task(), TaskFiles(zipped(("train.py", code)))))
        await written.wait()
        executor.process._caps.scratch_bytes = 2**20
        with pytest.raises(ExecutorDied) as died:
            await loading
    assert "it wrote over 1.0 MiB of files" in died.value.message


LOADS = """
import torch
from torch.utils.data import DataLoader, TensorDataset
rows = torch.cat([batch for batch, in DataLoader(TensorDataset(torch.arange(8)), batch_size=4, num_workers=2)])
raise RuntimeError(f"LOADED {rows.tolist()}")
"""


async def test_a_data_loader_with_workers_works_where_there_are_no_semaphores(tmp_path, zipped):
    async with executor_on(Rung.LANDLOCK, tmp_path) as executor:
        lines = []
        executor.on_line = lambda _stream, line: lines.append(line)
        with pytest.raises(ExecutorFailed) as failed:
            await executor.load(ScriptedFarm().task(), TaskFiles(zipped(("train.py", LOADS))))
    assert "LOADED [0, 1, 2, 3, 4, 5, 6, 7]" in failed.value.report.message
    assert data_loaders.NOTE in lines


READS = """
import os, tinyone
from pathlib import Path
folder = Path(tinyone.__file__).parent
tries = {"change": lambda: (folder / "tinyone.py").open("a"), "add": lambda: (folder / "two.py").write_text("x")}
tried = {}
for name, do in tries.items():
    try:
        do()
        tried[name] = "done"
    except OSError:
        tried[name] = "refused"
try:
    seen = sorted(os.listdir(folder.parent.parent))
except OSError as error:
    seen = type(error).__name__
raise RuntimeError(f"TRIED {tinyone.VALUE} {tried} {seen}")
"""


@asynccontextmanager
async def executor_with(rung: Rung, home: Path, packages: Path) -> AsyncIterator[Executor]:
    scratch = home / "scratch"
    scratch.mkdir(parents=True)
    launch = Launch(scratch_root=scratch, cpu_cores=1, confinement=confinement(rung, policy((home,))))
    executor = await Executor.start(launch.reading(packages))
    try:
        yield executor
    finally:
        executor.kill()
        await executor.closed()


@pytest.mark.parametrize("rung", RUNGS)
async def test_the_packages_of_its_task_are_read_and_not_changed(tmp_path, zipped, rung):
    environments = tmp_path / "home" / "environments"
    for name in ("a", "b"):
        (environments / name / "packages").mkdir(parents=True)
        (environments / name / "packages" / "tinyone.py").write_text(f"VALUE = {name!r}")
    packages = environments / "a" / "packages"
    async with executor_with(rung, tmp_path / "home", packages) as executor:
        with pytest.raises(ExecutorFailed) as failed:
            await executor.load(ScriptedFarm().task(), TaskFiles(zipped(("train.py", READS)), packages=packages))
    said = failed.value.report.message
    if rung is Rung.STRICT:
        assert "TRIED a {'change': 'refused', 'add': 'refused'} ['a']" in said, "and no other environment is seen"
    else:
        assert "TRIED a {'change': 'refused', 'add': 'refused'} PermissionError" in said, "nor listed"
    assert (packages / "tinyone.py").read_text() == "VALUE = 'a'"
    assert [entry.name for entry in packages.iterdir()] == ["tinyone.py"]


async def test_packages_that_would_be_the_farms_own_are_refused_by_the_executor_too(tmp_path, zipped):
    packages = tmp_path / "home" / "packages"
    packages.mkdir(parents=True)
    (packages / "torch.py").write_text("")
    async with executor_with(Rung.STRICT, tmp_path / "home", packages) as executor:
        with pytest.raises(ExecutorFailed) as failed:
            await executor.load(ScriptedFarm().task(), TaskFiles(zipped(("train.py", "")), packages=packages))
    assert "would take the place of this machine's own torch" in failed.value.report.message


@pytest.mark.parametrize("rung", RUNGS)
async def test_what_computes_is_halted_from_outside_and_ended_while_it_is(rung, tmp_path, zipped):
    """The process that only supervises goes on: it ends the rest when the agent dies."""
    async with executor_on(rung, tmp_path) as executor:
        bundle = zipped(("train.py", "while True:\n    pass\n"))
        loading = asyncio.create_task(executor.load(ScriptedFarm().task(), TaskFiles(bundle)))
        outer = psutil.Process(executor.pid)
        await until(lambda: any(one.cpu_times().user > 0.1 for one in outer.children(recursive=True)))
        inside = outer.children(recursive=True)
        executor.process.halt()
        await until(lambda: {one.status() for one in inside} == {psutil.STATUS_STOPPED})
        assert outer.status() != psutil.STATUS_STOPPED
        executor.process.let_end()
        executor.process.halt()  # not any more: it may keep what it did, however small its share of the time is
        await until(lambda: psutil.STATUS_RUNNING in {one.status() for one in inside})
        assert psutil.STATUS_STOPPED not in {one.status() for one in inside}
        halt(executor.pid, supervised=True)
        executor.kill()
        with pytest.raises(ExecutorDied):
            await loading
        await executor.closed()
        await until(lambda: not any(one.is_running() for one in (outer, *inside)))


TRAINS = """
import torch
from torch import nn

def build_model(config):
    return nn.Linear(3, 2)

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


@pytest.mark.parametrize("rung", RUNGS)
async def test_processes_of_an_executor_share_the_work_in_its_sandbox(tmp_path, zipped, rung):
    bench = Bench(tmp_path / "home" / "bench", TRAINS)
    expected = bench.train()
    async with executor_on(rung, tmp_path, processes=2) as executor:
        task = ScriptedFarm().task().model_copy(update={"seed": bench.load_order().seed, "batch_samples": 8})
        await executor.load(task, TaskFiles(zipped(("train.py", TRAINS))))
        done = await executor.run(bench.run_order())
        assert len(psutil.Process(executor.pid).children(recursive=True)) >= 2
    assert done.samples == expected.samples
    for name, tensor in update_of(expected).items():
        torch.testing.assert_close(update_of(done)[name], tensor, rtol=1e-4, atol=1e-6)
