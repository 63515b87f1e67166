"""Clients that come, go, freeze and are replaced in the middle of a round, as named scenarios on real processes."""

from __future__ import annotations

import signal
import time
from urllib.parse import urlsplit

import pytest

from benchmarks.regression import Regression, prepare_regression, submit_prepared, unbalanced
from farm_client.sdk.submission import Prepared
from protocol.limits import INLINE_BYTES
from tests.chaos.proxy import FaultProxy
from tests.faults.conftest import STEADY, Scene

pytestmark = pytest.mark.slow

LARGE = Regression(rounds=2, round_samples=16, batch_samples=8, rounds_per_epoch=1, features=20_000, min_clients=2)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Give a task whose weights and updates are too large for a message."""
    prepared = prepare_regression(LARGE, tmp_path_factory.mktemp("large"))
    assert prepared.spec.initial_weights.size_bytes > INLINE_BYTES
    return prepared


def through(scene: Scene, proxy: FaultProxy) -> str:
    """Return the join address with the proxy's port in the server's place."""
    return scene.farm.join_url.replace(f":{urlsplit(scene.farm.join_url).port}", f":{proxy.port}")


def test_a_client_that_joins_during_a_round_takes_part_in_the_next(scene: Scene) -> None:
    task_id = scene.submit(rounds=1000, batch_seconds=0.1)
    scene.wait_in_round(task_id, 0)
    scene.join()

    def clients_of_rounds() -> dict[int, int]:
        return {r.number: r.clients for r in scene.farm.api.task(task_id).rounds}

    # it takes work once its first executor is warm, on a loaded machine many rounds later
    scene.wait(lambda: max(clients_of_rounds().values()) == 2, "the new client takes part")
    assert min(clients_of_rounds().values()) == 1


def test_a_replaced_client_s_round_is_finished_by_others(scene: Scene) -> None:
    victim = scene.join()
    task_id = scene.submit(min_clients=2, batch_seconds=0.1)
    scene.wait_in_round(task_id, 2)
    scene.farm.kill(scene.farm.clients[victim])
    scene.join(wait=False)
    scene.check_finished(task_id)


def test_everyone_leaves_and_comes_back(scene: Scene) -> None:
    own = scene.join()
    task_id = scene.submit(min_clients=2)
    scene.wait_in_round(task_id, 2)
    for name in (own, STEADY):
        scene.farm.kill(scene.farm.clients[name])
    scene.wait_state(task_id, "pending")
    assert "client" in scene.why(task_id)
    assert scene.farm.revive() == [STEADY, own]
    scene.check_finished(task_id)


def test_a_client_that_restarts_quicker_than_it_is_noticed(scene: Scene) -> None:
    """The new process is there while the server still acts on the old one's death, under the same identity."""
    victim = scene.join()
    task_id = scene.submit(min_clients=2, batch_seconds=0.1)
    scene.wait_in_round(task_id, 2)
    before = next(c.incarnation for c in scene.farm.api.clients() if c.name == victim)
    scene.farm.kill(scene.farm.clients[victim])
    scene.farm.start_client(victim)
    scene.check_finished(task_id)
    assert next(c.incarnation for c in scene.farm.api.clients() if c.name == victim) > before


def test_a_client_that_beats_without_progress_is_found_out(scene: Scene) -> None:
    """Only the executor is frozen: the agent goes on beating, and its lease must end nevertheless."""
    scene.restart_server(FARM_SERVER_STALL_SECONDS="3")
    victim = scene.join()
    scene.farm.wait_online(STEADY)
    task_id = scene.submit(min_clients=2, batch_seconds=0.1)
    scene.wait_in_round(task_id, 2)
    frozen = scene.farm.executors_of(victim)
    for executor in frozen:
        executor.suspend()
    frozen_at = time.monotonic()
    try:
        scene.wait(lambda: scene.view(task_id).round >= 3, "the round ends without the frozen executor", 25)
        assert time.monotonic() - frozen_at < 20
    finally:
        for executor in frozen:
            if executor.is_running():
                executor.resume()
    scene.check_finished(task_id)


def test_a_frozen_client_that_wakes_late_is_not_counted_twice(scene: Scene) -> None:
    victim = scene.join()
    task_id = scene.submit(batch_seconds=0.1)
    scene.wait(lambda: scene.view(task_id).clients == 2, "both clients work")
    client = scene.farm.clients[victim]
    client.process.send_signal(signal.SIGSTOP)
    try:
        scene.wait(lambda: not scene.farm.is_online(victim), "the silent client is lost", 20)
    finally:
        client.process.send_signal(signal.SIGCONT)
    scene.check_finished(task_id)


def test_a_download_whose_source_dies_half_way_goes_on(scene: Scene, large: Prepared) -> None:
    """The weights are over the size that rides inside a message, so they come by HTTP, through a proxy that resets."""
    with FaultProxy(("127.0.0.1", scene.farm.port)) as proxy:
        name = scene.join(join_url=through(scene, proxy))
        proxy.reset_after(large.spec.initial_weights.size_bytes // 2)
        task_id = submit_prepared(scene.farm.api, large, name)
        scene.wait(lambda: proxy.resets == 1, "the download is cut")
        scene.wait_state(task_id, "completed")
        assert scene.view(task_id).retries == 0
        assert unbalanced(scene.farm.api.shards(task_id), LARGE.samples) == []
        scene.farm.dismiss(name)
