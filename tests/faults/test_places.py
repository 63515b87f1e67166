"""Each place of the fault vocabulary, in a client, an executor and the server: time is lost there, and nothing else.

One shape serves all: the fault happens in round 2 of a task that two clients train, whoever died is started again,
and the weights are those of the undisturbed run.
"""

from __future__ import annotations

import pytest

from benchmarks.regression import AVERAGING
from tests.faults.conftest import Scene
from tests.injection.plan import Fault, FaultAction, parse_faults

pytestmark = pytest.mark.slow

SECONDS = "1.5"
CLIENT_FAULTS = [
    *((place, FaultAction.KILL) for place in Fault if place.startswith(("executor_", "client_"))),
    (Fault.EXECUTOR_BEFORE, FaultAction.OUT_OF_MEMORY),
    (Fault.EXECUTOR_DURING, FaultAction.SEGFAULT),
    (Fault.EXECUTOR_AFTER, FaultAction.EXIT),
    (Fault.EXECUTOR_SLOW, SECONDS),
    (Fault.CLIENT_SLOW, SECONDS),
    (Fault.CLIENT_WHILE_SENDING, FaultAction.LOSE),
    (Fault.CLIENT_AFTER_SEND, FaultAction.LOSE),
    (Fault.CLIENT_REPLY_LOST, FaultAction.LOSE),
]
SERVER_FAULTS = [
    *((place, FaultAction.KILL) for place in Fault if place.startswith("server_")),
    (Fault.SERVER_SLOW, SECONDS),
    (Fault.SERVER_REPLY_LOST, FaultAction.LOSE),
]


def spent_name(fault: str) -> str:
    return parse_faults(fault).pending[0].name


@pytest.mark.parametrize(("place", "action"), CLIENT_FAULTS)
def test_a_fault_in_a_client_or_its_executor(scene: Scene, place: Fault, action: str) -> None:
    fault = f"{place}@2:{action}"
    scene.join(fault)
    task_id = scene.submit(min_clients=2)
    scene.keep_alive(task_id)
    assert scene.happened() == {spent_name(fault)}
    scene.check_finished(task_id)


@pytest.mark.parametrize(("place", "action"), SERVER_FAULTS)
def test_a_fault_in_the_server(scene: Scene, place: Fault, action: str) -> None:
    fault = f"{place}@2:{action}"
    scene.restart_server(fault)
    scene.join()
    task_id = scene.submit(min_clients=2)
    scene.keep_alive(task_id)
    assert scene.happened() == {spent_name(fault)}
    scene.check_finished(task_id)


@pytest.mark.parametrize("place", [Fault.EXECUTOR_DURING, Fault.CLIENT_AFTER_SEND, Fault.CLIENT_REPLY_LOST])
def test_a_fault_in_a_client_that_trains_weights(scene: Scene, place: Fault) -> None:
    """Who trained what differs from run to run in this mode, and so do the weights; the books must balance."""
    fault = f"{place}@2:kill"
    scene.join(fault)
    task_id = scene.submit(min_clients=2, **AVERAGING)
    scene.keep_alive(task_id)
    assert scene.happened() == {spent_name(fault)}
    scene.check_finished(task_id, is_exact=False)


@pytest.mark.parametrize("place", [Fault.SERVER_WHILE_FOLDING, Fault.SERVER_WHILE_COMMITTING])
def test_a_fault_in_the_server_of_a_task_that_trains_weights(scene: Scene, place: Fault) -> None:
    fault = f"{place}@2:kill"
    scene.restart_server(fault)
    scene.join()
    task_id = scene.submit(min_clients=2, **AVERAGING)
    scene.keep_alive(task_id)
    assert scene.happened() == {spent_name(fault)}
    scene.check_finished(task_id, is_exact=False)
