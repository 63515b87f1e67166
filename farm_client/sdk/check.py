"""Try a task before it is submitted: its model, one batch, one evaluation, in a process of its own.

The process unpacks the very bundle that volunteers get, so that a file which was left out is missed here already.
"""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farm_client.data.guarded import RowSource
from farm_client.data.readers import open_data
from farm_client.data.sharding import write_sample
from farm_client.data.text import DEFAULT_ROW_BYTES
from farm_client.executor.rehearsal_records import RehearsalReport, RehearsalRequest, tried_samples
from farm_client.sdk.bundle import Bundle, make_bundle
from farm_client.sdk.child_process import ask_child
from protocol.compression import CodecSpec
from protocol.errors import InvalidTask
from protocol.fragments import FragmentPattern
from protocol.named_schedule import NamedSchedule
from protocol.recipe import DataOrder, InnerState, Mode, Precision


class CheckFailed(InvalidTask):
    """The task's code failed here; it would fail on every volunteer.

    ``trace`` is the researcher's traceback, trimmed; ``output`` the last lines that the code printed.
    """

    def __init__(self, message: str, trace: str | None = None, output: str = "") -> None:
        super().__init__(message)
        self.trace = trace
        self.output = output


@dataclass(frozen=True)
class Trial:
    """What is tried; without a ``mode`` gradients mode, or weights mode if the server can't take the task's steps.

    ``source`` are the data files' rows; ``rows`` the size of a data set that ``load_shard`` makes.
    """

    bundle: Bundle
    config: Mapping[str, Any]
    mode: Mode | None
    batch_samples: int
    seed: int = 0
    source: RowSource | None = None
    rows: int | None = None
    rows_before: int | None = None
    """How many rows ``make_dataset`` must give, where a config changed that it depends on."""
    tries_batch: bool = True
    order: DataOrder = DataOrder.SHUFFLED
    inner_state: InnerState = InnerState.FRESH
    update_codec: CodecSpec = field(default_factory=CodecSpec)
    ignore: tuple[str, ...] = ()
    tuple_columns: tuple[str, ...] = ()
    clip_norm: float | None = None
    clip_value: float | None = None
    proximal_mu: float = 0.0
    fragments: int = 1
    fragment_pattern: FragmentPattern = FragmentPattern.STRIDED
    fragment_mix: float = 0.0
    scaffold_clients: int = 0
    schedule: NamedSchedule | None = None
    rounds: int | None = None
    epochs: float | None = None
    round_samples: int = 1
    holdout: float = 0.0
    precision: Precision = Precision.FP32
    compile: bool = False
    base: Path | None = None
    """The folder that the model is built from."""
    beside: Path | None = None
    """The folder of a file that was submitted alone: what it imports may lie there."""


def check_task(
    code: Path,
    config: Mapping[str, Any],
    data: Sequence[Path] = (),
    *,
    mode: Mode = Mode.WEIGHTS,
    batch_samples: int = 32,
    row_bytes: int = DEFAULT_ROW_BYTES,
) -> RehearsalReport:
    """Try a file or folder of code with its data, and return what was measured.

    Raises: CheckFailed with a sentence that names the researcher's line; InvalidTask for code that cannot be bundled;
        DataError for data that cannot be read.
    """
    source = open_data(data, row_bytes) if data else None
    bundle = make_bundle(code, without=data)
    with tempfile.TemporaryDirectory(prefix="aifarm-check-") as folder:
        trial = Trial(bundle, config, mode, batch_samples, source=source, beside=folder_of(code))
        return run_trial(trial, Path(folder))


def folder_of(code: Path) -> Path | None:
    """Return the folder of a file that is submitted alone; None for a folder."""
    return None if code.is_dir() else code.parent


def run_trial(trial: Trial, folder: Path) -> RehearsalReport:
    """Run a trial; the initial weights stay in ``folder``, by the report's ``weights_path``.

    Raises: CheckFailed.
    """
    code_dir = folder / "code"
    trial.bundle.unpack(code_dir)
    sample_path, sample_rows = None, 0
    if trial.source is not None:
        sample_path = folder / "sample.safetensors"
        sample_rows = write_sample(trial.source, tried_samples(trial.batch_samples, trial.order), sample_path)
    request = RehearsalRequest(
        code_dir=str(code_dir),
        entry=trial.bundle.entry,
        config=dict(trial.config),
        base_dir=None if trial.base is None else str(trial.base.absolute()),
        mode=trial.mode,
        seed=trial.seed,
        batch_samples=trial.batch_samples,
        folder=str(folder),
        sample_path=None if sample_path is None else str(sample_path),
        sample_rows=sample_rows,
        rows=trial.rows,
        rows_before=trial.rows_before,
        tries_batch=trial.tries_batch,
        order=trial.order,
        inner_state=trial.inner_state,
        update_codec=trial.update_codec,
        ignore=trial.ignore,
        tuple_columns=trial.tuple_columns,
        clip_norm=trial.clip_norm,
        clip_value=trial.clip_value,
        proximal_mu=trial.proximal_mu,
        fragments=trial.fragments,
        fragment_pattern=trial.fragment_pattern,
        fragment_mix=trial.fragment_mix,
        scaffold_clients=trial.scaffold_clients,
        schedule=trial.schedule,
        file_rows=0 if trial.source is None else trial.source.rows,
        rounds=trial.rounds,
        epochs=trial.epochs,
        round_samples=trial.round_samples,
        holdout=trial.holdout,
        precision=trial.precision,
        compile=trial.compile,
    )
    report, output = _run_process(request, folder)
    if report.failed is not None:
        message = report.failed.message + _where_it_is(report.failed.message, trial.beside)
        raise CheckFailed(message, report.failed.traceback, output)
    return report


def _where_it_is(message: str, beside: Path | None) -> str:
    """Return a clause on a module or file that was not found and that lies beside the submitted file."""
    missing = re.search(r"No module named '([^'.]+)|No such file or directory: '([^']+)'", message)
    if missing is None or beside is None:
        return ""
    module, file = missing.groups()
    name = module or file
    is_there = (beside / name).exists() or (module is not None and (beside / f"{name}.py").is_file())
    return f"; {name} is beside your file: submit the folder {beside}" if is_there else ""


def _run_process(request: RehearsalRequest, folder: Path) -> tuple[RehearsalReport, str]:
    answer = ask_child("farm_client.executor.rehearsal", request.model_dump_json(), folder)
    if answer.report is None:
        raise CheckFailed(
            f"{request.entry} ended its process while it was tried: {_cause(answer.exit_code)}", None, answer.output
        )
    return RehearsalReport.model_validate_json(answer.report), answer.output


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}; the code must not call exit"
    name = signal.Signals(-code).name
    return f"killed by {name}" + ("; this machine is short of memory" if name == "SIGKILL" else "")
