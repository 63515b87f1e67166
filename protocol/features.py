"""What a task asks of the farm that older servers would leave out without a word, by name.

A server says what it knows (``FarmView.features``), so that a newer ``farm`` refuses before anything is uploaded; a
submission says what it needs (``TaskSpec.needs``), so that a server refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from protocol.recipe import DataOrder, InnerState
from protocol.sandbox import Rung
from protocol.tasks import TaskSpec


def _has_schedules(spec: TaskSpec) -> bool:
    outer = spec.recipe.outer
    return bool(outer.schedules) or any(group.schedules for group in outer.groups)


def _clips(spec: TaskSpec) -> bool:
    return spec.recipe.clip_norm is not None or spec.recipe.clip_value is not None


def _stops_early(spec: TaskSpec) -> bool:
    recipe = spec.recipe
    return recipe.patience is not None or recipe.target is not None or recipe.max_seconds is not None


FEATURES: Final[Mapping[str, Callable[[TaskSpec], bool]]] = MappingProxyType(
    {
        "base_folder": lambda spec: bool(spec.base),
        "carried_state": lambda spec: spec.recipe.inner_state is InnerState.CARRIED,
        "clipping": _clips,
        "control_variates": lambda spec: spec.recipe.scaffold_clients > 0,
        "continued_tasks": lambda spec: spec.continues is not None,
        "data_split": lambda spec: bool(spec.dataset.parts),
        "early_stopping": _stops_early,
        "epoch_end": lambda spec: spec.epoch_end,
        "fragment_overlap": lambda spec: spec.recipe.fragment_overlap_steps > 0,
        "fragments": lambda spec: spec.recipe.fragments > 1,
        "frozen_apart": lambda spec: spec.frozen is not None,
        "maps": lambda spec: spec.map is not None,
        "needed_modules": lambda spec: bool(spec.requirements.modules),
        "needed_sandbox": lambda spec: spec.requirements.sandbox not in {None, Rung.NONE},
        "named_schedule": lambda spec: spec.recipe.schedule is not None,
        "proximal_term": lambda spec: spec.recipe.proximal_mu > 0,
        "quantized_base": lambda spec: spec.is_quantized,
        "schedules": _has_schedules,
        "secure_aggregation": lambda spec: spec.recipe.secure_aggregation,
        "sequential_order": lambda spec: spec.recipe.order is DataOrder.SEQUENTIAL,
        "task_environment": lambda spec: spec.environment is not None,
        "task_length": lambda spec: spec.reads_length,
        "topics": lambda spec: bool(spec.topics),
    }
)
"""Each feature of a task by its name, and whether a task needs it. A new one comes with a new name."""


def needed_by(spec: TaskSpec) -> tuple[str, ...]:
    """Return the features without which this task would be another one."""
    return tuple(name for name, is_needed in FEATURES.items() if is_needed(spec))


def unknown_to(known: Iterable[str], needed: Iterable[str]) -> str | None:
    """Return in a sentence which needed features a server does not know; None if it knows them all."""
    missing = sorted(set(needed) - set(known))
    return f"this farm's server does not know {', '.join(missing)}: it must be upgraded first" if missing else None
