"""Fragments of a model, one of which travels in each round: Streaming DiLoCo. What makes up each, and whose turn it is.

Source: Douillard et al., arXiv:2501.18512. There a fragment is some layers; ``strided`` takes every so-manieth layer,
``sequential`` those that follow each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from protocol.tensors import Layout

_LAYER: Final = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")


class FragmentPattern(StrEnum):
    """Which layers make up a fragment."""

    STRIDED = "strided"
    """Every so-manieth one: the first layer is in the first fragment, the second in the second, and so on in turn."""
    SEQUENTIAL = "sequential"
    """Layers that follow each other, cut where fragments are of about one size."""


def fragments_of(layout: Layout, count: int, pattern: FragmentPattern) -> dict[str, int]:
    """Return the number of the fragment, from 0, that each parameter of the layout belongs to.

    A layer is what has one number in its name (``blocks.3.``, as in ``nn.Sequential`` and ``nn.ModuleList``), the
    outermost where there are several; what has none, such as an embedding, is a layer by its module's name. Layers are
    in the order of their numbers, and of their names before.

    Raises: ValueError if there are fewer layers than fragments.
    """
    layers: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for spec in layout.parameters:
        layers.setdefault(_layer_of(spec.name), []).append((spec.name, spec.elements))
    if len(layers) < count:
        raise ValueError(f"the model has {len(layers)} layers, which can't be cut into {count} fragments")
    ordered = [layers[key] for key in sorted(layers)]
    numbers = (
        (index % count for index in range(len(ordered)))
        if pattern is FragmentPattern.STRIDED
        else _in_sequence([sum(elements for _, elements in layer) for layer in ordered], count)
    )
    return {name: number for number, layer in zip(numbers, ordered, strict=True) for name, _ in layer}


def fragment_of_round(number: int, count: int) -> int:
    """Return which fragment travels in a round."""
    return number % count


def _layer_of(name: str) -> tuple[str, int]:
    if (found := _LAYER.match(name)) is None:
        return name.rpartition(".")[0], -1
    prefix, _, number = found.group().rpartition(".")
    return prefix, int(number)


def _in_sequence(sizes: list[int], count: int) -> Iterator[int]:
    """Yield the fragment of each layer: as near to equal sizes as layers in sequence allow, none without a layer."""
    total, done = max(sum(sizes), 1), 0
    before = -1
    for index, size in enumerate(sizes):
        middle = (done + size / 2) * count / total
        least = max(before, count - (len(sizes) - index))
        number = min(max(int(middle), least), before + 1, count - 1)
        yield number
        before, done = number, done + size
