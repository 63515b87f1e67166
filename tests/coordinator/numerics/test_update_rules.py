"""What a server needs of the rules besides their numbers, which test_optimizers.py shows."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from coordinator.numerics.update_rules import RULES, State, options_of
from protocol.optimizers import OPTIMIZERS

WITHOUT_COMPILER = """
import sys
import torch
from coordinator.numerics.update_rules import RULES, options_of
for name, rule in RULES.items():
    rule.step(torch.ones(2, 2), torch.ones(2, 2), {}, options_of(name, {}))
sys.exit("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_is_left_as_it_is(name: str) -> None:
    state: State = {}
    gradient = torch.full((3, 3), 0.5)
    chosen = {"weight_decay": 0.1, "maximize": True}
    known = {key: value for key, value in chosen.items() if key in OPTIMIZERS[name].options}
    for _ in range(2):
        RULES[name].step(torch.ones(3, 3), gradient, state, options_of(name, known))
    assert gradient.unique().tolist() == [0.5]


def test_sgd_keeps_nothing_without_a_momentum() -> None:
    state: State = {}
    RULES["sgd"].step(torch.ones(3), torch.ones(3), state, options_of("sgd", {"lr": 0.1}))
    assert state == {}


def test_no_rule_needs_torch_s_compiler() -> None:
    assert subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], check=False).returncode == 0
