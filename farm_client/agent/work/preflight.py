"""The pre-flight check: whether this machine can take an assignment, before anything is fetched or started."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from protocol.assignments import Assign, RejectCode
from protocol.wanted_work import ANY_WORK, WantedWork
from protocol.wording import sized


@dataclass(frozen=True, slots=True)
class Standing:
    """What this machine can take now. ``ram_free_bytes`` is None where the task already has its executor."""

    free_slots: int
    ram_free_bytes: int | None
    draining: bool = False
    work_for: tuple[str, ...] = ()
    """The submitters that the owner works for; empty: all."""
    wanted: WantedWork = ANY_WORK
    """Which work the owner wants done."""
    resting: str | None = None
    """Why the owner wants nothing done now."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why not."""

    code: RejectCode
    message: str


def lacking(modules: Iterable[str], packages: Path | None = None) -> str | None:
    """Return the first of these modules that executors could not import; None if all are installed.

    ``packages``: a folder that executors have on their path, too.

    They are looked up, and not imported: executors run by the agent's own Python. What is no name of a module is
    looked up nowhere, since a lookup leads to files by that name.
    """
    beside = set() if packages is None else {entry.name.partition(".")[0] for entry in packages.iterdir()}
    return next((name for name in modules if name not in beside and not _is_installed(name)), None)


def _is_installed(name: str) -> bool:
    with suppress(ValueError):  # a module of the agent's own that has no description, such as __main__
        return name.isidentifier() and find_spec(name) is not None
    return True


def refusal(assign: Assign, standing: Standing) -> Rejection | None:
    """Return why the assignment must be handed back, or None if it will fit."""
    if standing.draining:
        return Rejection(RejectCode.DRAINING, "this client is leaving")
    if standing.resting is not None:
        return Rejection(RejectCode.PAUSED, standing.resting)
    if standing.free_slots <= 0:
        return Rejection(RejectCode.BUSY, "this client holds as many assignments as it has slots")
    if (refused := not_for_the_owner(assign, standing.work_for, standing.wanted)) is not None:
        return refused
    needed, free = assign.task.needed_ram_bytes, standing.ram_free_bytes
    if free is not None and needed > free:
        return Rejection(RejectCode.DOES_NOT_FIT, f"needs {sized(needed)} of memory and {sized(free)} are free to lend")
    return None


def not_for_the_owner(assign: Assign, work_for: tuple[str, ...], wanted: WantedWork) -> Rejection | None:
    """Return why the owner does not want an assignment done: whose it is, its kind, or what it is about."""
    if (refused := unnamed(assign.task.submitter, work_for)) is not None:
        return refused
    if (why := wanted.why_not(assign.kind, assign.task.topics)) is None:
        return None
    return Rejection(_owners_code(assign.task.submitter), f"this client: {why}")


def unnamed(submitter: str, names: tuple[str, ...]) -> Rejection | None:
    """Return why the owner, who works for these (for all, if none are named), does not work for this submitter."""
    if not names or _is_named(submitter, names):
        return None
    why = f"this client's owner does not work for {submitter}"
    if not submitter:
        why = "this client's owner works for named people, and this server names none"
    return Rejection(_owners_code(submitter), why)


def _owners_code(submitter: str) -> RejectCode:
    """Return the word for an owner's no; a server that names no submitter does not know the right one."""
    return RejectCode.OWNER if submitter else RejectCode.DOES_NOT_FIT


def _is_named(submitter: str, names: Iterable[str]) -> bool:
    """Return whether ``user@host``, as tasks name their submitters, is one of these, with its host or without."""
    return submitter != "" and (submitter in names or submitter.partition("@")[0] in names)
