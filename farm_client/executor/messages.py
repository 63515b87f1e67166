"""Messages between agent and executor, over a Unix socket pair in ``protocol.framing`` frames.

Orders go to the executor, reports come back. The executor's stdout and stderr are pipes that the agent reads.
Small blobs ride as bytes, larger ones as paths of files in the agent's cache (read) or the scratch folder (written).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from protocol.artefacts import MAX_FILES, ArtefactName
from protocol.assignments import Kind, MetricPoint
from protocol.bounds import Count
from protocol.compression import CodecSpec
from protocol.digests import Digest
from protocol.fragments import FragmentPattern
from protocol.frozen import Frozen
from protocol.limits import INLINE_BYTES
from protocol.maps import MapPlan
from protocol.messages import Scope
from protocol.named_schedule import NamedSchedule
from protocol.recipe import InnerState, Mode, Precision
from protocol.task_length import TaskLength
from protocol.tasks import Split

DISK_FULL: Final = "disk_full"
"""The code of a ``Failed`` that says nothing but that the disk had no room."""
OUT_OF_MEMORY: Final = "out_of_memory"
"""Likewise of memory, the machine's or the accelerator's; of an executor's death too."""


FROZEN_DIFFERS: Final = "frozen_differs"
"""Of a task that cannot begin without the file of its frozen tensors."""


class LoadTask(Frozen):
    """Order: import this task's code. The first order an executor gets; it serves one task for its whole life."""

    type: Literal["load"] = "load"
    task_id: str
    code_dir: str
    frozen_path: str | None = None
    """The weights file of the tensors that never change; None where the weights of each order have them."""
    frozen_digest: str | None = None
    """Without that file: what the built model's frozen tensors must hash to, or it is ``FROZEN_DIFFERS``."""
    base_dir: str | None = None
    """The folder that the model is built from."""
    packages_dir: str | None = None
    """The packages of the task's environment."""
    entry: str
    config: dict[str, Any]
    mode: Mode
    seed: int
    batch_samples: int
    dataset_kind: Literal["files", "code"]
    scratch_dir: str
    report_bytes: int = INLINE_BYTES
    """How large an update may be to come inside of ``Done``; a larger one is left in a file."""
    inner_state: InnerState = InnerState.FRESH
    snapshot_seconds: float = 0.0
    """How often an assignment's state is kept beside its steps; 0 is never."""
    ignore: tuple[str, ...] = ()
    tuple_columns: tuple[str, ...] = ()
    clip_norm: float | None = None
    clip_value: float | None = None
    proximal_mu: float = 0.0
    fragments: int = 1
    fragment_pattern: FragmentPattern = FragmentPattern.STRIDED
    fragment_mix: float = 0.0
    fragment_overlap_steps: int = 0
    scaffold_clients: int = 0
    schedule: NamedSchedule | None = None
    schedule_steps: int = 0
    """The global steps of the task, which the schedule goes over."""
    length: TaskLength | None = None
    """How long the task is, for its code; None where the server did not say."""
    precision: Precision = Precision.FP32
    compile: bool = False
    update_codec: CodecSpec = CodecSpec()
    pipeline: bool = False
    """Whether to say ``StepsDone`` and take the next order while an update is written."""
    map: MapPlan | None = None
    """The code has a function to run on items, and no model."""

    @property
    def settings(self) -> dict[str, Any]:
        """Return what the code gets as ``config``: with the folder that its model is built from, if it has one."""
        return self.config if self.base_dir is None else {**self.config, "base": self.base_dir}


class Piece(Frozen):
    """Rows ``start`` to ``stop`` of a shard in its epoch's order; ``path`` is the shard's file, if it has one."""

    shard: int
    split: Split
    shard_samples: int
    first_row: int
    stride: int = 0
    """``Shard.stride``: with one the order is that of the data."""
    path: str | None
    start: int
    stop: int


class Run(Frozen):
    """Order: do one assignment. ``weights`` are absent when ``weights_digest`` is what the executor last held."""

    type: Literal["run"] = "run"
    assignment_id: str
    kind: Kind
    round: int
    epoch: int
    weights_digest: str
    weights: bytes | None = None
    weights_path: str | None = None
    inner_state: bytes | None = None
    inner_state_path: str | None = None
    """What the inner optimizer begins with, as bytes or where it is, if there is anything."""
    samples_before: int = 0
    """Of the task, before this round; schedules go by them."""
    round_samples: int = 0
    failed_step_bytes: int = 0
    """How large a file to write of the step in which the task's code fails; 0: none is wanted."""
    snapshot_path: str | None = None
    """Where the assignment's snapshots go, and where one may be to go on from; None for no snapshots."""
    control_path: str | None = None
    """This client's control variate of the task, if it has one."""
    pieces: tuple[Piece, ...]
    data_part: int | None = None
    """The virtual client whose rows these are, where control variates are of those."""
    position: int = 0
    """Of a map: the place of the first item in the data."""
    upcoming: tuple[Piece, ...] = ()
    """What the next order is likely to be, if this one's update alone makes its version: it may be begun unasked."""


class Difference(Frozen):
    """What turns one version of the weights into the next: a file in this codec, as bytes or where it is."""

    codec: CodecSpec
    data: bytes | None = None
    path: str | None = None


class Rebase(Frozen):
    """Order: write the weights file that follows from another one by differences, one after the other.

    It asks for no task's code: an executor can do it before its load as well.
    """

    type: Literal["rebase"] = "rebase"
    assignment_id: str
    base_path: str
    differences: tuple[Difference, ...]
    made_path: str


class Abandon(Frozen):
    """Order: give up the steps that were begun without an order, if there are any. It is not answered."""

    type: Literal["abandon"] = "abandon"


class Suspend(Frozen):
    """Order: between two steps, write what is done to the snapshot's path, say ``Suspended``, and do nothing more.

    The agent ends the process then. It does not wait for ever: who is deep in a step may be ended before.
    """

    type: Literal["suspend"] = "suspend"


class Stop(Frozen):
    """Order: exit now, politely; to stop it in mid-step the agent kills the process instead."""

    type: Literal["stop"] = "stop"


class Warm(Frozen):
    """Report: torch is imported and an optimizer was built once; ready for ``load``. No accelerator is in use yet."""

    type: Literal["warm"] = "warm"
    torch_version: str


class Building(Frozen):
    """Report: the task's code is imported, and now its model is built."""

    type: Literal["building"] = "building"


class Loaded(Frozen):
    """Report: the task's code is imported and its model is built."""

    type: Literal["loaded"] = "loaded"


class Advance(Frozen):
    """Report: so many samples are done; with metrics that the researcher's code logged since the last one."""

    type: Literal["advance"] = "advance"
    assignment_id: str
    samples_done: Count
    metrics: tuple[MetricPoint, ...] = ()


class Saved(Frozen):
    """Report: a snapshot of the assignment is at its ``snapshot_path``."""

    type: Literal["saved"] = "saved"
    assignment_id: str


class Suspended(Frozen):
    """Report: nothing more is done until the end, and all that can be kept of what was done is in the snapshot."""

    type: Literal["suspended"] = "suspended"


class StepsDone(Frozen):
    """Report: the steps of the assignment are done, and the next order is welcome; its ``Done`` comes later.

    Only where the load said ``pipeline``. The orders' ``Done`` or ``Failed`` may come in any order.
    """

    type: Literal["steps_done"] = "steps_done"
    assignment_id: str


class LeftFile(Frozen):
    """A file that ``on_epoch_end`` left, in the scratch folder."""

    name: ArtefactName
    path: str


class Done(Frozen):
    """Report: the assignment is done. An update of training is in ``update`` or in the file ``update_path``."""

    type: Literal["done"] = "done"
    assignment_id: str
    samples: int
    metrics: dict[str, float]
    update: bytes | None = None
    update_path: str | None = None
    update_digest: str | None = None
    update_bytes: int = 0
    control_path: str | None = None
    """In the scratch folder: what the client's control variate of the task has become, if it has one."""
    left: tuple[LeftFile, ...] = Field(default=(), max_length=MAX_FILES)
    compute_seconds: float = 0.0
    stage_seconds: dict[str, float] = {}
    """Where they went: see ``protocol.assignments.WorkStage``."""
    flops_per_sample: Count = 0
    """Floating point operations of training on a sample, as counted; 0: not known."""
    holds: str | None = None
    """The version that it holds now, in the place of the order's, and goes on with unasked; None where it rests."""


class Holds(Frozen):
    """Report: after the last ``Done`` it also holds this version, which the farm will make if nobody else adds to it.

    It comes unasked. An order may name it without weights, as it may still name the one before.
    """

    type: Literal["holds"] = "holds"
    weights_digest: str


class Rebased(Frozen):
    """Report: the weights file is written. Whether it is the right one, the agent sees by its digest."""

    type: Literal["rebased"] = "rebased"
    assignment_id: str


class FailedStepFile(Frozen):
    """A file with the state and the batch of a step in which the task's code failed, in the scratch folder."""

    path: str
    digest: Digest
    size_bytes: int


class Failed(Frozen):
    """Report: loading (no ``assignment_id``), a rebase or the assignment failed; it stays up unless it exits."""

    type: Literal["failed"] = "failed"
    assignment_id: str | None = None
    code: str
    message: str
    scope: Scope
    traceback: str | None = None
    failed_step: FailedStepFile | None = None


Order = Annotated[LoadTask | Run | Rebase | Abandon | Suspend | Stop, Field(discriminator="type")]
Report = Annotated[
    Warm | Building | Loaded | Advance | Saved | Suspended | StepsDone | Done | Holds | Rebased | Failed,
    Field(discriminator="type"),
]
ORDER: TypeAdapter[Order] = TypeAdapter(Order)
REPORT: TypeAdapter[Report] = TypeAdapter(Report)
