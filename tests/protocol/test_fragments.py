"""How a model is cut into fragments: by layers, each parameter in one, none empty, whatever the names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.fragments import FragmentPattern, fragment_of_round, fragments_of
from protocol.tensors import Layout, Role, TensorSpec

STRIDED, SEQUENTIAL = FragmentPattern.STRIDED, FragmentPattern.SEQUENTIAL


def layout_of(sizes: dict[str, int]) -> Layout:
    return Layout(tuple(TensorSpec(name, "F32", (size,)) for name, size in sorted(sizes.items())))


PARTS = ("a.weight", "mlp.0.weight", "mlp.1.bias")
BLOCKS = layout_of({f"blocks.{n}.{part}": 10 for n in range(12) for part in PARTS})


def _layer(name: str) -> str:
    """Return the name up to its first number, or its module's."""
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join([*parts[: numbered[0]], str(int(parts[numbered[0]]))]) if numbered else ".".join(parts[:-1])


@given(
    st.dictionaries(
        st.from_regex(r"\A[ab](\.[0-9]{1,2})?(\.[xy])?(\.[0-9])?\.weight\Z"),
        st.integers(0, 50),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 8),
    st.sampled_from(FragmentPattern),
)
def test_each_parameter_is_in_one_fragment_and_none_is_empty(
    sizes: dict[str, int], count: int, pattern: FragmentPattern
) -> None:
    layout = layout_of(sizes)
    layers = len({_layer(name) for name in sizes})
    if layers < count:
        with pytest.raises(ValueError, match=f"{layers} layers, which can't be cut into {count}"):
            fragments_of(layout, count, pattern)
        return
    found = fragments_of(layout, count, pattern)
    assert found.keys() == sizes.keys()
    assert set(found.values()) == set(range(count))


def test_strided_takes_every_so_manieth_layer_by_its_number() -> None:
    found = fragments_of(BLOCKS, 4, STRIDED)
    assert {n: found[f"blocks.{n}.a.weight"] for n in (0, 1, 2, 3, 4, 10, 11)} == {
        0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 10: 2, 11: 3
    }  # fmt: skip
    assert all(found[f"blocks.{n}.mlp.1.bias"] == n % 4 for n in range(12))


def test_sequential_takes_layers_that_follow_each_other() -> None:
    found = fragments_of(BLOCKS, 4, SEQUENTIAL)
    assert [found[f"blocks.{n}.a.weight"] for n in range(12)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_sequential_fragments_are_about_one_size() -> None:
    found = fragments_of(
        layout_of({f"l.{n}.w": size for n, size in enumerate([90, 10, 10, 10, 60, 20])}), 2, SEQUENTIAL
    )
    assert [found[f"l.{n}.w"] for n in range(6)] == [0, 0, 1, 1, 1, 1]


def test_buffers_and_frozen_tensors_are_in_none() -> None:
    layout = Layout(
        (
            TensorSpec("a.weight", "F32", (3,)),
            TensorSpec("b.mean", "F32", (3,), Role.BUFFER),
            TensorSpec("c.weight", "F32", (3,), Role.FROZEN),
        )
    )
    assert fragments_of(layout, 1, STRIDED) == {"a.weight": 0}


def test_rounds_take_fragments_in_turn() -> None:
    assert [fragment_of_round(number, 3) for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]
