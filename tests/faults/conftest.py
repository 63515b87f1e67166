"""One farm of real processes for all named faults: each test breaks it in its own way, and it is mended after each.

``steady`` is a client that no test breaks unless it says so. Clients that a test breaks are its own (``Scene.join``):
no test inherits what the farm has come to think of another test's client.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from benchmarks.mortal_farm import MortalFarm, mortal_farm
from benchmarks.regression import (
    Regression,
    prepare_regression,
    pull_weights,
    relative_difference,
    submit_prepared,
    unbalanced,
)
from farm_client.cli.localfarm import CLIENT_MODULE, SERVER_MODULE
from farm_client.sdk.outcome import is_over
from farm_client.sdk.submission import Prepared
from protocol.rest import TaskView
from tests.injection.plan import FAULTS_VARIABLE, SPENT_VARIABLE

Weights = dict[str, np.ndarray]
STEADY: Final = "client-1"
TASK: Final = Regression(rounds=6, round_samples=32, batch_samples=4, batch_seconds=0.04, rounds_per_epoch=3)
"""Eight batches a round, a third of a second on one client."""
TOLERANCE: Final = 1e-9
FINISH_SECONDS: Final = 45.0
"""For a loaded machine; a quiet one takes a tenth."""
_numbers = itertools.count(1)


@dataclass
class Scene:
    """A test's view of the farm."""

    farm: MortalFarm
    prepared: Prepared
    undisturbed: Weights
    folder: Path
    own_clients: list[str] = field(default_factory=list)
    server_is_changed: bool = False
    """Whether the server was started with what no other test wants."""

    def join(self, faults: str = "", join_url: str = "", tags: str = "", *, wait: bool = True) -> str:
        """Start a client of the test's own, with a plan of faults that happen once in all its lives."""
        name = f"mortal-{next(_numbers)}"
        self.own_clients.append(name)
        module = "tests.injection.client" if faults else CLIENT_MODULE
        self.farm.start_client(name, {**self.planned(faults), "FARM_CLIENT_TAGS": tags}, join_url, module)
        if wait:
            self.farm.wait_online(name)
        return name

    def planned(self, faults: str) -> dict[str, str]:
        """Return the environment that plans these faults."""
        return {FAULTS_VARIABLE: faults, SPENT_VARIABLE: str(self.folder / "spent")} if faults else {}

    def happened(self) -> set[str]:
        """Return the names of the planned faults that happened."""
        spent = self.folder / "spent"
        return {path.name for path in spent.iterdir()} if spent.exists() else set()

    def restart_server(self, faults: str = "", **environ: str) -> float:
        """SIGKILL the server and start it again, with other faults or settings; return the seconds to its start."""
        self.farm.kill(self.farm.server)
        environ = {**self.planned(faults), **environ}
        self.server_is_changed = bool(environ)
        return self.farm.start_server(environ, "tests.injection.server" if faults else SERVER_MODULE)

    def submit(self, **changes: Any) -> str:
        """Submit the regression task, changed as in ``submit_prepared``."""
        return submit_prepared(self.farm.api, self.prepared, f"task-{next(_numbers)}", **changes)

    def view(self, task_id: str) -> TaskView:
        """Return the task as people see it."""
        return self.farm.api.task(task_id).task

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = FINISH_SECONDS) -> Any:
        """Wait through restarts of the server until the condition holds, and return its value."""
        return self.farm.wait_for(condition, what, seconds)

    def wait_state(self, task_id: str, *states: str, seconds: float = FINISH_SECONDS) -> None:
        """Wait until the task is in one of these states."""
        self.wait(lambda: self.view(task_id).state in states, f"{task_id} is {' or '.join(states)}", seconds)

    def wait_in_round(self, task_id: str, number: int) -> None:
        """Wait until somebody works on this round."""
        self.wait(lambda: self._works_on(task_id, number), f"round {number} of {task_id} is worked on")

    def keep_alive(self, task_id: str) -> None:
        """Start again whatever dies, as a supervisor does, until the task is over."""

        def is_done() -> bool:
            self.farm.revive()
            return is_over(self.view(task_id))

        self.wait(is_done, f"{task_id} ends")

    def check_finished(self, task_id: str, rounds: int = TASK.rounds, *, is_exact: bool = True) -> None:
        """Wait for the end: completed, each sample counted once, and the weights those of the undisturbed run."""
        self.wait(lambda: is_over(self.view(task_id)), f"{task_id} ends ({self.farm.ask(lambda: self.why(task_id))})")
        view = self.view(task_id)
        assert view.state == "completed", view.error
        assert unbalanced(self.farm.api.shards(task_id), rounds * TASK.round_samples) == []
        weights = pull_weights(self.farm.api, task_id, self.folder)
        assert all(np.isfinite(tensor).all() for tensor in weights.values())
        if is_exact:
            assert relative_difference(weights, self.undisturbed) < TOLERANCE

    def why(self, task_id: str) -> str:
        """Return what the farm says that the task waits for."""
        return self.farm.api.why(task_id)

    def events(self, task_id: str, kind: str = "") -> list[str]:
        """Return the messages of the task's events, of one kind if one is given."""
        return [e.message for e in self.farm.api.events(task_id, limit=1000) if kind in ("", e.kind)]

    def _works_on(self, task_id: str, number: int) -> bool:
        view = self.view(task_id)
        return view.round >= number and view.clients > 0


@pytest.fixture(scope="package")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalFarm]:
    """Give the farm that all tests of this package share."""
    with mortal_farm(tmp_path_factory.mktemp("farm"), 1) as farm:
        yield farm


@pytest.fixture(scope="package")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Give the regression task, checked and packed once."""
    return prepare_regression(TASK, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="package")
def undisturbed(mortal: MortalFarm, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Give the weights of the run that nobody disturbed."""
    task_id = submit_prepared(mortal.api, prepared, "undisturbed")
    mortal.wait_for(lambda: mortal.api.task(task_id).task.state == "completed", "the undisturbed run completes")
    assert unbalanced(mortal.api.shards(task_id), TASK.samples) == []
    return pull_weights(mortal.api, task_id, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def scene(mortal: MortalFarm, prepared: Prepared, undisturbed: Weights, tmp_path: Path) -> Iterator[Scene]:
    """Give the whole farm, and mend it after the test: no task that still runs, no client but the steady one."""
    scene = Scene(mortal, prepared, undisturbed, tmp_path)
    yield scene
    for name in scene.own_clients:
        if name in mortal.clients:
            mortal.dismiss(name)
    if scene.server_is_changed:
        scene.restart_server()
    mortal.revive()
    for task in mortal.wait_for(mortal.api.tasks, "the server answers"):
        if not is_over(task):
            mortal.api.act(task.task_id, "cancel")
    mortal.wait_online(STEADY)
