"""How a step ends: what its policy decides is carried out here."""

from __future__ import annotations

from coordinator.epoch_ends import finish_epoch_end, give_up_epoch_end
from coordinator.evaluation import finish_evaluation, give_up_evaluation
from coordinator.follows import Follows
from coordinator.maps import keep_outputs
from coordinator.rounds import abandon, commit
from coordinator.state import Step, TaskRun
from coordinator.tasks import fail
from coordinator.turn import Turn
from protocol.assignments import Kind


def go_on(turn: Turn, run: TaskRun, step: Step, follows: Follows, why: str = "") -> None:
    """Do what follows of a step; ``why`` is the reason where it failed."""
    match follows:
        case Follows.COMMIT:
            commit(turn, run, step)
        case Follows.REPORT:
            finish_evaluation(turn, run, step)
        case Follows.GO_ON:
            finish_epoch_end(turn, run, step)
        case Follows.KEEP:
            keep_outputs(turn, run, step)
        case Follows.FAIL:
            fail(turn, run, why, retryable=True)
        case Follows.SKIP:
            abandon(turn, run, why)
            (give_up_epoch_end if step.kind is Kind.EPOCH_END else give_up_evaluation)(turn, run, why)
