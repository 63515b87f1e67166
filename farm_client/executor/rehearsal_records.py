"""Records between `farm submit` or `farm pull` and a process that runs a task's code, as JSON files. Free of torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from farm_client.data.sharding import held_rows
from farm_client.executor.messages import Failed, LoadTask, Piece
from protocol.compression import CodecSpec
from protocol.fragments import FragmentPattern
from protocol.frozen import Frozen
from protocol.named_schedule import NamedSchedule
from protocol.recipe import DataOrder, InnerState, Mode, OuterOptimizer, Precision
from protocol.task_length import TaskLength, task_length


class RehearsalRequest(Frozen):
    """What to try; without a ``mode`` gradients mode, or weights mode if the server can't take the task's steps.

    ``sample_path`` is a shard file with ``sample_rows`` rows, absent for a data set made by code.

    ``rows`` is the data set's size where the researcher said it; otherwise ``make_dataset`` is asked.
    ``tries_batch`` false only builds the model.
    """

    code_dir: str
    entry: str
    config: dict[str, Any]
    base_dir: str | None = None
    """The folder that the model is built from."""
    mode: Mode | None
    seed: int
    batch_samples: int
    order: DataOrder = DataOrder.SHUFFLED
    inner_state: InnerState = InnerState.FRESH
    update_codec: CodecSpec = CodecSpec()
    tuple_columns: tuple[str, ...] = ()
    clip_norm: float | None = None
    clip_value: float | None = None
    proximal_mu: float = 0.0
    fragments: int = 1
    fragment_pattern: FragmentPattern = FragmentPattern.STRIDED
    fragment_mix: float = 0.0
    scaffold_clients: int = 0
    schedule: NamedSchedule | None = None
    precision: Precision = Precision.FP32
    compile: bool = False
    ignore: tuple[str, ...] = ()
    """``Recipe.ignore``: what would not run on the farm and is accepted."""
    folder: str
    """Where the weights and scratch files are written."""
    sample_path: str | None = None
    sample_rows: int = 0
    rows: int | None = None
    rows_before: int | None = None
    """How many rows ``make_dataset`` must give, where the config of a task that goes on is another one."""
    tries_batch: bool = True
    file_rows: int = 0
    """The data files' rows, of which the sample has the first few."""
    rounds: int | None = None
    epochs: float | None = None
    round_samples: int = 1
    """With ``holdout``, the share of the rows that are not trained on: how long schedules are."""
    holdout: float = 0.0

    @property
    def tried_samples(self) -> int:
        """Return how many samples are tried: one batch, and where something may be carried to the next one, two."""
        return tried_samples(self.batch_samples, self.order)

    def length(self, mode: Mode, rows: int) -> TaskLength:
        """Return how long the task is with a data set of so many rows."""
        trained = rows - held_rows(rows, self.holdout)
        whole = self.model_copy(update={"round_samples": min(self.round_samples, max(trained, 1))})
        return task_length(whole, mode, trained)


def tried_samples(batch_samples: int, order: DataOrder) -> int:
    """Return how many samples a trial is made with."""
    return batch_samples * (2 if order is DataOrder.SEQUENTIAL else 1)


class RehearsalReport(Frozen):
    """What was found. Either ``failed`` is there, or the rest is. Sizes in bytes."""

    failed: Failed | None = None
    weights_path: str = ""
    weights_bytes: int = 0
    frozen_path: str = ""
    """The file of the frozen tensors; empty if the model has none."""
    frozen_bytes: int = 0
    model_files: dict[str, Any] = Field(default_factory=dict)
    """``TaskSpec.model_files``."""
    rows: int | None = None
    """The length of the data set that ``make_dataset`` built."""
    loss: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    evaluation: dict[str, float] = Field(default_factory=dict)
    outer: OuterOptimizer | None = None
    """In gradients mode: the researcher's optimizer, for the server to apply."""
    tried: bool = False
    """Whether it was trained on a batch."""
    is_script: bool = False
    """It has a loop of its own, and calls ``farm.parts``."""
    carries: bool = True
    """False of a script whose optimizer keeps its state on its client."""
    evaluates: bool = True
    """False of a script that gave no function for held-out rows, and of a module that has no step for them."""
    has_state: bool = False
    """Whether something is carried from batch to batch."""
    has_scheduler: bool = False
    """In weights mode: whether clients follow a scheduler."""
    is_quantized: bool = False
    """``TaskSpec.is_quantized``."""
    reads_length: bool = False
    """``TaskSpec.reads_length``."""
    epoch_end: bool = False
    """It has an ``on_epoch_end``."""
    notes: tuple[str, ...] = ()
    """What the farm will not do although the code asks for it."""
    mode: Mode = Mode.WEIGHTS
    """What was tried."""
    obstacle: str = ""
    """Where the mode was open: why it is not gradients mode."""
    batch_seconds: float = 0.0
    """What the batch took, the work of a first time included; 0 if none was tried."""
    peak_rss_bytes: int = 0
    device: str = ""


class ExportRequest(Frozen):
    """What to export: the task as an executor loads it, its model's file of safetensors, and rows for a batch."""

    order: LoadTask
    model_path: str
    piece: Piece
    output: str


class ExportReport(Frozen):
    """How it went: the file is there where nothing ``failed``."""

    failed: Failed | None = None
