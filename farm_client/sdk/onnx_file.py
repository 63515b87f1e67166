"""A trained model as an ONNX file: `farm pull TASK --format onnx`.

torch's exporter needs the model itself, so the task's code is fetched and run, in a process of its own and with a few
rows of the task's data. Who pulls another person's task so runs that person's code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from farm_client.agent.executors.bundle import unpack_bundle
from farm_client.executor.messages import LoadTask, Piece
from farm_client.executor.rehearsal_records import ExportReport, ExportRequest
from farm_client.sdk.api import FarmApi
from farm_client.sdk.check import CheckFailed
from farm_client.sdk.child_process import ask_child
from farm_client.sdk.download import check_output, download_weights, make_ordinary, pull_model
from farm_client.sdk.errors import MissingLibrary
from protocol.rest import ModelView
from protocol.tasks import Split, TaskSpec

_LIBRARIES: Final = ("onnx", "onnxscript")
_SAMPLES: Final = 8
"""In the batch that the model is seen with; a batch of one would look like a size that never changes."""


def pull_onnx(api: FarmApi, model: ModelView, output: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write the model to ``output``, whole or not at all.

    Raises: MissingLibrary; CheckFailed with what of the model can't be exported; BadBundle; what ``pull_model`` raises.
    """
    check_output(output)
    if missing := [name for name in _LIBRARIES if find_spec(name) is None]:
        raise MissingLibrary(f"the format onnx needs {missing[0]}: pip install 'aifarm[onnx]'")
    spec = api.task(model.task_id).spec
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as made:
        folder = Path(made)
        pull_model(api, model, folder / "model.safetensors", advance)
        _fetch_task(api, spec, folder)
        _export(folder, _order(model, spec, folder), _piece(api, spec, folder))
        make_ordinary(folder / "model.onnx")
        (folder / "model.onnx").replace(output)


def _fetch_task(api: FarmApi, spec: TaskSpec, folder: Path) -> None:
    """Bring the task's code, and the folder that its model is built from."""
    download_weights(api, spec.code, folder / "code.zip")
    unpack_bundle(folder / "code.zip", folder / "code")
    for file in spec.base:
        path = folder / "base" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        download_weights(api, file.blob, path)


def _order(model: ModelView, spec: TaskSpec, folder: Path) -> LoadTask:
    recipe = spec.recipe
    return LoadTask(
        task_id=model.task_id,
        code_dir=str(folder / "code"),
        base_dir=str(folder / "base") if spec.base else None,
        entry=spec.entry,
        config=spec.config,
        mode=recipe.mode,
        seed=recipe.seed,
        batch_samples=_SAMPLES,
        dataset_kind=spec.dataset.kind,
        scratch_dir=str(folder),
        tuple_columns=recipe.tuple_columns,
    )


def _piece(api: FarmApi, spec: TaskSpec, folder: Path) -> Piece:
    """Return a few rows of the smallest shard, which is fetched if it is a file."""
    shards = [shard for shard in spec.dataset.shards if shard.split is Split.TRAIN]
    shard = min(shards, key=lambda one: one.blob.size_bytes if one.blob else one.start)
    path = None
    if shard.blob is not None:
        path = str(folder / "shard.safetensors")
        download_weights(api, shard.blob, Path(path))
    return Piece(
        shard=shard.index,
        split=shard.split,
        shard_samples=shard.samples,
        first_row=shard.start,
        path=path,
        start=0,
        stop=min(shard.samples, _SAMPLES),
    )


def _export(folder: Path, order: LoadTask, piece: Piece) -> None:
    request = ExportRequest(
        order=order, model_path=str(folder / "model.safetensors"), piece=piece, output=str(folder / "model.onnx")
    )
    answer = ask_child("farm_client.executor.onnx_export", request.model_dump_json(), folder)
    if answer.report is None:
        raise CheckFailed(f"the process that exports the model ended with code {answer.exit_code}", None, answer.output)
    failed = ExportReport.model_validate_json(answer.report).failed
    if failed is not None:
        raise CheckFailed(failed.message, failed.traceback, answer.output)
