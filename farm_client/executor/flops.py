"""How many floating point operations a task's steps take: counted on a batch that is trained on anyway.

Each operator that torch runs meanwhile is looked up among torch's own formulas (``torch.utils.flop_counter``): matrix
products, convolutions and attention, a multiplication and an addition being two operations. What is only done element
by element does not count, as is usual. ``FlopCounterMode`` itself is not used: it puts hooks on all modules, and runs
some operators in another way. Here the very same operators run, so that no bit of the weights is another.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from farm_client.executor.means import remark
from protocol.bounds import MAX_COUNT

_MOST_SHARE: Final = 0.005
"""Of the time that the steps take, at most so much goes into counting batches of further shapes."""
_MOST_SHAPES: Final = 64
_MOST_NAMES: Final = 5
_aten: Final = torch.ops.aten
_FORMULAS: Final[Mapping[Any, Callable[..., int]]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
    **flop_registry,
}
"""torch's, and its own for attention on a CPU, which it has no entry of: a card counts the same for the same model."""
_TORCHS: Final = frozenset({"aten", "prim", "prims", "profiler", "inductor", "debugprims", "fsdp", "c10d"})
_UNCOUNTED: Final = (
    "rnn",
    "lstm",
    "gru",
    "cdist",
    "fft",
    "linalg",
    "cholesky",
    "grouped_mm",
    "int_mm",
    "linear",
    "einsum",
)
"""In the names of torch's own operators that are more than element by element, and have no formula."""
_METADATA: Final = frozenset(
    {
        _aten.sym_is_contiguous.default,
        _aten.is_contiguous.default,
        _aten.is_contiguous.memory_format,
        _aten.is_strides_like_format.default,
        _aten.is_non_overlapping_and_dense.default,
        _aten.size.default,
        _aten.sym_size.default,
        _aten.stride.default,
        _aten.sym_stride.default,
        _aten.storage_offset.default,
        _aten.sym_storage_offset.default,
        _aten.numel.default,
        _aten.sym_numel.default,
        _aten.dim.default,
        torch.ops.prim.layout.default,
    }
)
"""What tensors of a class of their own are asked, and answer themselves."""


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own __init_subclass__
    """Counts what runs inside of it, on this thread and in its backward passes."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.flops = 0
        self.uncounted: set[str] = set()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave what the code compiles compiled; it would run as written otherwise, with other bits."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _METADATA:
            return NotImplemented
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = getattr(func, "_overloadpacket", func)
        formula = _FORMULAS.get(operator)
        if formula is None:
            if _is_work(func):
                self.uncounted.add(str(operator))
            return out
        try:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        except Exception:
            self.uncounted.add(str(operator))
        return out


def _is_work(func: Any) -> bool:
    """Whether an operator without a formula does more than a few operations an element, or nobody here can say."""
    name = str(func.name()) if callable(getattr(func, "name", None)) else str(func)
    namespace, _, operator = name.partition("::")
    return namespace not in _TORCHS or any(part in operator for part in _UNCOUNTED)


class FlopMeter:
    """Counts the second batch of an executor's life, and batches of further shapes while that costs next to nothing."""

    def __init__(self, *, is_compiled: bool = False, clock: Callable[[], float] = time.perf_counter) -> None:
        """``is_compiled``: nothing is counted, for compiled steps hide what they do."""
        self._clock = clock
        self._is_over = is_compiled
        self._shapes: set[Any] = set()
        self._plain_steps = 0
        self._plain_seconds = 0.0
        self._spent_seconds = 0.0
        self._flops = 0
        self._samples = 0
        self._uncounted: set[str] = set()

    @property
    def per_sample(self) -> int:
        """Floating point operations that a sample takes, forward and backward: whole ones; 0 if that is not known."""
        return 0 if not self._samples else min(self._flops // self._samples, MAX_COUNT)

    @contextmanager
    def step(self, batch: Any, samples: int) -> Iterator[None]:
        """Surround a step on a batch of so many samples; an error inside passes, and nothing was counted."""
        shape = None if self._is_over else shape_of(batch)
        started = self._clock()
        if shape is None or not self._is_due(shape):
            yield
            self._plain_steps += 1
            self._plain_seconds += self._clock() - started
            return
        counting = _Counting()
        with counting:
            yield
        usual = self._plain_seconds / self._plain_steps
        self._spent_seconds += max(self._clock() - started - usual, 0.0)
        self._take_in(counting, samples)
        self._shapes.add(shape)

    def _is_due(self, shape: Any) -> bool:
        if not self._plain_steps or shape in self._shapes or len(self._shapes) >= _MOST_SHAPES:
            return False
        return not self._shapes or self._spent_seconds <= _MOST_SHARE * self._plain_seconds

    def _take_in(self, counting: _Counting, samples: int) -> None:
        if _has_compiled():
            self._is_over, self._flops, self._samples = True, 0, 0
            return
        if counting.flops:
            self._flops += counting.flops
            self._samples += samples
        if new := counting.uncounted - self._uncounted:
            self._uncounted |= new
            names = ", ".join(sorted(new)[:_MOST_NAMES])
            more = f" and {len(new) - _MOST_NAMES} more" if len(new) > _MOST_NAMES else ""
            remark(f"the FLOPs that this work is credited with leave out {names}{more}: torch has no formula for it")


def shape_of(batch: Any) -> Any:
    """Return what of a batch's shape decides how much work a sample is: the tensors' sizes but for the first."""
    if isinstance(batch, torch.Tensor):
        return tuple(batch.shape[1:])
    if isinstance(batch, Mapping):
        return tuple(shape_of(value) for value in batch.values())
    if isinstance(batch, list | tuple):
        return tuple(shape_of(value) for value in batch[:_MOST_NAMES])
    return ()


def _has_compiled() -> bool:
    """Whether anything was compiled in this process: what runs compiled is not seen as operators."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils is not None and bool(getattr(utils, "counters", {}).get("frames"))
