"""The crowd beats as asked, and as few would, in turns."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

from benchmarks import beats
from benchmarks.idle import Window
from benchmarks.meters import LoopLag


class Scene:
    """Rounds are slower beside a crowd that does not heed the farm."""

    def __init__(self) -> None:
        self.seen: list[float | None] = []

    @contextmanager
    def crowd(self, _clients, _folder, beat_seconds):
        self.seen.append(beat_seconds)
        yield beat_seconds

    def settled(self, _clients):
        return 2.0, 13.0

    def window(self, _seconds, beat_seconds):
        rate = 8.0 if beat_seconds is None else 4.0 + len(self.seen)
        return Window(rate, 0.5, 0.1, 1.0, LoopLag({}), 1)


def test_the_two_crowds_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()

    @contextmanager
    def farm(*_):
        yield scene

    monkeypatch.setattr(beats, "training_farm", farm)
    found = json.loads(beats.measure(2000, 1.0, repeats=2).to_json())
    assert scene.seen == [None, 2.0, None, 2.0]
    assert (found["adaptive_seconds"], found["fixed_seconds"]) == (13.0, 2.0)
    assert found["fixed_rounds_per_s"] == [6.0, 8.0]
    assert found["gain"] == pytest.approx((8 / 6 + 1) / 2, rel=0.01)
