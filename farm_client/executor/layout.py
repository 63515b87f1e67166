"""From a torch model to the farm's named tensors and back; `farm submit` and the executor use the same rules.

Names are those of ``state_dict``. A parameter that requires gradients has the role parameter, another one is frozen,
a persistent buffer is a buffer. A tensor with several names (tied weights) is stored once, under its first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from farm_client.executor.failures import CodeError, sendable
from farm_client.executor.own_parts import Parted, own_part
from farm_client.executor.quantized import beside_weights, keep_as_loaded
from protocol.codecs import tensor_file
from protocol.digests import new_hasher
from protocol.tensors import Layout, Role, TensorSpec, weights_metadata

TensorMap = dict[str, torch.Tensor]
_TensorT = TypeVar("_TensorT", bound=torch.Tensor)

MOST_PINNED_BYTES: Final = 2 << 30
_RESERVED_NAME: Final = "__metadata__"
"""Of safetensors' own."""
_DTYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class ModelTensors:
    """A model's tensors by role. ``parameters`` and ``frozen`` stay the model's own for its whole life.

    A buffer may be replaced by the model's code, so ``buffers`` are looked up at each use.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    frozen: Mapping[str, nn.Parameter]
    buffer_names: tuple[str, ...]
    constant_names: tuple[str, ...]
    """Buffers that are infinite from the start, such as attention masks: frozen, since a mean of them means nothing."""
    beside: Mapping[str, torch.Tensor]
    """What quantized layers keep beside their frozen weights: frozen as well."""
    tied: Mapping[str, str]
    identities: Mapping[str, int]
    """The ``id`` of each parameter, by all of its names."""
    forms: Mapping[str, tuple[torch.Size, torch.dtype]]
    """What each tensor that training changes was like when the model was built."""
    shards: Parted | None = None
    """Who holds the model together with other processes, if several do."""
    whole_digest: str | None = None
    """The digest of the frozen tensors of a model that is in parts since."""

    @classmethod
    def of(cls, model: nn.Module) -> ModelTensors:
        """Read the roles of a model's tensors.

        Raises: CodeError if nothing can be trained, or a tensor's dtype cannot cross the wire.
        """
        keep_as_loaded(model)
        tied: dict[str, str] = {}
        named_parameters = dict(model.named_parameters(remove_duplicate=False))
        parameters = _named_once(named_parameters, tied)
        saved = model.state_dict().keys()
        named_buffers = dict(model.named_buffers(remove_duplicate=False))
        buffers = _named_once({n: b for n, b in named_buffers.items() if n in saved}, tied)
        for name, tensor in (parameters | buffers).items():
            _check_sendable(name, tensor)
        trained = {n: p for n, p in parameters.items() if p.requires_grad}
        if not trained:
            raise CodeError(
                "the model has no trainable parameter: leave some with requires_grad; layers in a plain list are none "
                "of its own, those in a torch.nn.ModuleList are"
            )
        frozen = {n: p for n, p in parameters.items() if not p.requires_grad}
        beside = beside_weights(model, frozen)
        for name, tensor in beside.items():
            _check_sendable(name, tensor)
        constants = tuple(name for name, buffer in buffers.items() if not is_finite(buffer))
        changing = tuple(name for name in buffers if name not in constants)
        identities = {name: id(parameter) for name, parameter in named_parameters.items()}
        forms = {n: _form(t) for n, t in {**trained, **{n: buffers[n] for n in changing}}.items()}
        return cls(model, trained, frozen, changing, constants, beside, tied, identities, forms)

    def in_parts(self, shards: Parted) -> ModelTensors:
        """Return the tensors of the same model now that other processes hold parts of it, under the same names."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        return replace(
            self,
            parameters={name: named[name] for name in self.parameters},
            frozen={name: named[name] for name in self.frozen},
            identities={name: id(parameter) for name, parameter in named.items()},
            shards=shards,
        )

    def placed(self, weights: Mapping[str, torch.Tensor]) -> TensorMap:
        """Return weights on the model's device; of a model in parts, this process's own."""
        device = next(iter(self.parameters.values())).device
        if self.shards is None:
            return {name: tensor.to(device) for name, tensor in weights.items()}
        own, shards = self.all(), self.shards
        return {n: shards.own(own[n], t) if n in own else t for n, t in weights.items()}

    @property
    def buffers(self) -> TensorMap:
        """Return the persistent buffers that training may change, as they are now."""
        return self._buffers(self.buffer_names)

    def all(self) -> TensorMap:
        """Return every tensor of a weights file: the model's own, not copies."""
        buffers = self._buffers(self.buffer_names + self.constant_names)
        return {**self.parameters, **self.frozen, **self.beside, **buffers}

    def clear_gradients(self) -> None:
        """Drop all gradients, whatever the model's own ``zero_grad`` does."""
        for parameter in (*self.parameters.values(), *self.frozen.values()):
            parameter.grad = None

    def check_structure(self) -> None:
        """Look whether the model still has the parameters that it was built with: no others are trained and sent.

        Raises: CodeError naming one that was made, replaced or removed, or a tensor of another shape than it had.
        """
        self._check_parameters()
        for name, tensor in self.changing().items():
            if _form(tensor) != self.forms[name]:
                was, now = (f"{list(s)} {str(d).removeprefix('torch.')}" for s, d in (self.forms[name], _form(tensor)))
                raise CodeError(
                    f"tensor {name} was {was} and is {now} after training, which cannot be added up: keep its shape "
                    "and dtype, or register the buffer with persistent=False"
                )

    def _check_parameters(self) -> None:
        now = {name: id(p) for name, p in self.model.named_parameters(remove_duplicate=False)}
        if now == self.identities:
            return
        name = min(name for name in now.keys() | self.identities.keys() if now.get(name) != self.identities.get(name))
        if name not in self.identities:
            raise CodeError(
                f"the model made the parameter {name} after it was built, which nobody would train or send: make all "
                "layers in build_model, and run one input through a model that makes them as it goes"
            )
        what = "replaced by another tensor" if name in now else "removed"
        raise CodeError(
            f"the parameter {name} was {what} in training, and that would be lost: change its values in place"
        )

    def pulled(self) -> TensorMap:
        """Return what `farm pull` writes: every tensor, under each of its names."""
        own = self.all()
        return own | {name: own[first] for name, first in self.tied.items()}

    def layout(self) -> Layout:
        """Return the wire layout, sorted by name."""
        roles = self._roles()
        specs = (
            TensorSpec(name, _DTYPES[tensor.dtype], tuple(tensor.shape), roles.get(name, Role.PARAMETER))
            for name, tensor in sorted(self.all().items())
        )
        return Layout(tuple(specs), self.tied)

    def changing(self) -> TensorMap:
        """Return what a version of the weights has: parameters and buffers. The model's own tensors, not copies."""
        return {**self.parameters, **self.buffers}

    def still(self) -> TensorMap:
        """Return what never changes: frozen parameters, with what is kept beside them, and constant buffers.

        They are the model's own tensors, not copies.
        """
        return {**self.frozen, **self.beside, **self._buffers(self.constant_names)}

    def weights_file(self) -> bytes:
        """Return what training may change as the bytes of a weights file; equal models give equal bytes."""
        return self._file(self.changing())

    def frozen_file(self) -> bytes | None:
        """Return the frozen tensors as the bytes of a weights file, or None if there are none."""
        still = self.still()
        return self._file(still) if still else None

    def frozen_digest(self) -> str | None:
        """Return the digest of ``frozen_file``, which is not made for it."""
        still = self.still()
        if not still or self.whole_digest is not None:
            return self.whole_digest
        hasher = new_hasher()
        for piece in self._pieces(still):
            hasher.update(piece)
        return hasher.hexdigest()

    def _file(self, tensors: TensorMap) -> bytes:
        return b"".join(self._pieces(tensors))

    def _pieces(self, tensors: TensorMap) -> Sequence[bytes | memoryview]:
        roles = {name: role for name, role in self._roles().items() if name in tensors}
        tied = {alias: name for alias, name in self.tied.items() if name in tensors}
        return tensor_file(as_stored(tensors), weights_metadata(roles, tied))

    def load(self, weights: Mapping[str, torch.Tensor], own: TensorMap | None = None) -> None:
        """Copy weights into ``own`` tensors of the model (by default all), in place.

        Raises: CodeError naming the tensors if they are not this model's: its code builds different models.
        """
        own = self.all() if own is None else own
        if own.keys() != weights.keys():
            names = ", ".join(sorted(own.keys() ^ weights.keys())[:3])
            raise CodeError(f"build_model does not build the submitted model: {names} exist only on one side")
        with torch.no_grad():
            if self.shards is not None:
                self.shards.begin()
                weights = self.placed(weights)
            for name, tensor in own.items():
                if (tensor.shape, tensor.dtype) != (weights[name].shape, weights[name].dtype):
                    raise CodeError(f"build_model does not build the submitted model: {name} has another shape")
                tensor.copy_(weights[name])

    def _buffers(self, names: tuple[str, ...]) -> TensorMap:
        if not names:
            return {}
        now = dict(self.model.named_buffers(remove_duplicate=False))
        if lost := [name for name in names if name not in now]:
            raise CodeError(f"the buffer {lost[0]} is gone: keep it a tensor, or register it with persistent=False")
        return {name: now[name] for name in names}

    def _roles(self) -> dict[str, Role]:
        frozen = dict.fromkeys((*self.frozen, *self.beside, *self.constant_names), Role.FROZEN)
        return frozen | dict.fromkeys(self.buffer_names, Role.BUFFER)


def _form(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no element is NaN or infinite; integers never are. One pass, without a temporary."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    part = own_part(tensor.detach())
    if not part.numel():
        return True
    low, high = torch.aminmax(part)
    return math.isfinite(low.item()) and math.isfinite(high.item())


def apart(tensors: Mapping[str, torch.Tensor], into: Mapping[str, torch.Tensor] | None = None) -> TensorMap:
    """Return contiguous copies on the CPU, which nothing that is done to the tensors later changes.

    A card writes them by itself, all in one go, into pinned memory, unless that would be more than a machine should
    keep back for it: torch keeps pinned memory for the next time. ``into``: copies that nobody needs any more, whose
    memory is taken where it fits, because a system gives new memory page by page.
    """
    on_cards = [tensor for tensor in tensors.values() if tensor.is_cuda]
    is_pinned = bool(on_cards) and sum(tensor.nbytes for tensor in on_cards) <= MOST_PINNED_BYTES
    copies = {
        name: _memory_for(tensor, (into or {}).get(name), is_pinned=is_pinned and tensor.is_cuda).copy_(
            tensor.detach(), non_blocking=True
        )
        for name, tensor in tensors.items()
    }
    if on_cards:
        torch.cuda.synchronize(on_cards[0].device)
    return copies


def _memory_for(tensor: torch.Tensor, old: torch.Tensor | None, *, is_pinned: bool) -> torch.Tensor:
    if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
        return old
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_pinned)


def as_stored(tensors: Mapping[str, torch.Tensor]) -> TensorMap:
    """Return the tensors as a tensor file holds them: on the CPU, contiguous, each with memory of its own."""
    stored: TensorMap = {}
    addresses: set[int] = set()
    fetched = apart({name: tensor for name, tensor in tensors.items() if tensor.is_cuda})
    for name, tensor in tensors.items():
        flat = fetched.get(name, tensor.detach()).cpu().contiguous()
        address = flat.untyped_storage().data_ptr()
        stored[name] = flat.clone() if address in addresses else flat
        addresses.add(address)
    return stored


def _check_sendable(name: str, tensor: torch.Tensor) -> None:
    if name != sendable(name) or name == _RESERVED_NAME:
        raise CodeError(f"the tensor name {name!r} cannot be written into a weights file: rename it")
    if tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
        raise CodeError(
            f"tensor {name} is {kind}, which the farm cannot send: make it dense, or register the buffer with "
            "persistent=False, so that each client builds its own"
        )
    if hasattr(tensor, "__tensor_flatten__"):
        raise CodeError(
            f"tensor {name} is a {type(tensor).__name__}, several tensors in one, which the farm cannot send: quantize "
            "the base with bitsandbytes, whose layers hold plain tensors"
        )
    if is_lazy(tensor):
        raise CodeError(f"tensor {name} has no shape yet: run the lazy model on one input in build_model")
    if tensor.dtype not in _DTYPES:
        raise CodeError(f"tensor {name} is {tensor.dtype}, which the farm cannot send; convert the model")


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors hold the same values; NaN is equal to NaN."""
    return torch.equal(one, other) or (
        one.is_floating_point() and torch.equal(one.nan_to_num(nan=0.0), other.nan_to_num(nan=0.0))
    )


def _named_once(tensors: Mapping[str, _TensorT], tied: dict[str, str]) -> dict[str, _TensorT]:
    """Keep each tensor under its first name and write its other names to ``tied``."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            tied[name] = known
    return {name: tensors[name] for name in first.values()}
