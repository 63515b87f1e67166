"""Quantized layers of a frozen base: what they keep beside their weights, and that they stay as they were loaded.

Of `bitsandbytes`, whose layers train an adapter on a CPU as on a card. Its library is not needed here: a layer's
``state_dict`` says what it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import nn

_REWRITES: Final = "support_avx512bf16_for_cpu"
"""An attribute of bitsandbytes' 4-bit layers: whether the first evaluation packs their weights anew."""
_EXTRA_STATE: Final = "_extra_state"
"""Of ``nn.Module.get_extra_state``, which is anybody's."""


def keep_as_loaded(model: nn.Module) -> None:
    """Have 4-bit layers compute from their weights as they were loaded, also to evaluate.

    Packed for processors with bfloat16 instructions they compute faster, but from scales that are rounded, and for
    good: an executor that has evaluated would train over another base than one that has not.
    """
    for module in model.modules():
        if getattr(module, _REWRITES, False):
            setattr(module, _REWRITES, False)


def beside_weights(model: nn.Module, frozen: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Return the scales, code books and forms that layers keep for ``frozen`` parameters of theirs, by name.

    They are in the state dict, and neither parameters nor buffers. Those that a layer holds as tensors are its own, not
    copies; what it writes into a tensor for the state dict alone is a new one each time.
    """
    of_integers = {name.rpartition(".")[0] for name, weight in frozen.items() if not weight.is_floating_point()}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in model.named_buffers(remove_duplicate=False)}

    def is_beside(name: str) -> bool:
        owner, _, last = name.rpartition(".")
        return last != _EXTRA_STATE and (owner in of_integers or not frozen.keys().isdisjoint(_leading(name)))

    state = model.state_dict()
    return {n: t for n, t in state.items() if n not in known and isinstance(t, torch.Tensor) and is_beside(n)}


def differing(model: nn.Module, expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Name what a model's quantized layers keep that is not as ``expected`` of them."""
    if not expected:
        return []
    now = model.state_dict()
    return [name for name, tensor in expected.items() if not torch.equal(now[name].cpu(), tensor.cpu())]


def _leading(name: str) -> Iterator[str]:
    """Yield what a dotted name begins with, short of itself."""
    while name := name.rpartition(".")[0]:
        yield name
