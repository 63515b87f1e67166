"""The rules' own checks; that they compute what torch's classes compute is shown with the outer optimizer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch

from coordinator.numerics.update_rules import RULES, Adam, AdamW, Sgd, State

WITHOUT_COMPILER = """
import sys
import torch
from coordinator.numerics.update_rules import RULES
for rule in RULES.values():
    rule().step(torch.ones(2), torch.ones(2), {})
sys.exit("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        (Sgd, {"lr": -0.1}, "lr is -0.1"),
        (Sgd, {"lr": float("nan")}, "lr is nan"),
        (Sgd, {"momentum": -1.0}, "momentum"),
        (Sgd, {"weight_decay": -1.0}, "weight_decay"),
        (Sgd, {"nesterov": True}, "Nesterov"),
        (Sgd, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "Nesterov"),
        (Adam, {"eps": -1e-8}, "eps"),
        (Adam, {"betas": (0.9, 1.0)}, "betas"),
        (AdamW, {"betas": (-0.1, 0.9)}, "betas"),
        (AdamW, {"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_options_that_cannot_be_are_refused(rule: type[Sgd | Adam], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rule(**options)


@pytest.mark.parametrize(
    ("name", "own"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_defaults_are_torch_s(name: str, own: Callable[..., torch.optim.Optimizer]) -> None:
    rule, defaults = RULES[name](), own([torch.zeros(1)]).defaults
    for option in fields(rule):
        assert getattr(rule, option.name) == defaults[option.name], option.name


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_is_left_as_it_is(name: str) -> None:
    state: State = {}
    gradient = torch.full((3,), 0.5)
    for _ in range(2):
        RULES[name](weight_decay=0.1, maximize=True).step(torch.ones(3), gradient, state)
    assert gradient.tolist() == [0.5, 0.5, 0.5]


def test_no_rule_needs_torch_s_compiler() -> None:
    assert subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], check=False).returncode == 0
