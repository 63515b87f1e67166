"""The outer optimizer: torch's optimizers on flat named tensors, without the researcher's model.

With the mean gradient of a global batch it does what the same optimizer does in one process on that batch, to the
bit: the default implementation of torch.optim on CPU (neither foreach nor fused) is used on both sides.
With the mean pseudo-gradient and plain SGD of ``lr`` 1 it is FedAvg; with momentum, FedAvgM.
Sources: McMahan et al., arXiv:1602.05629; Reddi et al., arXiv:2003.00295 (server optimizers).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Final

import torch
from torch import Tensor

from coordinator.numerics.clipping import Clipping
from coordinator.numerics.update_rules import RULES, State, UpdateRule
from protocol.errors import InvalidTask, LayoutMismatch
from protocol.recipe import OptionValue, OuterOptimizer
from protocol.tensors import Layout, Role

IGNORED_OPTIONS: Final = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Options that only change how it is computed; accepted, so that an optimizer's defaults can be sent as they are."""
_SIXTEEN_BITS: Final = frozenset({torch.float16, torch.bfloat16})
NO_CLIPPING: Final = Clipping()
_MASTER: Final = "master"
_STEP: Final = "step"


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
        self._rules = _rules(spec, layout)
        self._states: dict[str, State] = {name: {} for name in self._rules}
        self._trained = {
            name: weights[name] if publishes and weights[name].dtype not in _SIXTEEN_BITS else _master(weights[name])
            for name in self._rules
        }

    def step(self, mean: Mapping[str, Tensor], untouched: Collection[str] = frozenset()) -> None:
        """Update the parameters by one step along ``mean`` (see ``Aggregate.result``) and set the buffers to it.

        ``untouched`` parameters have no gradient: they keep their value and state, and do not decay either, as with
        torch.optim where ``grad`` is None. ``mean`` is clipped in place. Memory: what torch takes for one parameter at
        a time.
        """
        with torch.no_grad():
            self._clipping.apply([mean[name] for name in self._parameters if name not in untouched])
            for name, rule in self._rules.items():
                if name in untouched:
                    continue
                tensor = self._trained[name]
                rule.step(tensor, mean[name].to(tensor.dtype), self._states[name])
                if self._publishes and tensor is not self._weights[name]:
                    self._weights[name].copy_(tensor)
            for name in self._buffers:
                self._weights[name].copy_(mean[name])

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
        if value.shape != (torch.Size() if what == _STEP else parameter.shape):
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


def _rules(spec: OuterOptimizer, layout: Layout) -> dict[str, UpdateRule]:
    """Return the rule of each parameter that is trained, by its name."""
    parameters = {tensor.name for tensor in layout.parameters}
    if not parameters:
        raise InvalidTask("the model has no parameter to train; give build_model at least one that requires grad")
    common = _rule(spec, {})
    if not spec.groups:
        return dict.fromkeys(sorted(parameters), common)
    known = parameters | {tensor.name for tensor in layout.tensors if tensor.role is Role.FROZEN}
    rules: dict[str, UpdateRule] = {}
    for group in spec.groups:
        if len(set(group.names)) < len(group.names) or rules.keys() & set(group.names):
            raise InvalidTask("the outer optimizer's groups name a parameter twice; give each one to one group")
        if unknown := sorted(set(group.names) - known):
            raise InvalidTask(f"the outer optimizer's groups name {unknown[0]!r}, which is no parameter of the model")
        rules |= dict.fromkeys(group.names, _rule(spec, group.options))
    return {name: rule for name, rule in rules.items() if name in parameters}


def _rule(spec: OuterOptimizer, own: Mapping[str, OptionValue]) -> UpdateRule:
    """Return the rule of a group with options of its ``own``."""
    known = {option.name for option in fields(RULES[spec.name])}
    options = {**spec.options, **own}
    for name in options:
        if name not in known | IGNORED_OPTIONS:
            raise InvalidTask(
                f"the outer optimizer {spec.name} has no option {name!r}; it has {', '.join(sorted(known))}"
            )
    try:
        return RULES[spec.name](**{name: value for name, value in options.items() if name in known})  # type: ignore[arg-type]  # checked by the rule
    except (ValueError, TypeError) as error:
        raise InvalidTask(f"the outer optimizer {spec.name} refuses its options: {error}") from error
