"""What goes on with a continued task, and what begins anew: said, and never guessed."""

from __future__ import annotations

import pytest

from protocol.compression import CodecName, CodecSpec
from protocol.continuing import obstacle, taken_over
from protocol.recipe import InnerState, Mode, OuterOptimizer, ParameterGroup
from tests.coordinator.farm_simulation import blob, spec

ADAM = OuterOptimizer(name="adam", options={"lr": 0.1})
CARRIED = {"inner_state": InnerState.CARRIED}


def momentum(value: float, **more: bool) -> OuterOptimizer:
    return OuterOptimizer(name="sgd", options={"lr": 0.1, "momentum": value, **more})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"rounds": 9}),
        ({"outer": ADAM}, {"outer": ADAM.model_copy(update={"options": {"lr": 0.01}})}),
        ({"outer": momentum(0.9)}, {"outer": momentum(0.5)}),
        ({"mode": Mode.GRADIENTS, "outer": ADAM}, {"mode": Mode.GRADIENTS, "outer": ADAM, "round_samples": 10}),
        (CARRIED, {**CARRIED, "clip_norm": 1.0}),
    ],
)
def test_all_goes_on_where_only_numbers_change(before: dict[str, object], after: dict[str, object]) -> None:
    taken = taken_over(spec(**before), spec(**after))
    assert (taken.optimizer, taken.inner_state, taken.lost) == (True, True, ())


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ({"mode": Mode.WEIGHTS}, {"mode": Mode.GRADIENTS}, "the mode was weights and is gradients"),
        ({"outer": ADAM}, {"outer": momentum(0.0)}, "it was adam and is sgd"),
        ({"outer": momentum(0.9)}, {"outer": momentum(0.0)}, "what it keeps for each parameter"),
        ({"outer": momentum(0.9)}, {"outer": momentum(0.9, nesterov=True)}, "what it keeps for each parameter"),
        (
            {"outer": ADAM},
            {"outer": ADAM.model_copy(update={"groups": (ParameterGroup(names=("w",)),)})},
            "what it keeps for each parameter",
        ),
        ({}, {"weights_codec": CodecSpec(name=CodecName.INT8)}, "weights_codec decides"),
        (
            {"weights_codec": CodecSpec(name=CodecName.PULSE)},
            {"weights_codec": CodecSpec(name=CodecName.SIGN)},
            "decides",
        ),
    ],
)
def test_the_servers_optimizer_begins_anew(before: dict[str, object], after: dict[str, object], why: str) -> None:
    taken = taken_over(spec(**before), spec(**after))
    assert not taken.optimizer
    assert taken.lost[0].startswith("the server's optimizer begins anew: ")
    assert why in taken.lost[0]


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (CARRIED, {}, 'without inner_state = "carried"'),
        (CARRIED, {"mode": Mode.GRADIENTS}, 'without inner_state = "carried"'),
        ({"inner_state": InnerState.KEPT}, CARRIED, "were with the clients"),
    ],
)
def test_the_clients_optimizers_begin_anew(before: dict[str, object], after: dict[str, object], why: str) -> None:
    taken = taken_over(spec(**before), spec(**after))
    assert not taken.inner_state
    assert why in taken.lost[-1]


def test_the_state_of_other_code_is_no_state() -> None:
    before = spec(**CARRIED)
    taken = taken_over(before, before.model_copy(update={"code": blob("other code")}))
    assert (taken.optimizer, taken.inner_state) == (True, False)


def test_a_state_keeps_the_rates_of_the_config_that_it_was_made_with() -> None:
    before = spec(**CARRIED)
    taken = taken_over(before, before.model_copy(update={"config": {"lr": 0.5}}))
    assert (taken.optimizer, taken.inner_state) == (True, False)
    assert "the config is another one" in taken.lost[0]


def test_other_samples_or_another_order_of_them_are_refused() -> None:
    assert obstacle(spec(), spec(rounds=7)) is None
    assert "submit other data" in (obstacle(spec(), spec(shards=(10, 10))) or "")
    assert "the seed, which was 0" in (obstacle(spec(), spec(seed=1)) or "")
    assert "laid out in shuffled order" in (obstacle(spec(), spec(order="sequential")) or "")
    assert "frozen" in (obstacle(spec(), spec().model_copy(update={"frozen": blob("f")})) or "")
