"""Training and evaluation mode of models whose own code gives ``train`` and ``eval`` other meanings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from farm_client.executor.failures import CodeError
from farm_client.executor.modes import set_mode


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def nested() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))


@pytest.mark.parametrize("training", [True, False])
def test_a_plain_model_is_switched_with_all_that_is_in_it(tmp_path: Path, training: bool) -> None:
    model = nested()
    model.train(not training)
    set_mode(model, tmp_path, training=training)
    assert modes(model) == [training] * 5


@pytest.mark.parametrize("training", [True, False])
def test_a_part_that_two_share_and_one_that_is_its_own_child_s_sibling_are_switched_too(
    tmp_path: Path, training: bool
) -> None:
    shared = nn.Linear(1, 1)
    model = nn.ModuleList([shared, nn.Sequential(shared)])
    set_mode(model, tmp_path, training=training)
    assert modes(model) == [training] * 3


class StaysInEvaluation(nn.BatchNorm1d):
    """The usual reason to override ``train``."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)


def test_a_layer_that_is_to_stay_in_evaluation_does(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Dropout(), StaysInEvaluation(2))
    set_mode(model, tmp_path, training=True)
    assert modes(model) == [True, True, False]
    set_mode(model, tmp_path, training=False)
    assert modes(model) == [False, False, False]


class TrainsItself(nn.Module):
    """A method of that name that does the training: the farm must not call it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Dropout()
        self.calls: list[Any] = []

    def train(self, data: Any, epochs: int) -> Any:  # type: ignore[override]  # that is the point
        self.calls.append((data, epochs))


@pytest.mark.parametrize("training", [True, False])
def test_a_method_that_trains_is_not_called_and_the_layers_are_switched(tmp_path: Path, training: bool) -> None:
    model = TrainsItself()
    set_mode(model, tmp_path, training=training)
    assert model.calls == []
    assert modes(model) == [training, training]


class Remembers(nn.Module):
    """Overrides both, and notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def train(self, mode: bool = True) -> Any:
        self.asked.append(f"train({mode})")
        return super().train(mode)

    def eval(self) -> Any:
        self.asked.append("eval()")
        return nn.Module.train(self, False)


def test_own_methods_for_both_are_asked_each_for_its_own(tmp_path: Path) -> None:
    model = Remembers()
    set_mode(model, tmp_path, training=True)
    set_mode(model, tmp_path, training=False)
    assert model.asked == ["train(True)", "eval()"]
    assert modes(model) == [False]


class NoArguments(nn.Module):
    """``train`` without a mode."""

    def train(self) -> Any:  # type: ignore[override]
        self.was_asked = True
        return nn.Module.train(self, True)


def test_a_switch_without_a_mode_is_asked_for_training_only(tmp_path: Path) -> None:
    model = NoArguments()
    set_mode(model, tmp_path, training=True)
    assert model.was_asked
    model.was_asked = False
    set_mode(model, tmp_path, training=False)
    assert not model.was_asked
    assert modes(model) == [False]


def test_a_method_that_was_put_on_the_object_counts_too(tmp_path: Path) -> None:
    model, asked = nn.Linear(1, 1), []
    model.train = lambda mode=True: asked.append(mode)  # type: ignore[method-assign,assignment,return-value]
    set_mode(model, tmp_path, training=True)
    assert asked == [True]


@pytest.mark.parametrize(("training", "name"), [(True, "model.train()"), (False, "model.eval()")])
def test_an_error_in_the_own_switch_is_the_codes_and_names_it(tmp_path: Path, training: bool, name: str) -> None:
    class Broken(nn.Module):
        def train(self, mode: bool = True) -> Any:
            raise ZeroDivisionError("in the researcher's own code")

        def eval(self) -> Any:
            raise ZeroDivisionError("in the researcher's own code")

    with pytest.raises(CodeError) as raised:
        set_mode(Broken(), tmp_path, training=training)
    assert name in str(raised.value)


def test_switching_touches_no_weight(tmp_path: Path) -> None:
    model = nested()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for training in (True, False, True):
        set_mode(model, tmp_path, training=training)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
