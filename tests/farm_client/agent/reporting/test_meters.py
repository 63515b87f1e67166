"""Rates of counters, and how busy the machine is."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.machine.probe import Probe
from farm_client.agent.reporting import meters
from farm_client.agent.reporting.meters import MachineMeter, RateMeter, cpu_celsius
from protocol.resources import Gpu


class TestRateMeter:
    """Growth in a second over the last seconds."""

    @given(rate=st.integers(0, 10**9), step=st.floats(0.001, 30), looks=st.integers(2, 60))
    def test_what_grows_evenly_grows_at_that_rate_however_often_somebody_looks(
        self, rate: int, step: float, looks: int
    ) -> None:
        meter = RateMeter(10.0)
        for look in range(looks):
            found = meter.rate(1000 + look * step, round(rate * look * step))
        assert found == pytest.approx(rate, rel=0.01, abs=2 / step)

    def test_after_the_window_nothing_is_left_of_a_burst(self) -> None:
        meter = RateMeter(10.0)
        meter.rate(0.0, 0)
        assert meter.rate(1.0, 500) == 500
        assert meter.rate(5.0, 500) == 100
        assert [meter.rate(float(now), 500) for now in (11, 16)] == [0, 0]

    def test_the_first_look_and_two_at_once_say_nothing(self) -> None:
        meter = RateMeter(10.0)
        assert (meter.rate(5.0, 7), meter.rate(5.0, 9)) == (0, 0)

    def test_a_counter_that_falls_did_not_grow(self) -> None:
        meter = RateMeter(10.0)
        meter.rate(0.0, 100)
        assert meter.rate(1.0, 40) == 0

    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300).map(sorted))
    def test_it_holds_few_points_whatever_the_looks(self, times: list[float]) -> None:
        meter = RateMeter(10.0)
        for now in times:
            assert meter.rate(now, int(now)) >= 0
        assert len(meter._points) <= 23


Times = namedtuple("Times", "user system idle iowait guest guest_nice")


class TestMachineMeter:
    """All that runs on the machine, not only the agent."""

    @pytest.fixture
    def probe(self, tmp_path: Path) -> Probe:
        gpu = Gpu(index=3, name="H100", memory_bytes=80, memory_free_bytes=60, utilization=0.25)
        stand_in: Any = SimpleNamespace(sample=lambda: (gpu,), temperatures=lambda: {3: 71.0})
        return Probe(tmp_path, accelerators=stand_in)

    def test_processors_are_measured_between_two_looks(self, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [Times(10, 10, 70, 10, 5, 0)]
        monkeypatch.setattr(psutil, "cpu_times", lambda: now[0])
        monkeypatch.setattr(psutil, "cpu_count", lambda: 1)
        meter = MachineMeter(probe)
        now[0] = Times(12, 11, 75, 12, 6, 0)
        assert meter().cpu == pytest.approx(0.3)  # the second of a guest is one of the two of user
        now[0] = Times(12.1, 11, 75, 12, 6, 0)
        assert meter().cpu == pytest.approx(0.3)  # too short a time says nothing

    def test_memory_and_gpus(self, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(meters, "memory_limit_bytes", lambda: 100)
        monkeypatch.setattr(meters, "free_memory_bytes", lambda: 30)
        view = MachineMeter(probe)()
        (gpu,) = view.gpus
        assert (view.memory_used_bytes, view.memory_bytes) == (70, 100)
        assert (gpu.index, gpu.busy, gpu.memory_used_bytes, gpu.memory_bytes, gpu.celsius) == (3, 0.25, 20, 80, 71.0)

    def test_this_machine_can_be_measured(self, tmp_path: Path) -> None:
        view = MachineMeter(Probe(tmp_path))()
        assert 0 <= view.cpu <= 1
        assert 0 < view.memory_used_bytes <= view.memory_bytes

    def test_the_thermometer_is_asked_now_and_then(self, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[float] = []
        monkeypatch.setattr(meters, "cpu_celsius", lambda: asked.append(1.0) or 50.0)
        meter = MachineMeter(probe)
        assert {meter().cpu_celsius for _ in range(20)} == {50.0}
        assert len(asked) == 2


@pytest.mark.parametrize(
    ("sensors", "celsius"),
    [
        ({"coretemp": [SimpleNamespace(current=50.0), SimpleNamespace(current=61.0)]}, 61.0),
        ({"nvme": [SimpleNamespace(current=40.0)], "k10temp": [SimpleNamespace(current=55.0)]}, 55.0),
        ({"nvme": [SimpleNamespace(current=40.0)]}, None),
        ({}, None),
    ],
)
def test_the_processor_s_temperature(
    sensors: dict[str, Any], celsius: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert cpu_celsius() == celsius


def test_where_there_are_no_sensors_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    assert cpu_celsius() is None
