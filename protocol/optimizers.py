"""The optimizers that a server can step: torch.optim's by name, with their options, defaults and bounds.

They are those that need nothing but a gradient: LBFGS asks for the loss again, SparseAdam for sparse gradients.
Besides those that were made for servers: FedAdagrad, FedAdam and FedYogi (Reddi et al., arXiv:2003.00295), and
delayed Nesterov (Liu et al., arXiv:2401.09135) and HeLoCo (arXiv:2606.00271) for asynchronous ones.
``coordinator.numerics.update_rules`` steps them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from protocol.bounds import Finite, Int64, Word

OptimizerName = Literal[
    "sgd",
    "adam",
    "adamw",
    "adadelta",
    "adafactor",
    "adagrad",
    "adamax",
    "asgd",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "delayed_nesterov",
    "heloco",
]
OptionValue = Finite | Int64 | bool | Word | tuple[Finite | None, Finite] | tuple[Finite, Finite, Finite] | None
"""What an optimizer's keyword argument may be."""
IGNORED_OPTIONS: Final = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Options that only change how it is computed; accepted, so that an optimizer's defaults can be sent as they are."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number from ``low`` to ``high``; with ``below`` it stays under ``high``, with ``above`` over ``low``."""

    default: float
    low: float = 0.0
    high: float = math.inf
    above: bool = False
    below: bool = False
    is_whole: bool = False

    def problem(self, value: object) -> str | None:
        """Return what it must be, if ``value`` is not that."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a number"
        if self.is_whole and not isinstance(value, int):
            return "must be a whole number"
        if not self.low <= value <= self.high or (value == self.low and self.above):
            return self._must()
        return self._must() if value == self.high and self.below else None

    def _must(self) -> str:
        if (self.low, self.high, self.above) == (0.0, math.inf, False):
            return "must not be negative"
        low = "" if self.low == -math.inf else f"{'over' if self.above else 'at least'} {self.low:g}"
        high = "" if self.high == math.inf else f"{'below' if self.below else 'at most'} {self.high:g}"
        return f"must be {' and '.join(part for part in (low, high) if part)}"


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    default: bool = False

    def problem(self, value: object) -> str | None:
        """Return what it must be, if ``value`` is not that."""
        return None if isinstance(value, bool) else "must be true or false"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words, or none."""

    words: tuple[str, ...]
    default: None = None

    def problem(self, value: object) -> str | None:
        """Return what it must be, if ``value`` is not that."""
        return None if value is None or value in self.words else f"must be one of {', '.join(self.words)}"


@dataclass(frozen=True, slots=True)
class Several:
    """A tuple of numbers, each with its own bounds; the first may be absent where ``may_lack_first``."""

    parts: tuple[Number, ...]
    may_lack_first: bool = False

    @property
    def default(self) -> tuple[float | None, ...]:
        """Return all defaults."""
        return tuple(
            None if self.may_lack_first and not place else part.default for place, part in enumerate(self.parts)
        )

    def problem(self, value: object) -> str | None:
        """Return what it must be, if ``value`` is not that."""
        if not isinstance(value, tuple | list) or len(value) != len(self.parts):
            return f"must be {len(self.parts)} numbers"
        for place, (number, part) in enumerate(zip(value, self.parts, strict=True)):
            if number is None and self.may_lack_first and place == 0:
                continue
            if (problem := part.problem(number)) is not None:
                return f"{problem} at index {place}"
        return None


Option = Number | Flag | Choice | Several


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimizer: the class that it is in ``torch.optim``, and its options by their names there.

    Those of servers alone are no class of torch, and their options are named as in their paper.
    """

    torch_name: str | None
    options: Mapping[str, Option]
    matrices_only: bool = False
    """Whether it steps parameters of two dimensions and no others."""

    def problem(self, options: Mapping[str, object]) -> str | None:
        """Return what is wrong with the options of a parameter group, to be said of the optimizer; None if nothing."""
        for name, value in options.items():
            if name in IGNORED_OPTIONS:
                continue
            if name not in self.options:
                return f"has no option {name!r}; it has {', '.join(sorted(self.options))}"
            if (problem := self.options[name].problem(value)) is not None:
                return f"refuses its options: {name} is {value}, it {problem}"
        if (
            options.get("nesterov")
            and self.torch_name == "SGD"
            and (not options.get("momentum") or options.get("dampening"))
        ):
            return "refuses its options: nesterov needs a momentum, and no dampening"
        return self._problem_of_delay(options) if "delay" in self.options else None

    def _problem_of_delay(self, options: Mapping[str, object]) -> str | None:
        """Return what is wrong with numbers of delayed Nesterov that are each fine."""
        delay, activation = (options.get(name, self.options[name].default) for name in ("delay", "activation"))
        if not isinstance(delay, int) or not isinstance(activation, int | float) or activation * delay <= 1:
            return None
        return f"refuses its options: activation is {activation}, it must be at most 1 / delay, {1 / delay:g}"


_LR: Final = Number(1e-3)
_ANY: Final = Number(0.0, low=-math.inf)
_COMMON: Final[Mapping[str, Option]] = {"lr": _LR, "weight_decay": Number(0.0), "maximize": Flag()}
_BETAS: Final = Several((Number(0.9, high=1.0, below=True), Number(0.999, high=1.0, below=True)))
_ADAM: Final[Mapping[str, Option]] = {**_COMMON, "betas": _BETAS, "eps": Number(1e-8)}


def _optimizer(name: str | None, *options: Mapping[str, Option], matrices_only: bool = False) -> Optimizer:
    merged = {key: option for each in options for key, option in each.items()}
    return Optimizer(name, MappingProxyType(merged), matrices_only)


def _of_servers(**options: Number) -> Optimizer:
    """Return one of Reddi et al., with their values: ``tau`` is both its adaptivity and the root of its first v."""
    return _optimizer(None, {"lr": Number(0.1), "tau": Number(1e-3, above=True), **options})


def _decay(default: float) -> Number:
    return Number(default, high=1.0, below=True)


OPTIMIZERS: Final[Mapping[str, Optimizer]] = MappingProxyType(
    {
        "sgd": _optimizer("SGD", _COMMON, {"momentum": Number(0.0), "dampening": _ANY, "nesterov": Flag()}),
        "adam": _optimizer("Adam", _ADAM, {"amsgrad": Flag()}),
        "adamw": _optimizer("AdamW", _ADAM, {"amsgrad": Flag(), "weight_decay": Number(0.01)}),
        "adadelta": _optimizer(
            "Adadelta", _COMMON, {"lr": Number(1.0), "rho": Number(0.9, high=1.0), "eps": Number(1e-6)}
        ),
        "adafactor": _optimizer(
            "Adafactor",
            _COMMON,
            {
                "lr": Number(1e-2),
                "beta2_decay": Number(-0.8, low=-math.inf, high=0.0),
                "eps": Several((Number(0.0), Number(1e-3)), may_lack_first=True),
                "d": Number(1.0, low=1.0),
            },
        ),
        "adagrad": _optimizer(
            "Adagrad",
            _COMMON,
            {
                "lr": Number(1e-2),
                "lr_decay": Number(0.0),
                "initial_accumulator_value": Number(0.0),
                "eps": Number(1e-10),
            },
        ),
        "adamax": _optimizer("Adamax", _ADAM, {"lr": Number(2e-3)}),
        "asgd": _optimizer(
            "ASGD",
            _COMMON,
            {
                "lr": Number(1e-2),
                "lambd": replace(_ANY, default=1e-4),
                "alpha": replace(_ANY, default=0.75),
                "t0": replace(_ANY, default=1e6),
            },
        ),
        "muon": _optimizer(
            "Muon",
            {
                "lr": _LR,
                "weight_decay": Number(0.1),
                "momentum": Number(0.95),
                "nesterov": Flag(default=True),
                "ns_coefficients": Several(tuple(replace(_ANY, default=c) for c in (3.4445, -4.775, 2.0315))),
                "eps": Number(1e-7),
                "ns_steps": Number(5, low=0, high=99, is_whole=True),
                "adjust_lr_fn": Choice(("original", "match_rms_adamw")),
            },
            matrices_only=True,
        ),
        "nadam": _optimizer(
            "NAdam",
            _ADAM,
            {"lr": Number(2e-3), "momentum_decay": Number(4e-3), "decoupled_weight_decay": Flag()},
        ),
        "radam": _optimizer("RAdam", _ADAM, {"decoupled_weight_decay": Flag()}),
        "rmsprop": _optimizer(
            "RMSprop",
            _COMMON,
            {
                "lr": Number(1e-2),
                "alpha": Number(0.99),
                "eps": Number(1e-8),
                "momentum": Number(0.0),
                "centered": Flag(),
            },
        ),
        "rprop": _optimizer(
            "Rprop",
            {
                "lr": Number(1e-2),
                "etas": Several((Number(0.5, high=1.0, above=True, below=True), Number(1.2, low=1.0, above=True))),
                "step_sizes": Several((Number(1e-6), Number(50.0))),
                "maximize": Flag(),
            },
        ),
        "fedadagrad": _of_servers(beta1=_decay(0.0)),
        "fedadam": _of_servers(beta1=_decay(0.9), beta2=_decay(0.99)),
        "fedyogi": _of_servers(beta1=_decay(0.9), beta2=_decay(0.99)),
        "delayed_nesterov": _optimizer(
            None,
            {
                "lr": Number(0.7),
                "momentum": _decay(0.9),
                "delay": Number(4, low=1, high=10**6, is_whole=True),
                "activation": Number(0.0, high=1.0),
            },
        ),
        "heloco": _optimizer(
            None,
            {
                "lr": Number(0.7),
                "momentum": _decay(0.9),
                "look_ahead": Flag(default=True),
                "c_ok": Number(0.2, high=1.0),
                "k_s": Number(0.5),
                "k_d": Number(1.0),
                "kappa": Number(3.0),
                "beta_max": Number(0.5, high=1.0),
                "eps": Number(1e-8, high=1e-3, above=True),
            },
        ),
    }
)
"""Every optimizer by the name that a recipe calls it."""
