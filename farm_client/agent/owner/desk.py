"""What a running agent does at its owner's word: the verbs of the control socket, over narrow parts of the agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from farm_client.agent.errors import BadControlRequest
from farm_client.agent.owner.control import Verb
from farm_client.agent.owner.keeper import PolicyKeeper
from farm_client.agent.owner.policy import OwnerPolicy
from protocol.frozen import Frozen

_MOST_PAUSE_SECONDS: Final = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class OwnerDesk:
    """Takes the owner's orders. A verb's answer is what it changed, as it is in force."""

    keeper: PolicyKeeper
    status: Callable[[], Mapping[str, Any]]
    """What the agent does now, as JSON takes it."""
    events_after: Callable[[int], Sequence[Frozen]]
    """What it said since the event of a number, oldest first."""
    finish: Callable[[], None]
    """Has it end when what it holds is done."""

    def verbs(self) -> dict[str, Verb]:
        """Return what the socket serves, by name."""
        return {
            "status": lambda _request: self.status(),
            "policy": lambda _request: as_data(self.keeper.policy),
            "set": self._set,
            "pause": self._pause,
            "resume": lambda _request: as_data(self.keeper.resume()),
            "finish": self._finish,
            "logs": self._logs,
        }

    def _set(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        changes = request.get("changes")
        if not isinstance(changes, dict):
            raise BadControlRequest("`set` needs `changes`: an object of fields of the policy")
        return as_data(self.keeper.change(changes))

    def _pause(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        seconds = request.get("seconds")
        if seconds is not None and not (_is_number(seconds) and 0 < seconds <= _MOST_PAUSE_SECONDS):
            raise BadControlRequest(
                "`pause` takes `seconds` above 0, a year at most; without any it lasts till `resume`"
            )
        return as_data(self.keeper.pause(seconds))

    def _finish(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.finish()
        return {"finishing": True}

    def _logs(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        after = request.get("after", 0)
        if not _is_number(after):
            raise BadControlRequest("`logs` takes `after`: the number of the last line that is known")
        return {"events": [event.model_dump(mode="json") for event in self.events_after(int(after))]}


def as_data(policy: OwnerPolicy) -> dict[str, Any]:
    """Return a policy as JSON takes it."""
    return policy.model_dump(mode="json")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
