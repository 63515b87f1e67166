"""Orders as an executor gets them: what they name of the agent's files, under the executor's own paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from farm_client.executor.messages import Difference, LoadTask, Piece, Run
from farm_client.sandbox.room import Room
from protocol.tasks import TaskBrief

CODE_DIR: Final = "code"
OWN_DIR: Final = "own"
SNAPSHOTS_DIR: Final = "snapshots"
CONTROLS_DIR: Final = "controls"
"""Folders of an executor's scratch folder."""
_BASE_DIR: Final = "base"
"""A folder of what it is given."""


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """What a task is loaded from, as files of the cache: its code, its base by path, its frozen tensors if need be.

    ``packages``: the folder of its environment, which the executor sees where it is.
    """

    bundle: Path
    base: Mapping[str, Path] = field(default_factory=dict)
    frozen: Path | None = None
    packages: Path | None = None

    def given(self, room: Room) -> Self:
        """Let a room's executor read them, and return them as it finds them. Raises: OSError.

        The base becomes a folder, by paths that were checked when they came.
        """
        base = {path: room.give(file, f"{_BASE_DIR}/{path}") for path, file in self.base.items()}
        return replace(self, base=base, frozen=None if self.frozen is None else room.give(self.frozen))


def given_order(order: Run, room: Room) -> Run:
    """Let the executor read the files that an order names, and write its snapshot; return it with its own paths."""
    named = [piece.path for piece in (*order.pieces, *order.upcoming)] + [order.weights_path, order.inner_state_path]
    room.give_all(Path(path) for path in named if path is not None)
    snapshot = None
    if order.snapshot_path is not None:
        snapshot = str(room.lend(Path(order.snapshot_path), SNAPSHOTS_DIR))
    control = None
    if order.control_path is not None:
        control = str(room.lend(Path(order.control_path), CONTROLS_DIR))
    return order.model_copy(
        update={
            "pieces": tuple(_given_piece(piece, room) for piece in order.pieces),
            "upcoming": tuple(_given_piece(piece, room) for piece in order.upcoming),
            "weights_path": _given_path(order.weights_path, room),
            "inner_state_path": _given_path(order.inner_state_path, room),
            "snapshot_path": snapshot,
            "control_path": control,
        }
    )


def _given_piece(piece: Piece, room: Room) -> Piece:
    return piece.model_copy(update={"path": _given_path(piece.path, room)})


def given_difference(link: Difference, room: Room) -> Difference:
    """Let the executor read a difference's file, and return it with the executor's own path."""
    return link.model_copy(update={"path": _given_path(link.path, room)})


def _given_path(path: str | None, room: Room) -> str | None:
    return None if path is None else str(room.give(Path(path)))


def load_order(task: TaskBrief, files: TaskFiles, room: Room) -> LoadTask:
    """Return the order to load a task whose ``files`` are given already."""
    return LoadTask(
        task_id=task.task_id,
        code_dir=str(room.scratch / CODE_DIR),
        frozen_path=None if files.frozen is None else str(files.frozen),
        frozen_digest=task.frozen.digest if task.frozen and not files.frozen else None,
        base_dir=str(room.given / _BASE_DIR) if files.base else None,
        packages_dir=None if files.packages is None else str(files.packages),
        entry=task.entry,
        config=task.config,
        mode=task.mode,
        seed=task.seed,
        batch_samples=task.batch_samples,
        dataset_kind=task.dataset_kind,
        scratch_dir=str(room.scratch / OWN_DIR),
        inner_state=task.inner_state,
        snapshot_seconds=task.snapshot_seconds,
        ignore=task.ignore,
        tuple_columns=task.tuple_columns,
        clip_norm=task.clip_norm,
        clip_value=task.clip_value,
        proximal_mu=task.proximal_mu,
        fragments=task.fragments,
        fragment_pattern=task.fragment_pattern,
        fragment_mix=task.fragment_mix,
        fragment_overlap_steps=task.fragment_overlap_steps,
        scaffold_clients=task.scaffold_clients,
        schedule=task.schedule,
        schedule_steps=task.schedule_steps,
        length=task.length,
        precision=task.precision,
        compile=task.compile,
        update_codec=task.update_codec,
        pipeline=task.pipeline,
        map=task.map,
    )
