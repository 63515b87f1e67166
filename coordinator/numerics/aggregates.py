"""Which aggregate a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from coordinator.numerics.aggregate import Aggregate
from coordinator.numerics.bounding import CenteredClipping, NormBounding
from coordinator.numerics.geometric_median import GeometricMedian
from coordinator.numerics.krum import Bulyan, Krum, MultiKrum
from coordinator.numerics.robust import Median, TrimmedMean
from coordinator.numerics.weighted_mean import WeightedMean
from protocol.aggregates import AggregateName
from protocol.recipe import Recipe
from protocol.tensors import Layout

_MAKERS: Final[Mapping[AggregateName, Callable[[Recipe, Layout], Aggregate]]] = MappingProxyType(
    {
        AggregateName.MEAN: lambda recipe, layout: WeightedMean(layout, recipe.update_codec),
        AggregateName.MEDIAN: lambda recipe, layout: Median(layout, recipe.update_codec),
        AggregateName.TRIMMED_MEAN: lambda recipe, layout: TrimmedMean(layout, recipe.update_codec, recipe.trim_share),
        AggregateName.KRUM: lambda recipe, layout: Krum(layout, recipe.update_codec, recipe.byzantine),
        AggregateName.MULTI_KRUM: lambda recipe, layout: MultiKrum(layout, recipe.update_codec, recipe.byzantine),
        AggregateName.BULYAN: lambda recipe, layout: Bulyan(layout, recipe.update_codec, recipe.byzantine),
        AggregateName.GEOMETRIC_MEDIAN: lambda recipe, layout: GeometricMedian(layout, recipe.update_codec),
        AggregateName.CENTERED_CLIPPING: lambda recipe, layout: CenteredClipping(
            layout, recipe.update_codec, recipe.norm_bound
        ),
        AggregateName.NORM_BOUNDING: lambda recipe, layout: NormBounding(
            layout, recipe.update_codec, recipe.norm_bound
        ),
    }
)


def aggregate_of(recipe: Recipe, layout: Layout) -> Aggregate:
    """Return a new aggregate, as the recipe has it, of updates of that layout."""
    return _MAKERS[recipe.aggregate](recipe, layout)
