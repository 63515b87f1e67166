"""What a lock names and a machine has of its own is not installed; torch and NumPy must be near what was locked."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.environments.own_packages import own_packages, to_install
from farm_client.agent.errors import NoEnvironment
from protocol.locks import Pin

HASH = ("sha256:" + "0" * 64,)
OWN = {"torch": "2.8.0+cpu", "numpy": "2.3.1", "pydantic": "2.11.0"}


def pin(name: str, version: str = "1.0", marker: str = "") -> Pin:
    return Pin.checked(name, version, marker, HASH)


def names(pins: Iterable[Pin]) -> list[str]:
    return [one.name for one in pins]


@given(
    st.lists(
        st.sampled_from([*OWN, "einops", "tqdm", "aifarm", "triton", "nvidia-nccl-cu12", "cuda-bindings"]), unique=True
    )
)
def test_what_is_the_clients_own_is_left_out_and_nothing_else(asked: list[str]) -> None:
    pins = [pin(name, OWN.get(name, "1.0")) for name in asked]
    assert names(to_install(pins, OWN)) == [name for name in asked if name in {"einops", "tqdm"}]


@pytest.mark.parametrize("version", ["2.8.0", "2.8.1", "2.8.0+cu128"])
def test_a_torch_of_the_same_release_does(version: str) -> None:
    assert to_install([pin("torch", version), pin("numpy", "2.0.0")], OWN) == []


@pytest.mark.parametrize(("name", "version"), [("torch", "2.7.1"), ("torch", "3.8"), ("numpy", "1.26.4")])
def test_another_one_is_refused_by_name(name: str, version: str) -> None:
    with pytest.raises(NoEnvironment) as told:
        to_install([pin("einops"), pin(name, version)], OWN)
    assert told.value.message == f"the task's lock pins {name} {version}, and this machine runs {name} {OWN[name]}"


@pytest.mark.parametrize(
    ("name", "version", "torch", "machine", "is_refused"),
    [
        ("torchvision", "0.28.0", "2.8.0+cpu", "x86_64", True),
        ("torchaudio", "2.8.0", "2.8.0+cpu", "x86_64", True),
        ("torchvision", "0.28.0+cpu", "2.8.0+cpu", "x86_64", False),
        ("torchvision", "0.28.0", "2.8.0", "x86_64", False),
        ("torchvision", "0.28.0", "2.8.0+cpu", "aarch64", False),
        ("torchmetrics", "1.0", "2.8.0+cpu", "x86_64", False),
    ],
)
def test_what_is_built_for_cuda_is_refused_beside_a_torch_without(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str, torch: str, machine: str, is_refused: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    if not is_refused:
        assert names(to_install([pin(name, version)], {"torch": torch})) == [name]
        return
    with pytest.raises(NoEnvironment) as told:
        to_install([pin(name, version)], {"torch": torch})
    assert f"pins {name} {version} as PyPI has it, built for CUDA" in told.value.message
    assert f"pin {name} {version}+cpu" in told.value.message


def test_other_versions_of_the_rest_are_the_clients() -> None:
    assert to_install([pin("pydantic", "1.0")], OWN) == []


def test_what_another_machine_needs_is_not_looked_at() -> None:
    here, there = f'sys_platform == "{sys.platform}"', 'sys_platform == "plan9"'
    asked = [pin("einops", marker=here), pin("tqdm", marker=there), pin("torch", "0.1", there)]
    assert names(to_install(asked, OWN)) == ["einops"]


def test_a_client_knows_what_it_is_made_of() -> None:
    own = own_packages()
    assert {"aifarm", "torch", "numpy", "pydantic", "safetensors", "sympy", "typing-extensions"} <= own.keys()
    assert not {"lightning", "pytest", "fastapi", "transformers"} & own.keys(), "extras that no client needs"
