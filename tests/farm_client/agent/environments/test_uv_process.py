"""The process that becomes uv: tied to its agent and out of the volunteer's way before it is, or it never is."""

from __future__ import annotations

from unittest.mock import Mock, call

import pytest

from farm_client.agent.environments import uv_process

UV = ("/opt/uv", "sync", "--frozen")


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Record in order what the process does to itself; none of it is done to this one."""
    did = Mock()
    monkeypatch.setattr("sys.argv", ["uv_process", "4711", *UV])
    for name in ("die_with", "be_a_good_guest"):
        monkeypatch.setattr(uv_process, name, getattr(did, name))
    monkeypatch.setattr(uv_process.os, "execv", did.execv)
    return did


def test_it_is_tied_to_its_agent_and_yields_before_it_becomes_uv(did: Mock) -> None:
    uv_process.main()
    assert did.mock_calls == [call.die_with(4711), call.be_a_good_guest(), call.execv(UV[0], list(UV))]


def test_without_its_agent_it_never_becomes_uv(did: Mock) -> None:
    did.die_with.side_effect = SystemExit("the agent is gone")
    with pytest.raises(SystemExit, match="the agent is gone"):
        uv_process.main()
    did.execv.assert_not_called()
