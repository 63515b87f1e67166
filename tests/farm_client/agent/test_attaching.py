"""A second join of a home shows the agent that runs there, or says why not."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from farm_client.agent import attaching
from farm_client.agent.attaching import asked_farm, show_running
from farm_client.agent.errors import BadAddress, HomeInUse, NoControlSocket
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.reporting.screens import StatusView
from farm_client.agent.reporting.status import Status, StatusBoard

FARM = "ws://farm:8470"
Answer = Status | Exception | Callable[[], Status]


@pytest.fixture
def home(tmp_path: Path) -> HomeFolder:
    return HomeFolder(tmp_path / "home")


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(attaching, "_STEP_SECONDS", 0.001)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the home's agent answer so, one after the other."""

    def answers(*given: Answer) -> None:
        left = list(given)

        def ask(_path: Path, request: Mapping[str, Any]) -> dict[str, Any]:
            assert request == {"do": "status"}
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            status = answer if isinstance(answer, Status) else answer()
            return status.model_dump(mode="json")

        monkeypatch.setattr(attaching, "ask", ask)

    return answers


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line["data"]["doing"] for line in told if line["kind"] == "client_status"]


def pressed(number: signal.Signals, status: Status) -> Callable[[], Status]:
    def press() -> Status:
        signal.raise_signal(number)
        return status

    return press


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("farm", [FARM, None])
def test_it_is_shown_until_a_signal_and_runs_on(
    home: HomeFolder,
    agent: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    farm: str | None,
    number: signal.Signals,
) -> None:
    with home.held():
        agent(Status(farm=FARM, doing="first"), pressed(number, Status(farm=FARM, doing="second")))
        assert show_running(home, farm, StatusView.JSON)
    assert shown(capsys) == ["first"]


def test_the_agent_of_another_farm_is_not_shown(home: HomeFolder, agent: Callable[..., None]) -> None:
    agent(Status(farm=FARM))
    with home.held(), pytest.raises(HomeInUse, match="works for ws://farm:8470; to work for ws://other"):
        show_running(home, "ws://other", StatusView.JSON)


def test_one_that_starts_is_waited_for(
    home: HomeFolder, agent: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with home.held():
        agent(NoControlSocket(), Status(farm=FARM, doing="first"), pressed(signal.SIGINT, Status()))
        assert show_running(home, FARM, StatusView.JSON)
    assert shown(capsys) == ["first"]


def test_one_that_never_answers_is_refused_with_the_reason(home: HomeFolder, agent: Callable[..., None]) -> None:
    agent(*[NoControlSocket("refused")] * 5)
    with home.held(), pytest.raises(HomeInUse, match=r"does not answer .*refused"):
        show_running(home, None, StatusView.JSON)


@pytest.mark.parametrize(("last", "is_well"), [("stopped", True), ("connected", False)])
def test_when_it_ends_so_does_the_view_and_says_how(
    home: HomeFolder,
    agent: Callable[..., None],
    last: str,
    is_well: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home.root.mkdir()
    StatusBoard(home.status_file).show(connection=last)
    agent(Status(farm=FARM, doing="first"), NoControlSocket())
    assert show_running(home, FARM, StatusView.JSON) is is_well
    agent(NoControlSocket())
    assert show_running(home, FARM, StatusView.JSON) is is_well


def test_which_farm_is_asked_for() -> None:
    assert asked_farm("ws://token@farm:8470", {}) == FARM
    assert asked_farm(None, {"FARM_JOIN_URL": "ws://token@farm:8470"}) == FARM
    assert asked_farm(None, {}) is None
    with pytest.raises(BadAddress):
        asked_farm("farm", {})
