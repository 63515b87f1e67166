"""The steps in which a task's code failed, as folders: `farm pull TASK --failed`, and ``load_failed`` to try them.

Each folder has ``state.safetensors`` (weights, inner optimizer and generators, by ``executor.step_state``'s names),
``batch.safetensors`` and ``failure.json``. Nothing in them is pickled.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from farm_client.sdk.api import FarmApi
from farm_client.sdk.download import download_weights
from farm_client.sdk.errors import BadOutput
from protocol.errors import MalformedTensors, NotFound
from protocol.failed_steps import BATCH_PREFIX, METADATA_KEY
from protocol.rest import TaskDetail
from protocol.tasks import BlobRef

if TYPE_CHECKING:
    import torch

STATE: Final = "state.safetensors"
BATCH: Final = "batch.safetensors"
FAILURE: Final = "failure.json"
_WEIGHTS: Final = "weights/"
_TREE: Final = "batch"


@dataclass(frozen=True)
class FailedStep:
    """A failed step, loaded: ``about`` is ``failure.json``.

    ``weights`` are what training may change of the model, buffers included; none where the state was too large.
    """

    weights: dict[str, torch.Tensor]
    batch: Any
    about: dict[str, Any]


def pull_failed_steps(
    api: FarmApi, task_id: str, output: Path, advance: Callable[[int], None] = lambda _: None
) -> list[Path]:
    """Write each failed step that the farm keeps of a task to a folder in ``output``; return them: 1, 2 and so on.

    ``output`` must not be there yet, and appears whole or not at all.
    Raises: BadOutput if it is there; NotFound if nothing is kept; DigestMismatch; MalformedTensors.
    """
    if output.exists():
        raise BadOutput(f"{output} is there already: name a new folder with -o")
    detail = api.task(task_id)
    if not detail.failed_steps:
        raise NotFound(_why_none(detail))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as made:
        whole = Path(made) / "steps"
        for number, step in enumerate(detail.failed_steps, start=1):
            folder = whole / str(number)
            folder.mkdir(parents=True)
            file = folder / "step"
            download_weights(api, BlobRef(digest=step.digest, size_bytes=step.size_bytes), file, advance)
            _take_apart(file, folder, task_id)
            file.unlink()
        whole.rename(output)
    return [output / str(number) for number in range(1, len(detail.failed_steps) + 1)]


def load_failed(folder: str | Path) -> FailedStep:
    """Return the step of a folder that ``pull_failed`` wrote, on the CPU, to try it at home.

    ``model.load_state_dict(step.weights, strict=False)``, then ``loss(model, step.batch)``.
    Raises: OSError if it is no such folder; MalformedTensors.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - torch takes a second, and few calls need it
    from safetensors.torch import load_file  # noqa: PLC0415

    from farm_client.executor.failed_step import rebuilt  # noqa: PLC0415

    path = Path(folder)
    about = json.loads((path / FAILURE).read_text(encoding="utf-8"))
    try:
        with safe_open(path / BATCH, framework="pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
        batch = rebuilt(tree, load_file(path / BATCH))
        state = load_file(path / STATE) if (path / STATE).exists() else {}
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedTensors(f"{path} holds no failed step: {error}") from error
    weights = {name.removeprefix(_WEIGHTS): tensor for name, tensor in state.items() if name.startswith(_WEIGHTS)}
    return FailedStep(weights, batch, about)


def _why_none(detail: TaskDetail) -> str:
    task = detail.task
    if detail.failed_steps is None:
        return "this farm's server keeps no failed steps: it must be upgraded first"
    if task.error is None:
        return f"the code of task {task.task_id} has not failed: without --failed its model is fetched"
    return (
        f"task {task.task_id} failed, but not in a training step that a client could keep: "
        f"`farm why {task.task_id}` and `farm logs {task.task_id}` say what happened"
    )


def _take_apart(file: Path, folder: Path, task_id: str) -> None:
    """Write the three files of a step. Raises: MalformedTensors if it is none."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - as in ``load_failed``
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
        about = json.loads(metadata.pop(METADATA_KEY))
        tree = about.pop(_TREE)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedTensors(f"what a client kept of the failed step can't be read: {error}") from error
    tensors = load_file(file)
    batch = {name: tensor for name, tensor in tensors.items() if name.startswith(BATCH_PREFIX)}
    state = {name: tensor for name, tensor in tensors.items() if name not in batch}
    save_file(batch, folder / BATCH, {_TREE: json.dumps(tree)})
    if state:
        save_file(state, folder / STATE, metadata)
    text = json.dumps({"task": task_id, **about}, indent=2)
    (folder / FAILURE).write_text(text + "\n", encoding="utf-8")
