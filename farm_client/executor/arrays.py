"""A state of arrays (NumPy, JAX, a linear model's attributes) in the place of a module: named tensors that shadow it.

Floating-point arrays are parameters, integers and booleans are buffers, as in a module. What the script holds and what
the farm sends are two copies: ``give`` writes the farm's to the script's, ``take`` reads them back.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from farm_client.executor.failures import CodeError
from protocol.codecs import TORCH_DTYPES

_SENDABLE: Final = frozenset(TORCH_DTYPES.values())


class ArrayModel(nn.Module):
    """The named arrays of a script as a module's tensors. Dots in a name are levels, as in a ``state_dict``."""

    def __init__(self, arrays: MutableMapping[str, Any]) -> None:
        """Copy what the arrays hold now. Raises: CodeError naming an entry that the farm cannot send."""
        super().__init__()
        self.arrays = arrays
        self._names = tuple(arrays)
        for name in self._names:
            if not isinstance(name, str):
                raise CodeError(f"farm.parts: the key {name!r} of the arrays is no text: name each array")
            self._register(name, _tensor_of(name, arrays[name]).clone())

    def give(self) -> None:
        """Write the farm's values into the script's arrays: in place where they can be written, else as new entries."""
        for name, tensor in self._shadows().items():
            now = self.arrays.get(name)
            values = tensor.detach()
            if not _is_written(now, values):
                self.arrays[name] = _like(now, values)

    def take(self) -> None:
        """Read what the script's arrays hold, in the dtypes that they had first.

        Raises: CodeError naming one that is gone, new, of another shape or another kind of number.
        """
        shadows = self._shadows()
        if strange := sorted(map(str, shadows.keys() ^ set(self.arrays))):
            raise CodeError(f"the array {strange[0]} was added or removed in training: keep the names that parts() saw")
        for name, shadow in shadows.items():
            now = _tensor_of(name, self.arrays[name])
            if now.shape != shadow.shape:
                raise CodeError(f"array {name} was {list(shadow.shape)} and is {list(now.shape)} after training")
            if now.is_floating_point() != shadow.is_floating_point():
                raise CodeError(f"array {name} was {shadow.dtype} and is {now.dtype} after training")
            with torch.no_grad():
                shadow.copy_(now)

    def _shadows(self) -> dict[str, torch.Tensor]:
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: own[name] for name in self._names}

    def _register(self, name: str, tensor: torch.Tensor) -> None:
        home: nn.Module = self
        *levels, last = name.split(".")
        try:
            for level in levels:
                if level not in home._modules:
                    home.add_module(level, nn.Module())
                home = home.get_submodule(level)
            if tensor.is_floating_point():
                home.register_parameter(last, nn.Parameter(tensor))
            else:
                home.register_buffer(last, tensor)
        except (AttributeError, KeyError) as error:
            raise CodeError(f"farm.parts: the array name {name!r} cannot be used ({error}): rename it") from error


def array_model(given: Any) -> nn.Module:
    """Return the module that a script trains, or one for its arrays. Raises: CodeError if it is neither."""
    if isinstance(given, nn.Module):
        return given
    if isinstance(given, MutableMapping):
        return ArrayModel(given)
    hint = "; its arrays must be replaceable: dict(…)" if isinstance(given, Mapping) else ""
    raise CodeError(
        f"farm.parts takes a torch.nn.Module, or a mapping of names to arrays, not {type(given).__name__}{hint}"
    )


def _tensor_of(name: str, array: Any) -> torch.Tensor:
    """Return an array's values as a tensor, which may share its memory. Raises: CodeError."""
    if isinstance(array, torch.Tensor):
        tensor = array.detach()
    elif isinstance(array, (np.ndarray, np.generic)) or not hasattr(array, "__dlpack__"):
        tensor = _from_numpy(name, array)
    else:
        tensor = torch.utils.dlpack.from_dlpack(array)
    if tensor.dtype not in _SENDABLE or tensor.layout is not torch.strided:
        raise _refusal(name, str(tensor.dtype).removeprefix("torch."))
    return tensor


def _from_numpy(name: str, array: Any) -> torch.Tensor:
    if not hasattr(array, "__array__"):
        raise CodeError(f"farm.parts: {name} is a {type(array).__name__}, not an array: write np.array({name})")
    values = np.asarray(array)
    try:
        return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))
    except TypeError as error:
        raise _refusal(name, str(values.dtype)) from error


def _refusal(name: str, dtype: str) -> CodeError:
    known = ", ".join(sorted(str(known).removeprefix("torch.") for known in _SENDABLE))
    return CodeError(f"farm.parts: array {name} is {dtype}, which the farm cannot send: convert it to one of {known}")


def _is_written(array: Any, values: torch.Tensor) -> bool:
    """Write into an array of the script's if it can be, and is still of the form that it had."""
    if isinstance(array, torch.Tensor) and (array.dtype, array.shape) == (values.dtype, values.shape):
        array.detach().copy_(values)
        return True
    is_own = isinstance(array, np.ndarray) and array.flags.writeable
    if is_own and array.shape == tuple(values.shape) and array.dtype == _numpy_of(values).dtype:
        np.copyto(array, _numpy_of(values))
        return True
    return False


def _like(array: Any, values: torch.Tensor) -> Any:
    """Return the values as an array of the same library: by the array API (2022.12) if it is not NumPy's or torch's."""
    if isinstance(array, torch.Tensor):
        return values.clone()
    space = getattr(array, "__array_namespace__", None)
    if space is None or isinstance(array, (np.ndarray, np.generic)):
        copy = _numpy_of(values).copy()
        return copy[()] if isinstance(array, np.generic) else copy
    return space().from_dlpack(values.clone())


def _numpy_of(values: torch.Tensor) -> np.ndarray[Any, Any]:
    return values.cpu().numpy()
