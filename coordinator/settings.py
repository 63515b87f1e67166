"""The coordinator's numbers, in one place. Seconds unless the name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """What an operator may change; the defaults need no change.

    ``offer_seconds``: an offer that is not accepted by then goes to somebody else. ``stall_seconds``: a client
    that beats without progress for so long is stuck. ``deadline_factor`` times the expected time plus
    ``deadline_grace_seconds`` is the longest that a client of measured speed may take.
    """

    offer_seconds: float = 10.0
    stall_seconds: float = 60.0
    warm_up_seconds: float = 10.0
    """A client that connected and warms up is waited for no longer than this."""
    return_seconds: float = 10.0
    """After a restart of the server, how long interrupted work is kept for the clients that held it."""
    deadline_factor: float = 4.0
    deadline_grace_seconds: float = 20.0
    ageing_seconds: float = 60.0
    """A waiting task rises by one priority level in this time."""
    quantum_seconds: float = 30.0
    """How long a client serves a task before another one of no higher priority may have it: ten times what the start
    of an executor takes."""
    keep_seconds: float = 2.0
    """Within that time, how long it is kept idle while its task has nothing for it: less than such a start."""
    usage_half_life_seconds: float = 600.0
    """How fast a submitter's past use of the farm is forgotten."""
    stripe_shards: int = 8
    """How many shards a round draws from side by side."""
    code_failure_clients: int = 3
    """A fault of the researcher's code on so many different clients fails the task, if their word counts."""
    death_clients: int = 2
    """Executors that die in the same way on so many different clients do so because of the task."""
    deaths_of_one: int = 3
    """So many deaths in a row count where there is only one client, or where they may come from outside."""
    stranger_witnesses: int = 5
    """The word of clients that never delivered anything counts if so many, or all there are, say the same..."""
    stranger_seconds: float = 20.0
    """...and for so long, where the researcher ran the code before."""
    round_failures: int = 12
    """Failed assignments in one round after which the round is given up."""
    breaker_failures: int = 5
    """A client that failed so many assignments in a row gets no work for a while."""
    does_not_fit_seconds: float = 600.0
    """A client that said a task does not fit is not asked again before this."""
    task_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(first_seconds=1.0, longest_seconds=60.0))
    desertion_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(first_seconds=1.0, longest_seconds=60.0))
    """A task whose clients all leave again and again without a result waits so long before it begins anew."""
    upload_wait_seconds: float = 600.0
    """An upload that waits for its turn, as the farm told it, keeps its lease for so long."""
    outrun_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(first_seconds=10.0, longest_seconds=900.0))
    """A client whose part somebody else began later and finished first."""
    memory_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(first_seconds=30.0, longest_seconds=900.0))
    """A client that ran out of memory on a task: what else runs there may have ended by then."""
    client_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(first_seconds=2.0, longest_seconds=300.0))
    breaker_retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(first_seconds=30.0, longest_seconds=900.0))
