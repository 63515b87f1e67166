"""What a task needs of the farm, by name, and which server lacks it."""

from __future__ import annotations

import pytest

from protocol.features import FEATURES, needed_by, unknown_to
from protocol.named_schedule import NamedSchedule
from protocol.recipe import InnerState, OuterOptimizer, ParameterGroup, Requirements
from protocol.sandbox import Rung
from protocol.schedule import Schedule, Segment
from protocol.tasks import BaseFile, Origin, TaskSpec
from tests.coordinator.farm_simulation import blob, spec

SCHEDULE = Schedule(segments=(Segment(steps=3, coefficients=(0.5,)),), least=0.5, most=0.5)


def test_a_plain_task_needs_nothing_that_is_not_as_old_as_the_protocol() -> None:
    assert needed_by(spec()) == ()
    assert needed_by(spec(requirements=Requirements(sandbox=Rung.NONE))) == (), "any client holds it"
    assert unknown_to((), ()) is None


@pytest.mark.parametrize(
    ("task", "needed"),
    [
        (spec().model_copy(update={"base": (BaseFile(path="config.json", blob=blob("config.json")),)}), "base_folder"),
        (spec(inner_state=InnerState.CARRIED), "carried_state"),
        (spec(clip_norm=1.0), "clipping"),
        (spec(clip_value=1.0), "clipping"),
        (spec().model_copy(update={"continues": Origin(task_id="abcd2345", round=2)}), "continued_tasks"),
        (spec(max_seconds=9.0), "early_stopping"),
        (spec(target="loss<=1"), "early_stopping"),
        (spec(patience=2), "early_stopping"),
        (spec(fragments=2), "fragments"),
        (spec(fragment_overlap_steps=2), "fragment_overlap"),
        (spec().model_copy(update={"frozen": blob("frozen")}), "frozen_apart"),
        (spec(schedule=NamedSchedule(warmup=2)), "named_schedule"),
        (spec(requirements=Requirements(modules=("torchvision",))), "needed_modules"),
        (spec(requirements=Requirements(sandbox=Rung.CONTAINER)), "needed_sandbox"),
        (spec(proximal_mu=0.1), "proximal_term"),
        (spec().model_copy(update={"is_quantized": True}), "quantized_base"),
        (spec(order="sequential"), "sequential_order"),
        (spec().model_copy(update={"environment": blob("lock")}), "task_environment"),
        (spec().model_copy(update={"reads_length": True}), "task_length"),
        (spec(outer=OuterOptimizer(schedules={"lr": SCHEDULE})), "schedules"),
        (spec(outer=OuterOptimizer(groups=(ParameterGroup(names=("w",), schedules={"lr": SCHEDULE}),))), "schedules"),
    ],
)
def test_each_feature_is_asked_for_by_who_uses_it(task: TaskSpec, needed: str) -> None:
    assert needed_by(task) == (needed,)
    assert unknown_to(FEATURES, needed_by(task)) is None
    assert unknown_to((), needed_by(task)) == (f"this farm's server does not know {needed}: it must be upgraded first")


def test_control_variates_travel_as_a_carried_state() -> None:
    assert needed_by(spec(scaffold_clients=2)) == ("carried_state", "control_variates")


def test_all_that_is_missing_is_named() -> None:
    said = unknown_to({"schedules"}, ("schedules", "telepathy", "clipping"))
    assert said is not None
    assert "does not know clipping, telepathy:" in said
