"""Device classes: which one is chosen, what it can do, and how it is seeded. Nothing but a processor is at hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from farm_client.executor import selftest
from farm_client.executor.devices import (
    all_devices,
    choose_device,
    device_class,
    device_memory_bytes,
    device_name,
    free_cached_memory,
    generator_states,
    has_bfloat16,
    has_float64,
    seed_device,
    set_generator_states,
    wait_for,
)
from farm_client.executor.precision import Autocast
from protocol.recipe import Precision
from protocol.resources import DeviceClass

CUDA, XPU, MPS, CPU = (torch.device(name) for name in ("cuda", "xpu", "mps", "cpu"))


class Machine:
    """Stands in for torch's modules of devices, and notes what they are asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cards = {"cuda": 0, "xpu": 0, "mps": 0}
        self.bfloat16 = True
        self.float64 = True
        self.done: list[tuple[Any, ...]] = []
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name in ("cuda", "xpu"):
            for function, answer in self._interface(name).items():
                monkeypatch.setattr(getattr(torch, name), function, answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(self.cards["mps"]))
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *least: self.bfloat16 and least == (14, 0))
        monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: self.done.append(("mps", "seed", seed)))
        monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7]))
        monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: self.done.append(("mps", "state", state.item())))
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5000)
        monkeypatch.setattr(torch.mps, "empty_cache", lambda: self.done.append(("mps", "empty")))
        monkeypatch.setattr(torch.mps, "synchronize", lambda: self.done.append(("mps", "wait")))

    def _interface(self, name: str) -> dict[str, Any]:
        def about(_device: torch.device) -> SimpleNamespace:
            return SimpleNamespace(total_memory=9000, has_fp64=self.float64)

        def set_states(states: list[torch.Tensor]) -> None:
            self.done.append((name, "state", *(state.item() for state in states)))

        return {
            "is_available": lambda: self.cards[name] > 0,
            "device_count": lambda: self.cards[name],
            "get_device_name": lambda device: f"{name} card {device.index}",
            "get_device_properties": about,
            "is_bf16_supported": lambda including_emulation: self.bfloat16 and not including_emulation,
            "manual_seed_all": lambda seed: self.done.append((name, "seed", seed)),
            "get_rng_state_all": lambda: [torch.tensor([n]) for n in range(self.cards[name])],
            "set_rng_state_all": set_states,
            "empty_cache": lambda: self.done.append((name, "empty")),
            "synchronize": lambda device: self.done.append((name, "wait", device.index)),
        }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_card_goes_before_what_is_built_in_and_both_before_the_processor(machine: Machine) -> None:
    assert choose_device() == CPU
    for name, found in (("mps", MPS), ("xpu", XPU), ("cuda", CUDA)):
        machine.cards[name] = 1
        assert choose_device() == found


def test_where_the_owner_lends_no_card_the_processor_computes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.cards |= {"xpu": 1, "mps": 1}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device() == CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert choose_device() == XPU


def test_amds_cards_are_told_apart_by_what_torch_was_built_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [device_class(device) for device in (CUDA, XPU, MPS, CPU)] == ["cuda", "xpu", "mps", "cpu"]
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert [device_class(device) for device in (CUDA, XPU, MPS, CPU)] == ["rocm", "xpu", "mps", "cpu"]


def test_every_device_is_listed_with_its_name_and_memory(machine: Machine) -> None:
    machine.cards |= {"cuda": 2, "xpu": 1, "mps": 1}
    found = [(str(device), device_name(device), device_memory_bytes(device)) for device in all_devices()]
    assert found == [
        ("cpu", "CPU", 0),
        ("cuda:0", "cuda card 0", 9000),
        ("cuda:1", "cuda card 1", 9000),
        ("xpu:0", "xpu card 0", 9000),
        ("mps", "Apple GPU", 5000),
    ]


def test_what_a_class_cannot_compute_in_is_known(machine: Machine) -> None:
    assert [has_float64(device) for device in (CUDA, XPU, MPS, CPU)] == [True, True, False, True]
    assert all(has_bfloat16(device) for device in (CUDA, XPU, MPS, CPU))
    machine.float64 = machine.bfloat16 = False
    assert [has_float64(device) for device in (CUDA, XPU, MPS, CPU)] == [True, False, False, True]
    assert [has_bfloat16(device) for device in (CUDA, XPU, MPS, CPU)] == [False, False, False, True]


@pytest.mark.parametrize("device", [CUDA, XPU, MPS])
def test_what_a_card_lacks_is_computed_in_float32(machine: Machine, device: torch.device) -> None:
    assert Autocast.of(Precision.BF16, device).dtype is torch.bfloat16
    assert Autocast.of(Precision.FP32, device).dtype is None
    half = Autocast.of(Precision.FP16, device)
    assert half.dtype is (None if device == MPS else torch.float16)
    assert device != MPS or half.new_scaler() is None
    machine.bfloat16 = False
    assert Autocast.of(Precision.BF16, device).dtype is None


@pytest.mark.parametrize("name", ["cuda", "xpu", "mps"])
def test_a_devices_generators_are_seeded_and_go_on_where_they_were(machine: Machine, name: str) -> None:
    device = torch.device(name)
    machine.cards[name] = 1 if name == "mps" else 2
    seed_device(11, device)
    states = generator_states(device)
    set_generator_states(states, device)
    assert [*states] == ["mps.0"] if name == "mps" else [f"{name}.0", f"{name}.1"]
    assert machine.done == [(name, "seed", 11), (name, "state", *(state.item() for state in states.values()))]
    machine.done.clear()
    free_cached_memory(device)
    wait_for(device)
    assert [done[:2] for done in machine.done] == [(name, "empty"), (name, "wait")]


def test_a_processor_needs_none_of_it(machine: Machine) -> None:
    seed_device(11, CPU)
    set_generator_states(generator_states(CPU), CPU)
    free_cached_memory(CPU)
    wait_for(CPU)
    assert machine.done == []
    assert generator_states(CPU) == {}


def test_a_device_without_double_precision_is_tested_in_single(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype] = []
    monkeypatch.setattr(selftest, "_multiplies_exactly", lambda *given: asked.append(given[3]) or True)
    monkeypatch.setattr(selftest, "_differentiates_exactly", lambda *given: asked.append(given[3]) or True)
    monkeypatch.setattr(selftest, "_gflops", lambda _device: 3.0)
    verdict = selftest._verdict(MPS)
    assert set(asked) == {torch.float32}
    assert verdict["device_class"] is DeviceClass.MPS
    assert (verdict["reason"], verdict["gflops"], verdict["memory_bytes"]) == ("", 3.0, 5000)


def test_the_known_gradient_is_exact_in_single_precision() -> None:
    left = selftest.np.fromfunction(lambda i, j: (31 * i + 17 * j) % 7 - 3, (256, 256), dtype=selftest.np.int64)
    assert selftest._differentiates_exactly(left, left, CPU, torch.float32)


def test_a_device_that_refuses_a_format_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(_device: torch.device) -> str:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype\nmore")

    monkeypatch.setattr(selftest, "_fault", refusing)
    assert selftest._verdict(MPS)["reason"] == "Cannot convert a MPS Tensor to float64 dtype"
