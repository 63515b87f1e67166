"""Collection policies: what a step waits for, which updates it counts, with which weight, and when it is over.

A policy is chosen by the recipe and by what the step is for (``policy_of``) and only answers questions, from the recipe
and from where the step's parts are. The rules act on its answers, and ask no one else what kind of work it is.

With n_k samples of client k, its update d_k (how far its local steps moved the weights from the version x_v that it
began with) and the set S of the updates that a round counts, every policy of training leads to

    g = sum over S of  s_k n_k d_k  /  sum over S of  s_k n_k,    x_(v+1) = outer_optimizer(x_v, g);

they differ in S, and in the factor s_k of an update that is based on an older version.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from statistics import median
from typing import ClassVar, Protocol

from coordinator.follows import Follows
from coordinator.in_flight import StepParts
from coordinator.map_policy import ItemsOnce
from protocol.assignments import Kind
from protocol.recipe import Recipe
from protocol.secure_aggregation import majority


class Policy(Protocol):
    """The interface of a collection policy. ``Recipe`` says what the numbers mean."""

    brings_updates: ClassVar[bool]
    """Whether results bring updates, and count when a version contains them; else metrics, which count at once."""
    lets_finish: ClassVar[bool]
    """Whether who is not done when the step closes may finish, for another one to count."""
    counts_late: ClassVar[bool]
    """Whether this step counts results of rounds that closed without them."""
    works_ahead: ClassVar[bool]
    """Whether clients may go on to the round after it: they say that they are free when they begin to deliver."""

    hands_out: ClassVar[bool]
    """Whether its parts are made as clients come free, for as long as it is open; else all are made when it opens."""
    counts_samples: ClassVar[bool]
    """Whether a part is of samples, by which one sees that its client gets on; else its client's word is taken."""
    is_optional: ClassVar[bool]
    """Whether the task goes on without it where its code fails; else the task fails."""
    is_the_work: ClassVar[bool]
    """Whether its samples are what the task is there for: progress, and clients' speeds, go by them."""
    brings_outputs: ClassVar[bool]
    """Whether a part brings outputs that are kept as they are, and is cut to its client's measure when that is free."""

    def title(self, number: int) -> str:
        """Return what a step is called."""

    def scale(self, staleness: int) -> float:
        """Return the factor of an update's weight; ``staleness``: how many versions its base is behind."""

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Return what follows after a part arrived; None: wait for more."""

    def enough_at(self, parts: StepParts) -> float | None:
        """Return when what is here is enough, although others work on: a moment in seconds; None: not by itself."""

    def at_longest_time(self, parts: StepParts) -> Follows:
        """Return what follows when the step has lasted for ``longest_round_seconds``."""

    def wants_ahead(self, number: int, parts: StepParts, ahead: StepParts) -> bool:
        """Whether clients without a part of step ``number`` that is left may begin with the round after it."""


@dataclass(frozen=True, slots=True)
class Synchronous:
    """S: all parts of the round; or, over-provisioned, the first ones with ``round_samples`` samples. s_k = 1.

    What is missing at the commit is owed to the next round, so that each sample counts once an epoch. A round that
    lasts too long commits with the share ``quorum`` of its samples, or fails.

    Sources: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    arXiv:1602.05629, algorithm 1 (the weighted mean); Chen et al., "Revisiting Distributed Synchronous SGD",
    arXiv:1604.00981, section 3 (more workers than a round needs); Bonawitz et al., "Towards Federated Learning at
    Scale", arXiv:1902.01046, section 2.2 (the goal count, and the minimum at the time-out).
    """

    recipe: Recipe
    brings_updates: ClassVar[bool] = True
    lets_finish: ClassVar[bool] = False
    counts_late: ClassVar[bool] = False
    works_ahead: ClassVar[bool] = False
    hands_out: ClassVar[bool] = False
    counts_samples: ClassVar[bool] = True
    is_optional: ClassVar[bool] = False
    is_the_work: ClassVar[bool] = True
    brings_outputs: ClassVar[bool] = False

    def title(self, number: int) -> str:
        """Return what a step is called."""
        return f"round {number}"

    def scale(self, staleness: int) -> float:
        """Return 1: nothing is stale."""
        return 1.0

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Commit when all parts are here, or as many samples as the round needs."""
        has_enough = self.recipe.over_provision > 0 and parts.own_samples >= self.recipe.round_samples
        return Follows.COMMIT if has_enough or parts.are_all_here else None

    def enough_at(self, parts: StepParts) -> float | None:
        """Return None: only what arrives decides."""
        return None

    def at_longest_time(self, parts: StepParts) -> Follows:
        """Commit at quorum, or fail."""
        needed = self.recipe.quorum * min(parts.samples, self.recipe.round_samples)
        return Follows.COMMIT if parts.own_samples and parts.own_samples >= needed else Follows.FAIL

    def wants_ahead(self, number: int, parts: StepParts, ahead: StepParts) -> bool:
        """Nobody begins before the round opens."""
        return False


@dataclass(frozen=True, slots=True)
class LateUpdates(Synchronous):
    """As a synchronous round, and S contains late updates of the last ``max_staleness`` versions, too.

    Who is not done at the commit may finish; whichever round collects when the result arrives counts it, after all of
    its own parts. The weight of an update that is t versions stale falls by

        s(t) = (1 + t) ** -0.5.

    Source: Xie et al., "Asynchronous Federated Optimization", arXiv:1903.03934, section 5.2 (polynomial, a = 0.5).
    """

    lets_finish: ClassVar[bool] = True
    counts_late: ClassVar[bool] = True

    def scale(self, staleness: int) -> float:
        """Return how much less a stale update weighs."""
        return float((1 + staleness) ** -0.5)


@dataclass(frozen=True, slots=True)
class Pipelining(LateUpdates):
    """As with late updates, and who has computed a part of round v begins a part of round v + 1, from x_v.

    The update is on its way meanwhile, and others are not done. When round v + 1 opens, such parts are its first ones:
    t = 1, s(1) = 2 ** -0.5. Not more is done ahead than one round's samples, and nothing after the last round.

    Source: Douillard et al., "Streaming DiLoCo with overlapping communication", arXiv:2501.18512, section 2.2.
    """

    works_ahead: ClassVar[bool] = True

    def wants_ahead(self, number: int, parts: StepParts, ahead: StepParts) -> bool:
        """Whether all parts of this round are given out, and the next one is not."""
        is_last = self.recipe.rounds is not None and number + 1 >= self.recipe.rounds
        return not parts.waiting and not is_last and ahead.given_out_samples < self.recipe.round_samples


@dataclass(frozen=True, slots=True)
class Buffered(LateUpdates):
    """S: the first ``buffer`` results, of whatever versions; nobody waits for anybody (FedBuff).

    Who is free is given a part at once, from the newest version, and again when it is done: of which client a result
    is, and how many are of one, does not matter. Who works when a version is made goes on, and is late. An update that
    is t versions stale weighs s(t) = (1 + t) ** -0.5 as much, and one that would be staler than ``max_staleness`` is
    given up. The paper divides by ``buffer``; here, as everywhere, the divisor is the sum of the weights s_k n_k, so
    that a buffer of stale updates makes as long a step as one of fresh ones.

    Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", arXiv:2106.06639, algorithm 1
    (the buffer) and section 5 (the factor, which is that of ``LateUpdates``).
    """

    works_ahead: ClassVar[bool] = True
    hands_out: ClassVar[bool] = True

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Commit with enough results."""
        return Follows.COMMIT if len(parts.delivered) >= (self.recipe.buffer or 1) else None

    def at_longest_time(self, parts: StepParts) -> Follows:
        """Commit what is here, or fail."""
        return Follows.COMMIT if parts.delivered else Follows.FAIL


@dataclass(frozen=True, slots=True)
class Decoupled(Buffered):
    """S: what is here when ``quorum_clients`` different clients have delivered and a grace window is over.

    The window is ``grace`` times the median time of the parts that are here, so it follows the clients' real speed, and
    it ends at once when all who work on the task have delivered. What comes after it merges into a later version, with
    the factor of its staleness. Nobody waits: who has delivered goes on with the newest version.

    After: Douillard et al., "Decoupled DiLoCo for Resilient Distributed Pre-training", arXiv:2604.21428, of which the
    abstract and accounts by others were at hand, and not the text: the minimum quorum, the adaptive grace window and
    the merge weighted by samples are its ideas. How long the window is, and that late updates weigh less, are the
    farm's own; fragments of the model are not merged apart, nor norms and directions.
    """

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Wait: who has come is asked of the clock."""
        return None

    def enough_at(self, parts: StepParts) -> float | None:
        """Return the end of the window: its length after the quorum's last client delivered first."""
        first: dict[str, float] = {}
        seconds = []
        for record in parts.delivered_records:
            if record.delivered_at is not None:
                first[record.client_id] = min(first.get(record.client_id, inf), record.delivered_at)
                seconds.append(record.delivered_at - record.offered_at)
        quorum = self.recipe.quorum_clients or 1
        if len(first) < quorum:
            return None
        return sorted(first.values())[quorum - 1] + self.recipe.grace * median(seconds)


@dataclass(frozen=True, slots=True)
class SecureCollection(Synchronous):
    """S: the clients whose masked updates are here when all are, or once the others have dropped out. s_k = 1.

    A majority of the round's parts must be left: that is the threshold of the shares. What the others had is owed to
    the next round. With S fixed, those in it reveal what is left of the masks on

        sum over S of  n_k d_k  =  sum over S of (masked update of k)  -  masks,    modulo 2**bits,

    and the version is the outer optimizer's step along that sum over the samples of S. Who has dropped out is asked of
    the clock elsewhere (``coordinator.secure_steps``).

    Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4.
    """

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Commit when nobody is left who may deliver."""
        is_over = not parts.held and not parts.dormant
        return Follows.COMMIT if is_over and len(parts.delivered) >= majority(parts.count) else None

    def at_longest_time(self, parts: StepParts) -> Follows:
        """Commit with a majority of the clients, whether the others hold their parts still or not; or fail."""
        return Follows.COMMIT if len(parts.delivered) >= majority(parts.count) else Follows.FAIL


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The held-out samples, parted among clients: metric m of the version is sum n_k m_k / sum n_k over all parts.

    No update comes back, so each part is settled as it arrives. It is complete with all of its parts, for a mean over
    some of the samples is another metric; after its longest time the task goes on without it.
    """

    recipe: Recipe
    brings_updates: ClassVar[bool] = False
    lets_finish: ClassVar[bool] = False
    counts_late: ClassVar[bool] = False
    works_ahead: ClassVar[bool] = False
    hands_out: ClassVar[bool] = False
    counts_samples: ClassVar[bool] = True
    is_optional: ClassVar[bool] = False
    is_the_work: ClassVar[bool] = False
    brings_outputs: ClassVar[bool] = False

    def title(self, number: int) -> str:
        """Return what a step is called."""
        return f"evaluation of version {number}"

    def scale(self, staleness: int) -> float:
        """Return 1: nothing is stale."""
        return 1.0

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Report when all parts are here."""
        return Follows.REPORT if parts.are_all_here else None

    def enough_at(self, parts: StepParts) -> float | None:
        """Return None: only what arrives decides."""
        return None

    def at_longest_time(self, parts: StepParts) -> Follows:
        """Go on without the metrics of this version."""
        return Follows.SKIP

    def wants_ahead(self, number: int, parts: StepParts, ahead: StepParts) -> bool:
        """Nobody trains on a version that is being evaluated before its round opens."""
        return False


@dataclass(frozen=True, slots=True)
class EpochEnd(Evaluation):
    """One part without samples: one client runs the code's ``on_epoch_end`` on the version that ended an epoch."""

    counts_samples: ClassVar[bool] = False
    is_optional: ClassVar[bool] = True

    def title(self, number: int) -> str:
        """Return what a step is called."""
        return f"on_epoch_end with version {number}"

    def when_arrived(self, parts: StepParts) -> Follows | None:
        """Go on: what it left is kept as it arrives."""
        return Follows.GO_ON


def policy_of(recipe: Recipe, kind: Kind) -> Policy:
    """Choose how a step of this kind collects."""
    if kind is Kind.MAP:
        return ItemsOnce(recipe)
    if kind is Kind.EVALUATE:
        return Evaluation(recipe)
    if kind is Kind.EPOCH_END:
        return EpochEnd(recipe)
    return _policy_of_rounds(recipe)


def _policy_of_rounds(recipe: Recipe) -> Policy:
    if recipe.secure_aggregation:
        return SecureCollection(recipe)
    if recipe.buffer is not None:
        return Buffered(recipe)
    if recipe.quorum_clients is not None:
        return Decoupled(recipe)
    if recipe.pipeline:
        return Pipelining(recipe)
    return LateUpdates(recipe) if recipe.max_staleness else Synchronous(recipe)
