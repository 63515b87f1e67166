"""The inner loop's state (optimizers, schedulers, a loss scaler) to a tensor file and back, without pickle.

The loop's parts have names and torch's own ``state_dict`` and ``load_state_dict``. An optimizer numbers its parameters;
in the file they have the model's names, so that states of several clients are averaged like with like. What a state
says is in ``protocol.inner_state``: tensors, and a tree of plain values around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import safetensors.torch
import torch

from farm_client.executor.failures import CodeError, calling
from farm_client.executor.layout import ModelTensors, TensorMap, as_stored, is_finite
from protocol.codecs import TORCH_DTYPES
from protocol.errors import LayoutMismatch, MalformedTensors
from protocol.inner_state import (
    METADATA_KEY,
    PREFIX,
    Tree,
    as_json,
    checked_tree,
    float_leaf,
    is_of_state,
    largest_state_bytes,
    tag_of,
)
from protocol.tensors import HEADER_LENGTH_BYTES, MAX_HEADER_BYTES, Header, read_header

_STORABLE: Final = frozenset(TORCH_DTYPES.values())


class Stateful(Protocol):
    """A part of the inner loop that has a state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take a state on."""


class SavedState(NamedTuple):
    """A state as it goes into a tensor file."""

    tensors: TensorMap
    metadata: dict[str, str]


class StateFiles:
    """Saves and loads the states of one model's inner loop."""

    def __init__(self, tensors: ModelTensors, code_dir: Path) -> None:
        weights_bytes = sum(tensor.nbytes for tensor in tensors.changing().values())
        self._limit_bytes = largest_state_bytes(weights_bytes)
        self._code_dir = code_dir
        self._names: dict[int, str] = {}
        for name, identity in tensors.identities.items():
            self._names.setdefault(identity, name)

    def save(self, parts: Mapping[str, Stateful]) -> SavedState:
        """Return the state of these parts. Its tensors are the parts' own where they are on the CPU.

        Raises: CodeError if it holds something that no tensor file can, NaN or infinities, or is too large.
        """
        found: TensorMap = {}
        tree = {"dict": [[name, self._tree_of(part, _path("", name), found)] for name, part in parts.items()]}
        if (size_bytes := sum(tensor.nbytes for tensor in found.values())) > self._limit_bytes:
            raise CodeError(
                f"the inner optimizer's state has {size_bytes} bytes, and at most {self._limit_bytes} can be carried "
                'from round to round: use an optimizer with a smaller state, or inner_state = "kept" or "fresh"'
            )
        return SavedState(as_stored(found), {METADATA_KEY: as_json(tree)})

    def load(self, parts: Mapping[str, Stateful], file: bytes | Path) -> None:
        """Give these parts the state of a file: each goes on as if it had never stopped.

        A part that the state has nothing of stays as it is: a loss scaler is there on GPUs alone.

        Raises: MalformedTensors, LayoutMismatch if the file is damaged; CodeError if a part does not take it.
        """
        tensors, tree = _read(file)
        states = _value_of(tree, tensors)
        if not isinstance(states, dict) or not states.keys() & parts.keys():
            raise LayoutMismatch(f"the inner state is not of {', '.join(parts)}, which the inner loop has")
        for name, part in parts.items():
            if name not in states:
                continue
            with calling(f"{name}.load_state_dict()", self._code_dir):
                self._give(part, states[name])

    def _tree_of(self, part: Stateful, path: str, found: TensorMap) -> Tree:
        with calling("state_dict()", self._code_dir):
            state = part.state_dict()
        if isinstance(part, torch.optim.Optimizer):
            names = dict(enumerate(self._parameter_names(part)))
            state = {
                **state,
                "state": {names.get(key, key): value for key, value in state["state"].items()},
                "param_groups": [_without_parameters(group) for group in state["param_groups"]],
            }
        return _tree_of(state, path, found)

    def _give(self, part: Stateful, state: dict[str, Any]) -> None:
        if not isinstance(part, torch.optim.Optimizer):
            part.load_state_dict(state)
            return
        numbers = {name: number for number, name in enumerate(self._parameter_names(part))}
        groups = part.state_dict()["param_groups"]
        if len(groups) != len(state["param_groups"]):
            raise CodeError("build_optimizer makes other parameter groups than it did in the round before")
        restored = {
            **state,
            "state": {numbers.get(key, key): value for key, value in state["state"].items()},
            "param_groups": [
                {**old, "params": new["params"]} for old, new in zip(state["param_groups"], groups, strict=True)
            ],
        }
        part.load_state_dict(restored)
        _keep_dtypes(part, restored["state"])

    def _parameter_names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Return the parameters' names in the order of their numbers; ``#3`` for one that is not the model's."""
        seen = dict.fromkeys(id(p) for group in optimizer.param_groups for p in group["params"])
        return [self._names.get(identity, f"#{number}") for number, identity in enumerate(seen)]


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _keep_dtypes(optimizer: torch.optim.Optimizer, state: Mapping[Any, Any]) -> None:
    """Undo torch's cast of a state to the dtype of its parameter: some optimizers keep float32 moments of bfloat16."""
    parameters = list({id(p): p for group in optimizer.param_groups for p in group["params"]}.values())
    for number, values in state.items():
        if not isinstance(number, int) or not isinstance(values, dict):
            continue
        live = optimizer.state[parameters[number]]
        for key, value in values.items():
            now = live.get(key)
            if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor) and now.dtype != value.dtype:
                live[key] = value.to(now.device)


def _tree_of(value: Any, path: str, found: TensorMap) -> Tree:
    """Return a value as a tree, and put its tensors into ``found``. Raises: CodeError."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _float(value, path)
    return _nested(value, path, found)


def _nested(value: Any, path: str, found: TensorMap) -> Tree:
    match value:
        case torch.Tensor():
            found[path] = _checked(value, path)
            return {"tensor": path}
        case tuple():
            return {"tuple": [_tree_of(item, _path(path, i), found) for i, item in enumerate(value)]}
        case list():
            return [_tree_of(item, _path(path, i), found) for i, item in enumerate(value)]
        case Mapping() if all(type(key) in (str, int) for key in value):
            return {"dict": [[key, _tree_of(item, _path(path, key), found)] for key, item in value.items()]}
    raise CodeError(
        f"{_shown(path)} of the inner optimizer's state is a {type(value).__name__}, which cannot be carried: "
        'keep numbers, texts and tensors in it, or use inner_state = "kept" or "fresh"'
    )


def _float(value: float, path: str) -> Tree:
    try:
        return float_leaf(float(value))
    except ValueError as error:
        raise CodeError(_not_finite(path)) from error


def _checked(tensor: torch.Tensor, path: str) -> torch.Tensor:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        raise CodeError(f"{_shown(path)} of the inner optimizer's state is no dense tensor, and cannot be carried")
    if tensor.dtype not in _STORABLE:
        raise CodeError(f"{_shown(path)} of the inner optimizer's state is {tensor.dtype}, which cannot be carried")
    if not is_finite(tensor):
        raise CodeError(_not_finite(path))
    return tensor.detach()


def _not_finite(path: str) -> str:
    return f"training left NaN or infinity in {_shown(path)} of the inner optimizer: lower the learning rate"


def _path(path: str, key: str | int) -> str:
    """Return a key's place below a path; as in JSON pointers (RFC 6901), so that no two have the same."""
    step = str(key).replace("~", "~0").replace("/", "~1")
    return f"{path}/{step}" if path else f"{PREFIX}{step}"


def _shown(path: str) -> str:
    return path.removeprefix(PREFIX).replace("~1", "/").replace("~0", "~")


def _value_of(tree: Tree, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what a checked tree stands for; each tensor has memory of its own."""
    if isinstance(tree, list):
        return [_value_of(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tag, value = tag_of(tree)
    match tag:
        case "tensor":
            return tensors[value].clone()
        case "tuple":
            return tuple(_value_of(item, tensors) for item in value)
        case "dict":
            return {key: _value_of(item, tensors) for key, item in value}
        case _:
            return float(value)


def _read(file: bytes | Path) -> tuple[TensorMap, Tree]:
    try:
        tree = checked_tree(_header_of(file))
        found = safetensors.torch.load(file) if isinstance(file, bytes) else safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise MalformedTensors(f"the inner optimizer's state can't be read: {error}") from error
    tensors = {name: tensor for name, tensor in found.items() if is_of_state(name)}
    if bad := next(_not_finite_in(tensors), None):
        raise MalformedTensors(f"{_shown(bad)} of the inner optimizer's state holds NaN or infinity")
    return tensors, tree


def _header_of(file: bytes | Path) -> Header:
    if isinstance(file, bytes):
        return read_header(file)
    with file.open("rb") as opened:
        lead = opened.read(HEADER_LENGTH_BYTES)
        text = opened.read(min(int.from_bytes(lead, "little"), MAX_HEADER_BYTES))
        return read_header(lead + text, file.stat().st_size)


def _not_finite_in(tensors: TensorMap) -> Iterator[str]:
    return (name for name, tensor in tensors.items() if not is_finite(tensor))
