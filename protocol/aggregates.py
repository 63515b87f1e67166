"""What becomes of a round's updates: the names of the aggregates, what each needs, and what contradicts it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from protocol.compression import SPARSE_CODECS
from protocol.wording import counted

if TYPE_CHECKING:
    from protocol.recipe import Recipe


class AggregateName(StrEnum):
    """What becomes of a round's updates. In all but the mean each client has one vote."""

    MEAN = "mean"
    """Weighted by samples: what one machine would have computed. One wrong update can move it anywhere."""
    MEDIAN = "median"
    """The middle of each coordinate's values: it holds as long as fewer than half of the clients are wrong."""
    TRIMMED_MEAN = "trimmed_mean"
    """The mean of each coordinate's values without the ``trim_share`` smallest and largest ones."""
    KRUM = "krum"
    """The one vote that is closest to most others, whole."""
    MULTI_KRUM = "multi_krum"
    """The mean of the votes that are closest to most others."""
    BULYAN = "bulyan"
    """Votes that Krum chooses one by one, and of each coordinate's values those that are closest to their median."""
    GEOMETRIC_MEDIAN = "geometric_median"
    """The point with the smallest sum of distances to all votes (RFA): it holds as long as fewer than half are
    wrong."""
    CENTERED_CLIPPING = "centered_clipping"
    """The mean of the votes' differences to the last aggregate, each cut down to ``norm_bound``."""
    NORM_BOUNDING = "norm_bounding"
    """The mean of the votes, each cut down to ``norm_bound``."""


ROBUST_VOTES: Final = 3
"""Of fewer votes a robust aggregate is no better than a mean."""
COUNTING_LIARS: Final = frozenset({AggregateName.KRUM, AggregateName.MULTI_KRUM, AggregateName.BULYAN})
"""Those that must be told how many votes may be wrong: ``byzantine``."""
BOUNDING: Final = frozenset({AggregateName.CENTERED_CLIPPING, AggregateName.NORM_BOUNDING})
"""Those that cut votes down to ``norm_bound``."""


def votes_needed(name: AggregateName, byzantine: int) -> int:
    """Return how many votes a round needs for the aggregate to be what its paper promises."""
    match name:
        case AggregateName.MEAN:
            return 1
        case AggregateName.KRUM | AggregateName.MULTI_KRUM:
            return max(ROBUST_VOTES, 2 * byzantine + 3)
        case AggregateName.BULYAN:
            return max(ROBUST_VOTES, 4 * byzantine + 3)
        case _:
            return ROBUST_VOTES


def unfit_for_aggregate(recipe: Recipe) -> str | None:
    """Return which of the recipe's fields its aggregate lacks or can't use, in a sentence."""
    name = recipe.aggregate
    if (name is AggregateName.TRIMMED_MEAN) != (recipe.trim_share > 0):
        return 'aggregate = "trimmed_mean" and a trim_share, such as 0.2, need each other'
    if (name in COUNTING_LIARS) != (recipe.byzantine > 0):
        return (
            'aggregate = "krum", "multi_krum" or "bulyan" and byzantine, the most clients of a round that may be '
            "wrong, such as 1, need each other"
        )
    if recipe.norm_bound is not None and name not in BOUNDING:
        return 'norm_bound is for aggregate = "norm_bounding" or "centered_clipping": leave it out'
    return None if name is AggregateName.MEAN else _no_votes(recipe)


def _no_votes(recipe: Recipe) -> str | None:
    """Return why what clients send can't be counted as votes of equal weight."""
    name = recipe.aggregate
    if recipe.inner_state == "carried":
        return (
            f'inner_state = "carried" is averaged, and aggregate = "{name}" is there because a mean can be spoilt '
            'by one client: use inner_state = "kept" or "fresh"'
        )
    if recipe.max_staleness:
        late = "quorum_clients" if recipe.quorum_clients else "buffer" if recipe.buffer else "max_staleness"
        return f'aggregate = "{name}" has no weights, and a late update needs one: leave out {late}'
    if recipe.update_codec.name in SPARSE_CODECS:
        return (
            f'aggregate = "{name}" needs each number from most clients, and update_codec {recipe.update_codec.name} '
            "sends few: nearly all of the aggregate would be zero; use int8, or none"
        )
    return None


def described(recipe: Recipe) -> str:
    """Return what becomes of the updates in a few words; empty for the mean."""
    most = f"{counted(recipe.byzantine, 'client')} may be wrong"
    bound = "the round's median norm" if recipe.norm_bound is None else f"norm {recipe.norm_bound:g}"
    return {
        AggregateName.MEAN: "",
        AggregateName.MEDIAN: "median of the updates",
        AggregateName.TRIMMED_MEAN: f"mean of the updates without {recipe.trim_share:.0%} at either end",
        AggregateName.KRUM: f"Krum of the updates, {most}",
        AggregateName.MULTI_KRUM: f"Multi-Krum of the updates, {most}",
        AggregateName.BULYAN: f"Bulyan of the updates, {most}",
        AggregateName.GEOMETRIC_MEDIAN: "geometric median of the updates",
        AggregateName.CENTERED_CLIPPING: f"mean of the updates, clipped around the last one to {bound}",
        AggregateName.NORM_BOUNDING: f"mean of the updates, clipped to {bound}",
    }[recipe.aggregate]
