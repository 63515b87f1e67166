"""Pause, resume, cancel and retry on real processes, in the midst of a step that is longer than the promise.

The clients' steps take seconds each: what stops within two has been stopped in mid-step, not waited for.
"""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from benchmarks.regression import TASK as TASK_CODE
from benchmarks.regression import Regression, prepare_regression, pull_weights, relative_difference, submit_prepared
from farm_client.sdk.submission import Prepared
from protocol.limits import INLINE_BYTES
from protocol.recipe import Requirements
from tests.faults.conftest import TOLERANCE, Scene, Weights

pytestmark = pytest.mark.slow

TAKES_EFFECT_SECONDS = 2.0
"""The promise, from the request on. On a quiet machine it is a tenth of it."""
STEP_SECONDS = 3.0
TAG = "controlled"
SMALL = Regression(rounds=2, round_samples=8, batch_samples=4, rounds_per_epoch=2, min_clients=2)
"""One batch for each of two clients in each round."""
LARGE = Regression(rounds=2, round_samples=8, batch_samples=4, rounds_per_epoch=2, min_clients=2, features=20_000)
"""Weights and updates are files, on both sides."""
SWITCHED_OFF = """

from pathlib import Path

sound_loss, calls = loss, []


def loss(model, batch):
    calls.append(len(batch))
    if len(calls) > 1 and Path({switch}).exists():
        raise ValueError("the switch is off")
    return sound_loss(model, batch)
"""
"""Fails from its process's second batch on, while a file is there."""


@dataclass(frozen=True)
class Busy:
    """An executor that has the task's code, and the folder that is its own."""

    process: psutil.Process
    scratch: Path

    @property
    def is_gone(self) -> bool:
        return not self.process.is_running() and not self.scratch.exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_regression(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture
def pair(scene: Scene) -> tuple[str, str]:
    """Two clients of the test's own, which alone may do its tasks: all of their executors with code are the task's."""
    first, second = (scene.join(tags=TAG, wait=False) for _ in range(2))
    scene.farm.wait_online(first, second)
    return first, second


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    """Have clients that join now show tasks the files of this machine; named before ``pair``, which joins them."""
    monkeypatch.setenv("FARM_CLIENT_SANDBOX", "none")


def submit(scene: Scene, prepared: Prepared, name: str, batch_seconds: float = STEP_SECONDS) -> str:
    requirements = Requirements(tags=(TAG,))
    return submit_prepared(scene.farm.api, prepared, name, batch_seconds, requirements)


def wait_in_mid_step(scene: Scene, task_id: str, number: int, pair: tuple[str, str]) -> list[Busy]:
    """Wait until both clients compute for this round; return their executors."""
    scene.wait_in_round(task_id, number)
    scene.wait(lambda: scene.why(task_id).count("computing") == 2, "both clients compute")
    processes = [process for name in pair for process in scene.farm.busy_executors_of(name)]
    assert len(processes) == 2
    return [Busy(process, Path(process.cwd()).parent) for process in processes]  # in its code


def act_and_time(scene: Scene, task_id: str, action: str, executors: list[Busy]) -> float:
    """Ask for it, and return the seconds from the request until all of these executors are gone."""
    asked_at = time.monotonic()
    scene.farm.api.act(task_id, action)
    scene.wait(lambda: all(executor.is_gone for executor in executors), "the task's executors are gone")
    took = time.monotonic() - asked_at
    print(f"{action} took effect after {took:.2f} s")
    return took


def reference(scene: Scene, prepared: Prepared, name: str) -> Weights:
    """Return the weights of a run that nobody disturbs; a fast one: time changes no digit."""
    task_id = submit(scene, prepared, name, batch_seconds=0.0)
    scene.wait_state(task_id, "completed")
    return pull_weights(scene.farm.api, task_id, scene.folder)


def check_same(scene: Scene, task_id: str, expected: Weights) -> None:
    """See that each round was committed once, and that the weights are those of the undisturbed run."""
    scene.wait_state(task_id, "completed", "failed")
    assert scene.view(task_id).state == "completed", scene.view(task_id).error
    assert len(scene.events(task_id, "round_committed")) == SMALL.rounds
    assert relative_difference(pull_weights(scene.farm.api, task_id, scene.folder), expected) < TOLERANCE


def test_a_pause_stops_a_step_at_once_and_a_resume_goes_on_from_its_round(
    scene: Scene, small: Prepared, pair: tuple[str, str]
) -> None:
    expected = reference(scene, small, "pause-reference")
    task_id = submit(scene, small, "paused")
    executors = wait_in_mid_step(scene, task_id, 1, pair)
    kept = scene.farm.api.checkpoints(task_id)

    assert act_and_time(scene, task_id, "pause", executors) < TAKES_EFFECT_SECONDS
    assert scene.view(task_id).state == "paused"
    assert scene.farm.api.checkpoints(task_id) == kept
    assert kept[-1].round == scene.view(task_id).round == 1

    scene.farm.api.act(task_id, "resume")
    assert scene.view(task_id).round == 1
    check_same(scene, task_id, expected)


def test_a_cancel_in_mid_step_leaves_nothing(
    scene: Scene, pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One client has delivered an update that is a file, and waits; the other one is in a step that never ends."""
    large = prepare_regression(LARGE, tmp_path_factory.mktemp("large"))
    assert large.spec.initial_weights.size_bytes > INLINE_BYTES
    task_id = submit(scene, large, "cancelled")
    before = files_in(scene.farm.data_dir)
    executors = wait_in_mid_step(scene, task_id, 0, pair)
    executors[1].process.suspend()
    scene.wait(lambda: "1 of 2 parts delivered" in scene.why(task_id), "one client delivers")
    assert waiting_results(scene, pair[0]), "it keeps its update until a round contains it"

    took = act_and_time(scene, task_id, "cancel", executors)
    asked_at = time.monotonic() - took
    scene.wait(lambda: not any(waiting_results(scene, name) for name in pair), "the outboxes are empty")
    scene.wait(lambda: not left_over(scene, task_id, before), f"gone are {left_over(scene, task_id, before)}")
    assert time.monotonic() - asked_at < TAKES_EFFECT_SECONDS
    assert scene.view(task_id).state == "cancelled"


@pytest.mark.usefixtures("unconfined")
def test_a_failed_task_is_retried_from_its_checkpoint(
    scene: Scene, pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The researcher's code fails on both clients, as where a file server is away; then it works again."""
    folder = tmp_path_factory.mktemp("switched")
    switch, code = folder / "off", folder / "train.py"
    code.write_text(TASK_CODE.read_text() + SWITCHED_OFF.format(switch=json.dumps(str(switch))))
    prepared = each_version_kept(prepare_regression(SMALL, folder / "prepared", code))
    expected = reference(scene, prepared, "retry-reference")

    switch.touch()
    task_id = submit(scene, prepared, "retried", batch_seconds=0.0)
    scene.wait_state(task_id, "failed", "completed")
    failed = scene.view(task_id)
    assert (failed.state, failed.round) == ("failed", 1)
    assert "the switch is off" in (failed.error or "")

    switch.unlink()
    scene.farm.api.act(task_id, "retry")
    check_same(scene, task_id, expected)
    assert scene.view(task_id).error is None


def each_version_kept(prepared: Prepared) -> Prepared:
    """Have each version durable before the next round opens: else a failure may undo the one that is being written."""
    recipe = prepared.spec.recipe.model_copy(update={"keep_every": 1})
    return replace(prepared, spec=prepared.spec.model_copy(update={"recipe": recipe}))


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def waiting_results(scene: Scene, name: str) -> set[Path]:
    """Return the files of the client's outbox."""
    return files_in(scene.farm.folder / name / "outbox")


def left_over(scene: Scene, task_id: str, before: set[Path]) -> set[Path]:
    """Return what is new in the server's folder and neither the ledger nor named by it: updates, temporary files."""
    new = files_in(scene.farm.data_dir) - before
    named = checkpoint_digests(scene, task_id)
    return {path for path in new if not path.name.startswith("farm.db") and path.name not in named}


def checkpoint_digests(scene: Scene, task_id: str) -> set[str]:
    with closing(sqlite3.connect(f"file:{scene.farm.data_dir / 'farm.db'}?mode=ro", uri=True)) as ledger:
        query = "SELECT weights_digest, optimizer_digest, manifest_digest FROM checkpoints WHERE task_id = ?"
        return {digest for row in ledger.execute(query, (task_id,)) for digest in row if digest}
