"""The outer optimizer: torch's optimizers, and those of servers, on flat named tensors, without the researcher's model.

With the mean gradient of a global batch it does what the same optimizer does in one process on that batch, to the
bit: the default implementation of torch.optim on CPU (neither foreach nor fused) is used on both sides.
With the mean pseudo-gradient and plain SGD of ``lr`` 1 it is FedAvg; with momentum, FedAvgM.
Sources: McMahan et al., arXiv:1602.05629; Reddi et al., arXiv:2003.00295 (server optimizers).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from coordinator.numerics.clipping import Clipping
from coordinator.numerics.schedule import value_at
from coordinator.numerics.update_rules import RULES, State, UpdateRule, options_of
from protocol.errors import InvalidTask, LayoutMismatch
from protocol.optimizers import OPTIMIZERS, Number, Several
from protocol.recipe import OuterOptimizer, ParameterGroup
from protocol.schedule import Schedule
from protocol.tensors import Layout, Role

_SIXTEEN_BITS: Final = frozenset({torch.float16, torch.bfloat16})
NO_CLIPPING: Final = Clipping()
_MASTER: Final = "master"
_BETAS: Final = ("beta1", "beta2")
_WHOLE: Final = ParameterGroup(names=())


@dataclass(frozen=True, slots=True)
class _Group:
    """The parameters that are stepped alike: by ``rule``, with ``options`` unless a schedule says otherwise."""

    names: tuple[str, ...]
    rule: UpdateRule
    options: Mapping[str, Any]
    schedules: Mapping[str, Schedule]

    def options_at(self, version: int) -> Mapping[str, Any]:
        """Return the options of the step from this version."""
        now: dict[str, Any] = {name: value_at(schedule, version) for name, schedule in self.schedules.items()}
        if "betas" in self.options:
            first, second = self.options["betas"]
            now["betas"] = (now.pop("beta1", first), now.pop("beta2", second))
        return {**self.options, **now}


class OuterStep:
    """Applies aggregated updates to a task's weights, round after round.

    ``weights`` has every tensor of the layout in its shape and dtype, writable; they are updated in place.
    Parameters of 16 bits get a float32 *master copy*: the optimizer works on it and each step's result is rounded
    into the weights, because a step smaller than half a unit in the last place would otherwise be lost for ever.
    With ``publishes`` false every parameter gets one, and a step leaves the parameters in ``weights`` as they are: what
    they get of it is the caller's to decide (``unpublished``), and what they don't get stays in the masters.
    Parameters in no group of ``spec`` are left as they are, as a local optimizer would leave them.
    """

    def __init__(
        self,
        spec: OuterOptimizer,
        weights: dict[str, Tensor],
        layout: Layout,
        *,
        publishes: bool = True,
        clipping: Clipping = NO_CLIPPING,
    ) -> None:
        """Build the optimizer.

        Raises: InvalidTask naming the unknown option, the bad value or the unknown parameter.
        """
        self._weights = weights
        self._publishes = publishes
        self._clipping = clipping
        self._parameters = tuple(t.name for t in layout.parameters)
        self._buffers = tuple(t.name for t in layout.tensors if t.role is Role.BUFFER)
        self._groups = _groups(spec, layout)
        self._rules = {name: group.rule for group in self._groups for name in group.names}
        self._options = {name: group.options for group in self._groups for name in group.names}
        self._states: dict[str, State] = {name: {} for name in self._rules}
        self._trained = {
            name: weights[name] if publishes and weights[name].dtype not in _SIXTEEN_BITS else _master(weights[name])
            for name in self._rules
        }

    def step(self, mean: Mapping[str, Tensor], untouched: Collection[str] = frozenset(), *, version: int = 0) -> None:
        """Update the parameters by one step along ``mean`` (see ``Aggregate.result``) and set the buffers to it.

        ``version`` is that of the weights before the step, by which scheduled options are found.

        ``untouched`` parameters have no gradient: they keep their value and state, and do not decay either, as with
        torch.optim where ``grad`` is None. ``mean`` is clipped in place. Memory: what torch takes for one parameter at
        a time.
        """
        with torch.no_grad():
            self._clipping.apply([mean[name] for name in self._parameters if name not in untouched])
            for group in self._groups:
                options = group.options_at(version)
                for name in group.names:
                    if name not in untouched:
                        self._step(name, mean[name], options)
            for name in self._buffers:
                self._weights[name].copy_(mean[name])

    def _step(self, name: str, mean: Tensor, options: Mapping[str, Any]) -> None:
        tensor = self._trained[name]
        self._rules[name].step(tensor, mean.to(tensor.dtype), self._states[name], options)
        if self._publishes and tensor is not self._weights[name]:
            self._weights[name].copy_(tensor)

    def kept_of(self, name: str) -> Mapping[str, Tensor]:
        """Return the state of a parameter, live: the next step changes it. Empty before the first one."""
        return self._states.get(name, {})

    def options_of(self, name: str) -> Mapping[str, Any]:
        """Return the options of a parameter, as they are without schedules."""
        return self._options[name]

    def unpublished(self, into: Mapping[str, Tensor]) -> None:
        """Write what each trained parameter's master has beyond the weights into ``into``; zero for the others.

        ``into`` has a tensor of every parameter, in its shape and in the dtype of its master.
        """
        with torch.no_grad():
            for name, difference in into.items():
                difference.copy_(self._weights[name])  # in two passes: arithmetic between dtypes is 6 times slower
                torch.sub(self._trained.get(name, difference), difference, out=difference)

    def state(self) -> dict[str, Tensor]:
        """Return all that a resume needs besides the weights, by ``<what>.<parameter>``, for a safetensors file.

        The tensors are the live ones: write them before the next step. Empty for plain SGD on float32 or float64.
        """
        named: dict[str, Tensor] = {}
        for name, tensor in self._trained.items():
            named |= {f"{what}.{name}": value for what, value in self._states[name].items()}
            if tensor is not self._weights[name]:
                named[f"{_MASTER}.{name}"] = tensor
        return named

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned earlier; the next step is then the one that it would have been.

        The tensors are taken over, not copied.
        Raises: LayoutMismatch if it has a tensor of an unknown parameter, or of another shape or dtype; nothing is
            changed then.
        """
        placed = [(*self._place(key, value), value) for key, value in state.items()]
        self._states = {name: {} for name in self._rules}
        for what, name, value in placed:
            if what == _MASTER:
                self._trained[name].data = value
            else:
                self._states[name][what] = value

    def _place(self, key: str, value: Tensor) -> tuple[str, str]:
        what, _, name = key.partition(".")
        parameter = self._trained.get(name)
        if parameter is None:
            raise LayoutMismatch(f"the optimizer state has {key!r}, but the optimizer has no parameter {name!r}")
        shape = parameter.shape if what == _MASTER else self._rules[name].state_shape(what, parameter)
        if shape is None:
            raise LayoutMismatch(f"the optimizer state has {key!r}, which this optimizer does not keep")
        if value.shape != shape:
            raise LayoutMismatch(
                f"{key!r} of the optimizer state is {list(value.shape)}, its parameter {list(parameter.shape)}"
            )
        if what == _MASTER and value.dtype != parameter.dtype:
            raise LayoutMismatch(f"{key!r} of the optimizer state is {value.dtype}, the optimizer's {parameter.dtype}")
        return what, name


def all_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity, or None if all are finite.

    One pass without temporaries: minimum and maximum are finite exactly when all elements are.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)
            if not (math.isfinite(low.item()) and math.isfinite(high.item())):
                return name
    return None


def check_outer_optimizer(spec: OuterOptimizer, layout: Layout) -> None:
    """Check at submission that the optimizer can be built, without any weights.

    Raises: InvalidTask as ``OuterStep`` does.
    """
    OuterStep(spec, {tensor.name: torch.empty(0) for tensor in layout.tensors}, layout)


def _master(weight: Tensor) -> Tensor:
    return weight.to(torch.float32 if weight.dtype in _SIXTEEN_BITS else weight.dtype, copy=True)


def _groups(spec: OuterOptimizer, layout: Layout) -> tuple[_Group, ...]:
    """Return the groups with the names of the parameters that are trained."""
    shapes = {tensor.name: tensor.shape for tensor in layout.parameters}
    if not shapes:
        raise InvalidTask("the model has no parameter to train; give build_model at least one that requires grad")
    if not spec.groups:
        return (_group(spec, _WHOLE.model_copy(update={"names": tuple(sorted(shapes))}), shapes),)
    known = shapes.keys() | {tensor.name for tensor in layout.tensors if tensor.role is Role.FROZEN}
    seen: set[str] = set()
    for group in spec.groups:
        if len(set(group.names)) < len(group.names) or seen & set(group.names):
            raise InvalidTask("the outer optimizer's groups name a parameter twice; give each one to one group")
        if unknown := sorted(set(group.names) - known):
            raise InvalidTask(f"the outer optimizer's groups name {unknown[0]!r}, which is no parameter of the model")
        seen |= set(group.names)
    return tuple(_group(spec, group, shapes) for group in spec.groups)


def _group(spec: OuterOptimizer, group: ParameterGroup, shapes: Mapping[str, tuple[int, ...]]) -> _Group:
    optimizer = OPTIMIZERS[spec.name]
    given = {**spec.options, **group.options}
    schedules = {**spec.schedules, **group.schedules}
    problem = optimizer.problem(given) or _problem_of(schedules, optimizer.options)
    if problem is not None:
        raise InvalidTask(f"the outer optimizer {spec.name} {problem}")
    names = tuple(name for name in group.names if name in shapes)
    flat = [name for name in names if len(shapes[name]) != 2]
    if optimizer.matrices_only and flat:
        raise InvalidTask(
            f"the outer optimizer {spec.name} steps matrices only, and {flat[0]!r} is of {list(shapes[flat[0]])}"
        )
    return _Group(names, RULES[spec.name], options_of(spec.name, given), schedules)


def _problem_of(schedules: Mapping[str, Schedule], options: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the schedules."""
    for name, schedule in schedules.items():
        option = options.get(name) or (options.get("betas") if name in _BETAS else None)
        if isinstance(option, Several) and name in _BETAS:
            option = option.parts[_BETAS.index(name)]
        if not isinstance(option, Number):
            return f"has no number {name!r} that could follow a schedule"
        for value in (schedule.least, schedule.most):
            if (problem := option.problem(value)) is not None:
                return f"refuses its schedule: {name} gets to {value}, it {problem}"
    return None
