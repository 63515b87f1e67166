"""The server dies under tasks in every state, and a second one wants its folder: nothing is lost or done twice."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from protocol.recipe import Requirements
from tests.faults.conftest import STEADY, Scene

pytestmark = pytest.mark.slow

RESUME_SECONDS = 5.0
"""The promise: a task that ran works on within so long of the server's start."""


def pending(scene: Scene) -> str:
    """A task that no client may serve: it waits, and says for what."""
    return scene.submit(requirements=Requirements(tags=("nobody has this",)))


def running(scene: Scene) -> str:
    task_id = scene.submit()
    scene.wait_in_round(task_id, 2)
    return task_id


def pausing(scene: Scene) -> str:
    task_id = running(scene)
    scene.farm.api.act(task_id, "pause")
    return task_id


def queued(scene: Scene) -> str:
    """A task behind another one that has the only client."""
    scene.submit()
    return scene.submit()


def being_cancelled(scene: Scene) -> str:
    task_id = running(scene)
    scene.farm.api.act(task_id, "cancel")
    return task_id


@pytest.mark.parametrize(
    ("prepare", "state"),
    [(pending, "pending"), (pausing, "paused"), (being_cancelled, "cancelled")],
)
def test_a_task_is_what_it_was_after_the_server_was_killed(
    scene: Scene, prepare: Callable[[Scene], str], state: str
) -> None:
    task_id = prepare(scene)
    before = scene.view(task_id)
    scene.restart_server()
    scene.farm.wait_online(STEADY)
    after = scene.view(task_id)
    assert (before.state, after.state) == (state, state)
    assert (after.round, after.samples_done) == (before.round, before.samples_done)
    assert after.clients == 0
    if state == "paused":
        scene.farm.api.act(task_id, "resume")
        scene.check_finished(task_id)


@pytest.mark.parametrize("prepare", [running, queued])
def test_a_task_goes_on_after_the_server_was_killed(scene: Scene, prepare: Callable[[Scene], str]) -> None:
    task_id = prepare(scene)
    rounds = scene.view(task_id).round
    scene.restart_server()
    assert scene.view(task_id).round >= rounds
    scene.check_finished(task_id)


def test_work_resumes_within_five_seconds_of_the_server_s_start(scene: Scene) -> None:
    """The best of three: the promise is the farm's, and a moment's load the machine's."""
    task_id = scene.submit(rounds=1000)
    resumed_after = []
    for _ in range(3):
        committed = scene.view(task_id).round
        scene.wait(lambda: scene.view(task_id).round > committed + 1, "rounds are committed")  # noqa: B023
        scene.restart_server()
        up_at = time.monotonic()
        committed = scene.view(task_id).round
        scene.wait(lambda: scene.view(task_id).round > committed, "the next round is committed")  # noqa: B023
        resumed_after.append(time.monotonic() - up_at)
        if resumed_after[-1] < RESUME_SECONDS:
            return
    pytest.fail(f"work went on {resumed_after} seconds after the server's starts")


def test_work_that_was_finished_while_the_server_was_down_counts_once(scene: Scene) -> None:
    """A round longer than the outage: the client finishes it meanwhile, delivers afterwards, and computes it once."""
    task_id = scene.submit(batch_seconds=0.25)
    scene.wait_in_round(task_id, 1)
    number = scene.view(task_id).round
    scene.farm.kill(scene.farm.server)
    time.sleep(3)  # the outage itself: the assignment takes two seconds
    scene.farm.start_server()
    scene.wait(lambda: scene.view(task_id).round > number, "the round that was open is committed")
    scene.check_finished(task_id)
    assert _times_assigned(scene, task_id, number) == 1


def test_killed_again_and_again_it_still_gets_there(scene: Scene) -> None:
    task_id = scene.submit(batch_seconds=0.1)
    for number in range(4):
        scene.wait_in_round(task_id, number)
        scene.restart_server()
    scene.check_finished(task_id)


def test_a_second_server_on_the_folder_is_refused_and_disturbs_nobody(scene: Scene) -> None:
    task_id = scene.submit()
    scene.wait_in_round(task_id, 1)
    command = [sys.executable, "-m", "farm_server", "up", "--port", "0", "--data-dir", str(scene.farm.data_dir)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert str(scene.farm.server.pid) in second.stderr
    assert scene.farm.server.process.poll() is None
    scene.check_finished(task_id)


def _times_assigned(scene: Scene, task_id: str, number: int) -> int:
    """Return how many assignments the ledger has of a round of one client."""
    with closing(sqlite3.connect(f"file:{scene.farm.data_dir / 'farm.db'}?mode=ro", uri=True)) as ledger:
        query = "SELECT count(*) FROM assignments WHERE task_id = ? AND round = ?"
        return int(ledger.execute(query, (task_id, number)).fetchone()[0])


def test_rounds_in_memory_are_trained_again_after_the_server_was_killed(scene: Scene) -> None:
    """Rounds of milliseconds, of which the disk does not get every one: the end is the undisturbed one."""
    task_id = scene.submit(batch_seconds=0.0)
    scene.wait_in_round(task_id, 1)
    told = scene.view(task_id).round
    scene.restart_server()
    assert scene.view(task_id).round >= told, "nobody was told of what is undone"
    scene.check_finished(task_id)
