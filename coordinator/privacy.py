"""The privacy that a task's rounds have spent, counted by Google's ``dp-accounting``.

A round adds to the sum of the clients' contributions, each of norm ``dp_clip`` at most, Gaussian noise of a standard
deviation of ``dp_noise_multiplier`` times that: the Gaussian mechanism, for what one client's contribution of a round
may be (that, or nothing). Rounds are composed as if a client were in all of them: who comes is up to the clients, and
no chance of the farm's drawing leaves anybody out, so there is no amplification by sampling to count.
Sources: McMahan et al., arXiv:1710.06963; Abadi et al., arXiv:1607.00133; Mironov, arXiv:1702.07476 (Renyi accounting);
Kairouz et al., arXiv:2103.00039, definition 1.1 (neighbours by zeroing out).
"""

from __future__ import annotations

from functools import lru_cache

from protocol.errors import InvalidTask
from protocol.recipe import Recipe

_MISSING = (
    "this server can't count what dp_clip and dp_noise_multiplier spend: it lacks the package dp-accounting; its "
    "operator installs it with `pip install 'aifarm[privacy]'`"
)


def epsilon_after(recipe: Recipe, rounds: int) -> float | None:
    """Return epsilon at ``dp_delta`` of a model that so many rounds made; None where the recipe is not private.

    Raises: InvalidTask if the server lacks the accountant.
    """
    if recipe.dp_clip is None:
        return None
    return _gaussian_epsilon(recipe.dp_noise_multiplier, recipe.dp_delta, rounds) if rounds else 0.0


def epsilon_spent(recipe: Recipe, rounds: int) -> float | None:
    """Return ``epsilon_after``, to be shown: None, too, where the server lacks the accountant by now."""
    try:
        return epsilon_after(recipe, rounds)
    except InvalidTask:
        return None


def budget_spent(recipe: Recipe, rounds: int) -> str | None:
    """Say that the round after so many would exceed ``dp_epsilon``, if it would."""
    if recipe.dp_epsilon is None:
        return None
    following = epsilon_after(recipe, rounds + 1)
    if following is None or following <= recipe.dp_epsilon:
        return None
    return f"its privacy is spent: another round would make epsilon {following:.4g}, over {recipe.dp_epsilon:g}"


def check_budget(recipe: Recipe, rounds: int) -> None:
    """See at submission that the accountant is there, and that one round more than ``rounds`` may be done.

    Raises: InvalidTask.
    """
    if recipe.dp_clip is None:
        return
    epsilon_after(recipe, rounds + 1)
    if (spent := budget_spent(recipe, rounds)) is not None:
        raise InvalidTask(f"no round is possible, for {spent}: raise dp_noise_multiplier or dp_epsilon")


@lru_cache(maxsize=4096)
def _gaussian_epsilon(noise_multiplier: float, delta: float, rounds: int) -> float:
    try:
        import dp_accounting  # noqa: PLC0415  # an extra, and 0.7 s of start, for tasks that ask for it
        from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415
    except ImportError as error:
        raise InvalidTask(_MISSING) from error
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier), rounds)
    return float(accountant.get_epsilon(delta))
