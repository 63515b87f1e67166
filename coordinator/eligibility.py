"""Which client may work on which task: requirements, the pre-flight, and what else stands in the way.

Two questions are kept apart. ``qualifies`` is about the machine and does not change from second to second: a task
that no machine qualifies for waits for a better machine. ``available`` is about this moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coordinator.decision import Decision
from coordinator.records import ClientRecord
from coordinator.state import ClientState, TaskRun
from protocol.compression import CodecName
from protocol.recipe import DataOrder, InnerState, Mode
from protocol.sandbox import Rung, Sandbox, proven_rung
from protocol.tasks import TaskSpec
from protocol.versions import (
    BASE_FOLDER,
    CARRIED_STATE,
    CONTROL_VARIATES,
    EPOCH_END,
    FRAGMENTS,
    FROZEN_APART,
    MAP_ITEMS,
    NAMED_SCHEDULE,
    PROXIMAL_TERM,
    QUANTIZED_BASE,
    SECAGG,
    SEQUENTIAL_ORDER,
    SPLIT_VARIATES,
    STEP_RULES,
    TASK_ENVIRONMENT,
    TASK_LENGTH,
)
from protocol.wanted_work import ANY_WORK
from protocol.wording import sized

EXECUTOR_RAM_BYTES = 400 * 1024**2
"""What an executor holds before any model: Python, torch and its optimizers (217 + 75 MB were measured)."""

YES = Decision(True)


def needed_ram_bytes(spec: TaskSpec) -> int:
    """Estimate the memory of one executor of this task.

    The measured peak of one batch where the submission has one; else weights, gradients, two moments and a copy
    of the global weights, the frozen ones and their file, and two shards, over the bare executor.
    """
    footprint = spec.footprint
    frozen_bytes = 0 if spec.frozen is None else spec.frozen.size_bytes
    weights_bytes = 5 * spec.initial_weights.size_bytes + 2 * frozen_bytes
    estimate = EXECUTOR_RAM_BYTES + weights_bytes + 2 * footprint.largest_shard_bytes
    return max(spec.requirements.ram_bytes, footprint.peak_ram_bytes or estimate)


def qualifies(client: ClientRecord, spec: TaskSpec) -> Decision[bool]:
    """Whether the machine meets the task's requirements, and the task fits it."""
    need, have = spec.requirements, client.resources
    if is_enough(client, spec):
        return YES
    gpu_memory = max((g.memory_bytes for g in have.gpus), default=0)
    missing_tags = sorted(set(need.tags) - set(client.tags))
    ram = needed_ram_bytes(spec)
    checks = (
        (
            not need.clients or bool({client.client_id, client.name} & set(need.clients)),
            "is not a named client",
        ),
        (not missing_tags, f"lacks the tag {', '.join(missing_tags)}"),
        (have.cpu_cores >= need.cpu_cores, f"has {have.cpu_cores} CPU cores of {need.cpu_cores}"),
        (not need.gpu or bool(have.gpus), "has no GPU"),
        (
            gpu_memory >= need.gpu_memory_bytes,
            f"has {sized(gpu_memory)} GPU memory of {sized(need.gpu_memory_bytes)}",
        ),
        (have.ram_bytes >= ram, f"has {sized(have.ram_bytes)} RAM of {sized(ram)}"),
        (is_shut_in(client, spec), f"{_shown_sandbox(client.sandbox)}, and the task asks for {need.sandbox}"),
    )
    return next((Decision(False, reason) for ok, reason in checks if not ok), Decision(True))


def is_enough(client: ClientRecord, spec: TaskSpec) -> bool:
    """Whether the machine meets the requirements, without saying what is missing."""
    need, have = spec.requirements, client.resources
    return (
        have.cpu_cores >= need.cpu_cores
        and (not need.tags or set(need.tags) <= set(client.tags))
        and (not need.clients or client.client_id in need.clients or client.name in need.clients)
        and have.ram_bytes >= needed_ram_bytes(spec)
        and (not need.gpu or bool(have.gpus))
        and (not need.gpu_memory_bytes or max((g.memory_bytes for g in have.gpus), default=0) >= need.gpu_memory_bytes)
        and is_shut_in(client, spec)
    )


def is_shut_in(client: ClientRecord, spec: TaskSpec) -> bool:
    """Whether the client shuts a task's code in as well as the task asks for."""
    least = spec.requirements.sandbox
    return least is None or proven_rung(client.sandbox).holds(least)


def _shown_sandbox(sandbox: Sandbox | None) -> str:
    if sandbox is None:
        return "is older than sandboxes"
    if sandbox.rung is Rung.NONE:
        return "runs tasks without a sandbox"
    article = "has a" if sandbox.probes else "has not tried to break out of its"
    return f"{article} {sandbox.rung} sandbox"


def available(client: ClientState, run: TaskRun, now: float) -> Decision[bool]:
    """Whether the client takes part in this task at this moment; a busy client does."""
    if not client.online:
        return Decision(False, f"offline: {client.offline_reason}")
    if client.rests:
        return Decision(False, _rest(client))
    breaker = client.breaker.allows(now, len(client.held))
    return _may_try(client, run, now) if breaker.value else breaker


def _rest(client: ClientState) -> str:
    if client.draining:
        return "is leaving"
    if client.throttled:
        return "sends more than a connection may"
    return f"paused: {client.paused}" if client.paused else "paused by its owner"


def _may_try(client: ClientState, run: TaskRun, now: float) -> Decision[bool]:
    """Whether nothing that the client met on this task keeps it off."""
    if run.task_id in client.lacks:
        return Decision(False, f"lacks what the task imports: {client.lacks[run.task_id]}")
    if (run.task_id in client.refuses or client.wanted is not ANY_WORK) and (refusal := _refusal(client, run)):
        return Decision(False, f"refuses: {refusal}")
    cooldown = client.cooldowns.get(run.task_id)
    if cooldown and cooldown.until > now:
        return Decision(False, f"{cooldown.reason} (again in {cooldown.until - now:.0f} s)")
    return fits_now(client, run)


def _refusal(client: ClientState, run: TaskRun) -> str | None:
    """Return why its owner wants nothing of the task done, or not what it gives out now."""
    if run.task_id in client.refuses:
        told = client.refuses[run.task_id]
        return "its owner's settings do not allow this task" + (told and f" ({told})")
    return client.wanted.why_not(run.next_kind, run.record.spec.topics)


def fits_now(client: ClientState, run: TaskRun) -> Decision[bool]:
    """The pre-flight against the memory that is free now. A client that runs the task already has passed it."""
    need, free = run.brief.needed_ram_bytes, client.load.ram_free_bytes
    if free and free < need and client.client_id not in run.participants:
        return Decision(False, f"has {sized(free)} RAM free of {sized(need)}")
    return YES


def eligible(client: ClientState, run: TaskRun, now: float) -> Decision[bool]:
    """Whether the client may be offered parts of this task, as soon as it has a free slot."""
    fit = qualifies(client.record, run.record.spec)
    if fit.value and client.online:
        fit = understands(client, run.record.spec)
    return available(client, run, now) if fit.value else fit


def understands(client: ClientState, spec: TaskSpec) -> Decision[bool]:
    """Whether the client can take the task's weights and packages, encode its updates and decode new versions."""
    for feature, is_needed, sentence in _FEATURES:
        if is_needed(spec) and feature not in client.features:
            return Decision(False, f"cannot {sentence}: it needs a newer aifarm")
    if unknown := sorted(needed_codecs(spec) - client.codecs):
        return Decision(False, f"does not know the codec {', '.join(unknown)}: it needs a newer aifarm")
    if not has_or_installs(client, spec):
        return Decision(False, "has not the task's environment, and its owner allows no installs")
    return YES


def has_or_installs(client: ClientState, spec: TaskSpec) -> bool:
    """Whether the client has the packages that the task's code imports, or may install them."""
    return spec.environment is None or client.environments.allow(spec.environment.digest)


def needed_codecs(spec: TaskSpec) -> frozenset[str]:
    """Return which codecs a client must know to work on the task."""
    codecs = {spec.recipe.update_codec.name, spec.recipe.weights_codec.name} - {CodecName.NONE}
    return frozenset(codec.value for codec in codecs)


def needed_features(spec: TaskSpec) -> frozenset[str]:
    """Return what a client must know, beside codecs, to work on the task."""
    return frozenset(feature for feature, is_needed, _ in _FEATURES if is_needed(spec))


def _has_step_rules(spec: TaskSpec) -> bool:
    """Whether clients must do more in a local step than call the optimizer; in gradients mode the server does it."""
    recipe = spec.recipe
    clips = recipe.clip_norm is not None or recipe.clip_value is not None
    return recipe.mode is Mode.WEIGHTS and (clips or spec.has_scheduler)


def _names_a_schedule(spec: TaskSpec) -> bool:
    """Whether clients follow a schedule of the recipe; in gradients mode the server does it."""
    return spec.recipe.mode is Mode.WEIGHTS and spec.recipe.schedule is not None


_FEATURES: Final[tuple[tuple[str, Callable[[TaskSpec], bool], str], ...]] = (
    (FROZEN_APART, lambda spec: spec.frozen is not None, "take frozen tensors as a file of their own"),
    (BASE_FOLDER, lambda spec: bool(spec.base), "take the folder that the task starts from"),
    (QUANTIZED_BASE, lambda spec: spec.is_quantized, "train over a quantized base"),
    (
        CARRIED_STATE,
        lambda spec: spec.recipe.inner_state is InnerState.CARRIED,
        "carry an optimizer's state from round to round",
    ),
    (EPOCH_END, lambda spec: spec.epoch_end, "run on_epoch_end"),
    (STEP_RULES, _has_step_rules, "clip gradients, or follow a scheduler"),
    (NAMED_SCHEDULE, _names_a_schedule, "follow a schedule that the recipe names"),
    (PROXIMAL_TERM, lambda spec: spec.recipe.proximal_mu > 0, "add a proximal term to local gradients"),
    (CONTROL_VARIATES, lambda spec: spec.recipe.scaffold_clients > 0, "keep control variates"),
    (
        SPLIT_VARIATES,
        lambda spec: bool(spec.dataset.parts) and spec.recipe.scaffold_clients > 0,
        "take control variates of virtual clients from the version",
    ),
    (FRAGMENTS, lambda spec: spec.recipe.fragments > 1, "send a fragment of the model in each round"),
    (SEQUENTIAL_ORDER, lambda spec: spec.recipe.order is DataOrder.SEQUENTIAL, "read rows in order"),
    (SECAGG, lambda spec: spec.recipe.secure_aggregation, "mask its updates for a secure sum"),
    (TASK_LENGTH, lambda spec: spec.reads_length, "tell the code how long the task is"),
    (MAP_ITEMS, lambda spec: spec.map is not None, "run a function over items"),
    (TASK_ENVIRONMENT, lambda spec: spec.environment is not None, "run with the packages of a task's lock"),
)
"""What a task may need of a client beside codecs: a client's feature, whether it is needed, and what lacks without."""
