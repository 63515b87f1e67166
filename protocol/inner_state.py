"""An inner optimizer's state as part of a tensor file, checked from the file's header and without a tensor library.

A state is what ``state_dict`` of each part of the inner loop returns (an optimizer, a scheduler, a loss scaler): a tree
of dicts, lists and tuples. Its tensors are those of the file whose names begin with ``inner_state/``. The metadata
``inner_state`` is the tree in JSON, in which a tensor is ``{"tensor": NAME}``, a tuple ``{"tuple": [...]}``, a dict
``{"dict": [[KEY, VALUE], ...]}`` and an infinite float ``{"float": "inf"}``; all else stands for itself. An update
carries the state that its client ended with; a version's is a file of its own. docs/protocol.md has an example.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from protocol.errors import LayoutMismatch, MalformedTensors
from protocol.tensors import MAX_HEADER_BYTES, Header, TensorBytes

PREFIX: Final = "inner_state/"
METADATA_KEY: Final = "inner_state"
Tree = Any
"""What JSON can say: a state's tree, its tensors by name."""
_TIMES_WEIGHTS: Final = 16
_ALWAYS_BYTES: Final = 256 * 1024**2
LARGEST_TREE_BYTES: Final = MAX_HEADER_BYTES
"""A tree is in the header of its file."""
_DEEPEST: Final = 32
_LARGEST_INT: Final = 2**63 - 1
_TAGS: Final = ("tensor", "tuple", "dict", "float")
_INFINITIES: Final = ("inf", "-inf")


def largest_state_bytes(weights_bytes: int) -> int:
    """Return how large the state of a model may be: sixteen times its weights, and 256 MiB in any case.

    Adam has twice the weights, LBFGS two hundred times by default, which only small models can have carried.
    """
    return max(_TIMES_WEIGHTS * weights_bytes, _ALWAYS_BYTES)


def is_of_state(name: str) -> bool:
    """Whether a tensor of a file belongs to its state."""
    return name.startswith(PREFIX)


def without_state(header: Header) -> Header:
    """Return the header of an update without the state that it carries."""
    if not any(map(is_of_state, header.tensors)):
        return header
    rest = {name: entry for name, entry in header.tensors.items() if not is_of_state(name)}
    return replace(header, tensors=MappingProxyType(rest))


def state_tensors(header: Header) -> dict[str, TensorBytes]:
    """Return the tensors of the state, by their names in the file."""
    return {name: entry for name, entry in header.tensors.items() if is_of_state(name)}


def checked_tree(header: Header, limit_bytes: int | None = None) -> Tree:
    """Return the tree of a file's state, of which every tensor is there, and no other.

    Raises: MalformedTensors if it is no such tree, holds NaN or an integer over 64 bits, or has tensors of more
        than ``limit_bytes``; LayoutMismatch if the file has no state.
    """
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        raise LayoutMismatch("the update brings no state of the inner optimizer, which this task carries on")
    tensors = state_tensors(header)
    size_bytes = sum(entry.stop - entry.start for entry in tensors.values())
    if limit_bytes is not None and size_bytes > limit_bytes:
        raise MalformedTensors(f"the inner optimizer's state is over {limit_bytes} bytes")
    try:
        tree = json.loads(text, parse_constant=_refuse_constant)
        named = list(_tensors_of(tree, _DEEPEST))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MalformedTensors(f"the inner optimizer's state can't be read: {error}") from error
    if sorted(named) != sorted(tensors):
        raise MalformedTensors("the inner optimizer's state names other tensors than come with it")
    return tree


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _tensors_of(tree: Tree, depth: int) -> Iterator[str]:
    """Yield the tensors of a tree. Raises: ValueError if it is none."""
    if not depth:
        raise ValueError(f"it is nested deeper than {_DEEPEST}")
    if isinstance(tree, list):
        for item in tree:
            yield from _tensors_of(item, depth - 1)
    elif isinstance(tree, dict):
        yield from _tensors_of_tagged(tree, depth)
    elif isinstance(tree, int) and abs(tree) > _LARGEST_INT:
        raise ValueError(f"it holds an integer of {tree.bit_length()} bits")
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise ValueError("it holds a number that no float can be")


def _tensors_of_tagged(tagged: dict[str, Any], depth: int) -> Iterator[str]:
    tag, value = tag_of(tagged)
    if tag == "tensor" and isinstance(value, str):
        yield value
    elif tag == "tuple" and isinstance(value, list):
        yield from _tensors_of(value, depth)
    elif tag == "dict" and isinstance(value, list):
        for key, item in value:
            if type(key) not in (str, int):
                raise ValueError(f"a key is a {type(key).__name__}")
            yield from _tensors_of(item, depth - 1)
    elif tag != "float" or value not in _INFINITIES:
        raise ValueError(f"a {tag} is {str(value)[:40]!r}")


def tag_of(tagged: Mapping[str, Any]) -> tuple[str, Any]:
    """Return what a JSON object of a tree is, and of what. Raises: ValueError."""
    if len(tagged) != 1 or (tag := next(iter(tagged))) not in _TAGS:
        raise ValueError(f"it has an object that is none of {', '.join(_TAGS)}")
    return tag, tagged[tag]


def joined(one: Tree, other: Tree, *, prefer_other: bool) -> Tree:
    """Return one tree of two clients'. Both have passed ``checked_tree``.

    Dicts have what either has, integers (they count steps) are the larger one, and all else is ``one``'s, or
    ``other``'s where that is preferred.
    """
    if _is_count(one) and _is_count(other):
        return max(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        (tag, mine), (other_tag, theirs) = tag_of(one), tag_of(other)
        if tag == other_tag == "dict":
            return {"dict": _joined_items(mine, theirs, prefer_other=prefer_other)}
        if tag == other_tag == "tuple":
            return {"tuple": joined(mine, theirs, prefer_other=prefer_other)}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [joined(mine, theirs, prefer_other=prefer_other) for mine, theirs in zip(one, other, strict=True)]
    return other if prefer_other else one


def named_in(tree: Tree) -> set[str]:
    """Return the names of a checked tree's tensors."""
    return set(_tensors_of(tree, _DEEPEST))


def _joined_items(mine: list[Any], theirs: list[Any], *, prefer_other: bool) -> list[Any]:
    own, others = ({(type(key), key): value for key, value in items} for items in (mine, theirs))
    return [
        [key, joined(own[kind, key], others[kind, key], prefer_other=prefer_other)]
        if (kind, key) in own and (kind, key) in others
        else [key, own.get((kind, key), others.get((kind, key)))]
        for kind, key in own | others
    ]


def _is_count(value: Tree) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def as_json(tree: Tree) -> str:
    """Return the tree as the metadata has it. Raises: ValueError for NaN."""
    return json.dumps(tree, separators=(",", ":"), allow_nan=False)


def float_leaf(value: float) -> Tree:
    """Return a float as a tree has it. Raises: ValueError for NaN."""
    if math.isnan(value):
        raise ValueError("it holds NaN")
    return value if math.isfinite(value) else {"float": "inf" if value > 0 else "-inf"}
