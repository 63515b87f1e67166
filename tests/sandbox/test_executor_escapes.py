"""Hostile code in real executors: what it says beyond the protocol, prints or returns, and what is told of it."""

from __future__ import annotations

import pytest

from farm_client.agent.errors import ExecutorDied, ExecutorFailed
from farm_client.agent.executors.orders import TaskFiles
from protocol.sandbox import Rung
from tests.farm_client.agent.executors.test_bundle import zipped
from tests.farm_client.agent.executors.test_confined import executor_on
from tests.farm_client.agent.scripted_farm import ScriptedFarm

__all__ = ["zipped"]

SOCKET = """
import os, socket, stat, struct, sys
from contextlib import suppress
from protocol.framing import pack_frame
for number in range(3, 64):
    with suppress(OSError):
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            agent = socket.socket(fileno=os.dup(number))
            break
"""
DIED = {
    "garbage to the agent": (SOCKET + "agent.sendall(b'\\xff' * 4096)\nimport time; time.sleep(60)", "cannot be read"),
    "a frame of 4 GiB": (
        SOCKET + "agent.sendall(b'\\xff\\xff\\xff\\xff')\nimport time; time.sleep(60)",
        "cannot be read",
    ),
    "a report that there is none of": (
        SOCKET + "agent.sendall(pack_frame({'type': 'free_money'}))\nimport time; time.sleep(60)",
        "cannot be read",
    ),
    "an end without a word": ("import os; os._exit(0)", "code 0"),
    "the executor's own exit": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
}
FAILED = {
    "reports of other assignments": (
        SOCKET
        + "done = {'type': 'done', 'assignment_id': 'other', 'samples': 9, 'metrics': {}, 'update': b'poison'}\n"
        + "agent.sendall(pack_frame(done) * 100)\nraise RuntimeError('and goes on')",
        "and goes on",
    ),
    "a flood of output": ("print('x' * 50_000_000)\nraise RuntimeError('after the flood')", "after the flood"),
    "no output at all": ("import sys; sys.stdout = sys.stderr = None\nraise RuntimeError('mute')", "mute"),
    "another torch": ("import torch; torch.save = torch.Tensor.add = None\nraise RuntimeError('broken')", "broken"),
    "a pickle that runs code": (
        "import os, pickle\n"
        "class Evil:\n    def __reduce__(self):\n        return os.listdir, ('/root/.ssh',)\n"
        "pickle.loads(pickle.dumps(Evil()))",
        "/root/.ssh",
    ),
}


@pytest.mark.parametrize("name", DIED)
async def test_an_executor_that_breaks_the_rules_is_ended_and_says_which(tmp_path, zipped, name):
    code, words = DIED[name]
    async with executor_on(Rung.STRICT, tmp_path) as executor:
        with pytest.raises(ExecutorDied) as died:
            await executor.load(ScriptedFarm().task(), TaskFiles(zipped(("train.py", code))))
    assert words in died.value.message


@pytest.mark.parametrize("name", FAILED)
async def test_what_is_no_answer_is_ignored_and_its_failure_is_told(tmp_path, zipped, name):
    code, words = FAILED[name]
    async with executor_on(Rung.STRICT, tmp_path) as executor:
        with pytest.raises(ExecutorFailed) as failed:
            await executor.load(ScriptedFarm().task(), TaskFiles(zipped(("train.py", code))))
        assert executor.is_warm, "it can be told the next thing"
    assert words in failed.value.report.message
