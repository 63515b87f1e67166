"""Code that ends its executor: how, and what it was doing, is told of real executors."""

import pytest

from farm_client.agent.errors import ExecutorDied
from farm_client.agent.executors.executor import Executor
from farm_client.agent.executors.orders import TaskFiles
from farm_client.executor.process import Launch
from tests.farm_client.agent.executors.test_bundle import zipped
from tests.farm_client.agent.scripted_farm import ScriptedFarm

__all__ = ["zipped"]

CODE = """
import ctypes, os, sys
from torch import nn
{importing}
def build_model(config):
    {building}
    return nn.Linear(1, 1)
def loss(model, batch):
    return model(batch["x"]).sum()
"""
SEGFAULT = "ctypes.string_at(0)"


@pytest.mark.parametrize(
    ("importing", "building", "code", "words"),
    [
        (SEGFAULT, "", "killed", "SIGSEGV while it was importing the task's code"),
        ("", SEGFAULT, "killed", "SIGSEGV while it was building the model"),
        ("os._exit(3)", "", "exited", "code 3 while it was importing the task's code"),
        ("", "os.closerange(0, 200); os._exit(4)", "exited", "code 4 while it was building the model"),
        ("", "sys.stdout = sys.stderr = None; os.abort()", "killed", "SIGABRT while it was building the model"),
    ],
)
async def test_the_death_is_told_with_its_cause_and_what_it_was_doing(
    tmp_path, zipped, importing, building, code, words
):
    (tmp_path / "scratch").mkdir()
    bundle = zipped(("train.py", CODE.format(importing=importing, building=building or "pass")))
    executor = await Executor.start(Launch(scratch_root=tmp_path / "scratch", cpu_cores=1))
    try:
        with pytest.raises(ExecutorDied) as died:
            await executor.load(ScriptedFarm().task(), TaskFiles(bundle))
    finally:
        executor.kill()
        await executor.closed()
    assert died.value.death.code == code
    assert words in died.value.message
