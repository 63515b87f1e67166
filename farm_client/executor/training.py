"""One assignment's training: local steps (weights mode), or one exact gradient (gradients mode).

Both return an update as ``docs/protocol.md`` defines it: parameters as base minus local (McMahan et al.,
arXiv:1602.05629; the pseudo-gradient of Reddi et al., arXiv:2003.00295) or as the gradient of the mean loss, and
buffers by their value after training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from farm_client.executor.batch_states import BatchStates
from farm_client.executor.contract import Contract
from farm_client.executor.failures import LossNotFinite
from farm_client.executor.flops import FlopMeter
from farm_client.executor.gradient import BatchGradient
from farm_client.executor.inner_loop import InnerLoop
from farm_client.executor.inner_state import SavedState
from farm_client.executor.layout import ModelTensors, TensorMap, is_finite
from farm_client.executor.modes import set_mode
from farm_client.executor.overlap import NO_OVERLAP, Overlap
from farm_client.executor.own_parts import own_part
from farm_client.executor.ranks import Ranks
from farm_client.executor.samples import Batches
from farm_client.executor.snapshots import StepKeeping, walk
from farm_client.executor.step_metrics import StepMetrics, left_there
from farm_client.executor.step_state import StepState

Advance = Callable[[int], None]
"""Called after each batch with its samples."""


@dataclass(frozen=True)
class Trained:
    """An update in the task's layout, with the metrics' means over the samples (``loss`` among them).

    ``untouched``: the parameters that no loss depends on, so that torch would not step them at all.
    """

    update: TensorMap
    metrics: dict[str, float]
    untouched: frozenset[str]
    state: SavedState | None = None
    """What the inner loop ended with, where the version carries that."""
    kept: TensorMap | None = None
    """What the client keeps for its next round of the task, if anything."""
    rest: Callable[[], None] | None = None
    """Takes the steps that the update does not wait for, where there are any."""


def train_locally(
    loop: InnerLoop,
    data: Batches,
    advance: Advance,
    keeping: StepKeeping,
    *,
    base: Mapping[str, torch.Tensor],
    flops: FlopMeter,
    ended: Callable[[], None] = lambda: None,
    overlap: Overlap = NO_OVERLAP,
) -> Trained:
    """Take one step of the inner loop a batch from ``base``, which the model holds; return base minus local.

    The update takes the parameters' own memory, for a large model has no room beside it: what the model holds
    afterwards is of no use, and ``ended`` is called before. With an ``overlap`` the update is apart from the model and
    has its parameters alone; the ``rest`` of the steps is taken later, and ends with ``ended``.
    Raises: CodeError, LossNotFinite; StateUnusable, after which all begins anew.
    """
    contract, tensors = loop.contract, loop.tensors
    set_mode(tensors.model, contract.code_dir, training=True)
    loop.begin()
    contract.begin(tensors.model)
    means = StepMetrics()
    state = keeping.resumed(StepState(tensors, keeping.states, means, loop))
    _begin(loop.gradient.ranks, means, state)
    loop.rules.end_step(state.samples)
    steps = _Steps(loop, flops)
    later = overlap.steps_of(len(data))
    last = len(data) - later
    for step, samples, given in walk(state, data, advance, keeping.snapshots, last):
        steps.take(step, samples, given, means)
    tensors.check_structure()
    metrics = {**_means(loop.gradient.ranks, means, tensors), **contract.finish(tensors.model)}
    kept = None if loop.term is None else loop.term.end()
    if later:
        left = list(data.sized(skip=last))  # read now: once the update is sent the files may go
        rest = partial(steps.take_rest, left, last, ended)
        update = {name: base[name] - tensors.parameters[name].detach() for name in overlap.told}
        return replace(_trained(update, tensors, metrics, loop.untouched), kept=kept, rest=rest)
    tensors.clear_gradients()
    ended()
    return replace(_trained(_subtracted(base, tensors), tensors, metrics, loop.untouched), kept=kept)


@dataclass(frozen=True)
class _Steps:
    """Takes the steps of one assignment."""

    loop: InnerLoop
    flops: FlopMeter

    def take(self, step: int, samples: int, given: Any, means: StepMetrics) -> None:
        """Take one, counted from 1, of a batch with so many samples. Raises: CodeError, LossNotFinite."""
        loop = self.loop
        own = _own(loop.gradient.ranks, samples)
        loop.rules.begin_step(loop.optimizers)
        batch = loop.contract.begin_batch(loop.tensors.model, given, step - 1)
        with self.flops.step(batch, own):
            values = loop.step(batch, samples, step)
        means.add(step, values, own)
        loop.rules.end_step(samples)

    def take_rest(self, left: Sequence[tuple[int, Any]], done: int, ended: Callable[[], None]) -> None:
        """Take those that an update did not wait for; their metrics are nobody's. Raises: CodeError, LossNotFinite."""
        means = StepMetrics()
        for step, (samples, given) in enumerate(left, done + 1):
            self.take(step, samples, given, means)
        means.result()  # looks at each loss
        self.loop.tensors.clear_gradients()
        self.loop.tensors.check_structure()
        ended()


def sum_gradients(
    contract: Contract,
    data: Batches,
    advance: Advance,
    keeping: StepKeeping,
    *,
    gradient: BatchGradient,
    tensors: ModelTensors,
    flops: FlopMeter,
) -> Trained:
    """Return the gradient of the mean loss over all samples: each batch's gradient weighs by its samples.

    Raises: CodeError, LossNotFinite; StateUnusable, after which all begins anew.
    """
    model = tensors.model
    set_mode(model, contract.code_dir, training=True)
    contract.begin(model)
    sums: TensorMap = {}
    means = StepMetrics()
    state = keeping.resumed(StepState(tensors, keeping.states, means, sums=sums))
    ranks = gradient.ranks
    _begin(ranks, means, state)
    for step, samples, given in walk(state, data, advance, keeping.snapshots):
        tensors.clear_gradients()
        batch = contract.begin_batch(model, given, step - 1)
        with flops.step(batch, _own(ranks, samples)):
            values = gradient.add_exact(batch, samples, step)
        for name, parameter in tensors.parameters.items():
            if parameter.grad is not None:
                _add(sums, name, _dense(parameter.grad), samples / data.samples)
        means.add(step, values, _own(ranks, samples))
    tensors.clear_gradients()
    tensors.check_structure()
    update = {
        name: sums[name].to(parameter.dtype) if name in sums else torch.zeros_like(parameter, requires_grad=False)
        for name, parameter in tensors.parameters.items()
    }
    metrics = {**_means(ranks, means, tensors), **contract.finish(model)}
    return _trained(update, tensors, metrics, tensors.parameters.keys() - sums.keys())


def _begin(ranks: Ranks | None, means: StepMetrics, state: StepState) -> None:
    if ranks is not None:
        ranks.begin(means, state.samples)


def _own(ranks: Ranks | None, samples: int) -> int:
    """Return how many of a batch's samples this process has."""
    return samples if ranks is None else ranks.own(samples)


def _means(ranks: Ranks | None, means: StepMetrics, tensors: ModelTensors) -> dict[str, float]:
    if ranks is None:
        return means.result()
    return ranks.merged(means, tensors.parameters.values() if tensors.shards is None else ())


def evaluate(
    contract: Contract, tensors: ModelTensors, data: Batches, advance: Advance, states: BatchStates | None = None
) -> dict[str, float]:
    """Return the researcher's metrics of held-out samples; without ``evaluate``, the mean loss and its metrics.

    The ranks of a model in parts all do it, on all samples, for each pass moves parts. ``states`` are there if the loss
    carries something from batch to batch. Raises: CodeError.
    """
    shards = tensors.shards
    if shards is None:
        return _evaluate(contract, tensors, data, advance, states)
    metrics: dict[str, float] = shards.within(lambda: (None, _evaluate(contract, tensors, data, advance, states)))
    shards.begin()
    return metrics


def _evaluate(
    contract: Contract, tensors: ModelTensors, data: Batches, advance: Advance, states: BatchStates | None
) -> dict[str, float]:
    model = tensors.model
    set_mode(model, contract.code_dir, training=False)
    contract.begin(model)
    with torch.no_grad():
        own = contract.evaluate(model, data)
        if own is not None:
            advance(data.samples)
            return own
        means = StepMetrics(checks=False)
        for number, (samples, batch) in enumerate(data.sized(), start=1):
            value = contract.loss(model, batch) if states is None else states.loss(batch, number)
            means.add(number, {"loss": left_there(value.loss), **value.metrics}, samples)
            advance(samples)
    return means.result()


def difference(base: Mapping[str, torch.Tensor], tensors: ModelTensors, metrics: Mapping[str, float]) -> Trained:
    """Return base minus what the model holds now, whoever trained it; the update takes the model's memory.

    Raises: LossNotFinite.
    """
    return _trained(_subtracted(base, tensors), tensors, dict(metrics), ())


def _trained(update: TensorMap, tensors: ModelTensors, metrics: dict[str, float], untouched: Iterable[str]) -> Trained:
    update |= {name: buffer.detach().clone() for name, buffer in tensors.buffers.items()}
    for name, tensor in update.items():
        if not is_finite(tensor):
            raise LossNotFinite(f"training left NaN or infinity in {name}: lower the learning rate or clip gradients")
    if tensors.shards is not None:
        update = tensors.shards.gathered(update)
    return Trained(update, metrics, frozenset(untouched))


def _subtracted(base: Mapping[str, torch.Tensor], tensors: ModelTensors) -> TensorMap:
    """Return base minus local, in the parameters' memory unless two of them share some."""
    local = {name: parameter.detach() for name, parameter in tensors.parameters.items()}
    is_shared = len({own_part(one).untyped_storage().data_ptr() for one in local.values()}) < len(local)
    return {name: torch.sub(base[name], p, out=None if is_shared else p) for name, p in local.items()}


def _add(sums: TensorMap, name: str, gradient: torch.Tensor, share: float) -> None:
    """Add a share of a gradient; half-precision ones are summed in float32 and rounded once."""
    if name in sums:
        sums[name].add_(gradient, alpha=share)
    else:
        is_half = gradient.dtype in (torch.float16, torch.bfloat16)
        sums[name] = (gradient.float() if is_half else gradient) * share


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
