"""Defects that somebody could make in secure sums. The simulation must find each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator import recovery, rounds, secure_steps
from coordinator.leases import LeaseBook
from coordinator.secure_sum import SecureRound
from protocol import secure_wire
from protocol.secagg.member import Member, Reveal
from protocol.secagg.unmasking import LeftMasks
from tests.simulation.mutants import Mutant


def reveal_both_secrets(patch: pytest.MonkeyPatch) -> None:
    """A client reveals its shares of a survivor's mask key beside those of its own mask's secret."""
    reveal = Member.reveal

    def both(member: Member, survivors: frozenset[int]) -> Reveal:
        told, point = reveal(member, survivors), min(survivors)
        return replace(told, key_shares={**told.key_shares, point: told.self_shares[point]})

    patch.setattr(Member, "reveal", both)


def sum_one_that_is_no_survivor(patch: pytest.MonkeyPatch) -> None:
    """An update is in the sum, and its client is said to have dropped out."""
    ask = rounds.ask_survivors

    def one_less(turn: Any, run: Any, step: Any, secure: SecureRound) -> None:
        ask(turn, run, step, secure)
        if len(secure.survivors) > secure.terms.threshold:
            secure.survivors.popitem()
            secure.told.clear()

    patch.setattr(rounds, "ask_survivors", one_less)


def keep_the_masks_of_the_gone(patch: pytest.MonkeyPatch) -> None:
    """The masks that survivors have with a client that dropped out stay in the sum."""
    left = secure_wire.left_masks

    def of_survivors(*args: Any) -> LeftMasks:
        terms, advertised, _, survivors, reveals = args
        return left(terms, advertised, survivors, survivors, reveals)

    patch.setattr(secure_wire, "left_masks", of_survivors)


def reopen_without_keys(patch: pytest.MonkeyPatch) -> None:
    """A restarted server goes on with a round whose keys it has forgotten."""
    patch.setattr(recovery, "is_secure", lambda _: False)


def replace_who_dropped_out(patch: pytest.MonkeyPatch) -> None:
    """The part of a client that dropped out goes to another one, which agreed on masks with nobody."""
    patch.setattr(LeaseBook, "close_list", lambda *_: None)


def ask_for_other_survivors(patch: pytest.MonkeyPatch) -> None:
    """Who answered is asked again, about fewer survivors: from both answers an update could be unmasked."""
    ready = secure_steps.make_version

    def once_more(turn: Any, run: Any, step: Any) -> None:
        secure = step.secure
        if len(secure.survivors) > secure.terms.threshold:
            secure.survivors.pop(max(secure.survivors))
            secure.revealed.clear()
            secure.told.clear()
            secure_steps.tell(turn, step, secure)
        else:
            ready(turn, run, step)

    patch.setattr(secure_steps, "make_version", once_more)


SECURE_MUTANTS: tuple[Mutant, ...] = (
    reveal_both_secrets,
    sum_one_that_is_no_survivor,
    keep_the_masks_of_the_gone,
    reopen_without_keys,
    replace_who_dropped_out,
    ask_for_other_survivors,
)
