"""Which aggregate a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from coordinator.numerics.aggregate import Aggregate
from coordinator.numerics.bounding import CenteredClipping, NormBounding
from coordinator.numerics.geometric_median import GeometricMedian
from coordinator.numerics.heloco import TurnedMean
from coordinator.numerics.krum import Bulyan, Krum, MultiKrum
from coordinator.numerics.private_mean import Noise, PrivateMean
from coordinator.numerics.robust import Median, TrimmedMean
from coordinator.numerics.secure_sum import SecureSum
from coordinator.numerics.weighted_mean import WeightedMean
from protocol.aggregates import AggregateName
from protocol.heloco import is_heloco
from protocol.recipe import Recipe
from protocol.secure_aggregation import is_secure
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


def aggregate_of(recipe: Recipe, layout: Layout, noise: Noise | None = None) -> Aggregate:
    """Return a new aggregate, as the recipe has it, of updates of that layout. ``noise``: where private ones get it.

    Raises: ValueError for a private one without a noise.
    """
    if is_secure(recipe):
        return SecureSum(recipe, layout)
    if recipe.dp_clip is not None:
        if noise is None:
            raise ValueError("a private mean needs noise")
        return PrivateMean(layout, recipe.update_codec, recipe.dp_clip, recipe.dp_noise_multiplier, noise)
    if is_heloco(recipe):
        return TurnedMean(layout, recipe.update_codec)
    return _MAKERS[recipe.aggregate](recipe, layout)
