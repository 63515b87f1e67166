"""A short chaos, so that a change that loses work is seen before it is merged; `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import run_chaos

SECONDS, SEED = 25.0, 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_in_chaos(tmp_path: Path) -> None:
    outcome = run_chaos(tmp_path, SECONDS, SEED, print)
    assert outcome.complaints == []
    assert outcome.verdict.completed >= 2
    assert outcome.verdict.exact >= 1
    assert sum(outcome.did.values()) >= 5
