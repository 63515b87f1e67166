"""What the steps of an assignment change, as a tensor file and back: a later process goes on from there.

The file's tensors, by their names' first part: ``weights/`` (parameters and all buffers), ``inner_state/`` (as
``inner_state.py`` writes it), ``sums/`` (the gradient so far, in gradients mode), ``residual/`` (what the update codec
kept back), ``random/`` (the generators), ``metrics`` (sums of the metrics so far). The metadata ``steps`` is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch

from farm_client.executor.inner_loop import InnerLoop
from farm_client.executor.inner_state import SavedState, StateFiles
from farm_client.executor.layout import ModelTensors, TensorMap
from farm_client.executor.randomness import random_states, set_random_states
from farm_client.executor.step_metrics import StepMetrics
from protocol.errors import FarmError

FORMAT: Final = 1
METADATA_KEY: Final = "steps"
_PARTS: Final = ("weights", "sums", "residual", "random")


class StateUnusable(Exception):
    """A file does not hold the state of these steps, or is damaged; what it was to restore is spoilt."""


@dataclass
class StepState:
    """How far the steps of one assignment are, and all that they have changed so far.

    ``loop`` is None in gradients mode, whose ``sums`` take its place; ``residual`` is the update codec's.
    """

    tensors: ModelTensors
    states: StateFiles
    means: StepMetrics
    loop: InnerLoop | None = None
    sums: TensorMap = field(default_factory=dict)
    residual: TensorMap = field(default_factory=dict)
    steps: int = 0
    samples: int = 0
    batch: Any = None
    """That of the step under way; None between steps."""
    batch_samples: int = 0
    drawn: torch.Tensor | None = None
    """The state of torch's generator as that step began: to read it takes no microsecond, others' take dozens."""

    def begin_step(self, batch: Any, samples: int) -> None:
        """Note the step under way."""
        self.batch, self.batch_samples, self.drawn = batch, samples, torch.get_rng_state()

    def end_step(self) -> None:
        """Count the step that was under way."""
        self.steps += 1
        self.samples += self.batch_samples
        self.batch = None

    def saved(self, about: Mapping[str, Any], *, with_inner: bool = True) -> SavedState:
        """Return all of it; ``about`` goes into the metadata. The tensors are the live ones where they can be.

        Without ``with_inner`` the inner loop's state is left out, and nothing can go on from it.
        Raises: CodeError if the inner loop's state holds what no tensor file can, or training left NaN in it.
        """
        sums, counts = self.means.so_far()
        drawn, positions = random_states(self._device)
        found = {
            **_named("weights", self._weights()),
            **_named("sums", self.sums),
            **_named("residual", self.residual),
            **_named("random", drawn),
            "metrics": torch.tensor(list(sums.values()), dtype=torch.float64),
        }
        record = {
            **about,
            "format": FORMAT,
            "torch": torch.__version__,
            "device": self._device.type,
            "steps": self.steps,
            "samples": self.samples,
            "metrics": [[name, counts[name]] for name in sums],
            "untouched": [] if self.loop is None else sorted(self.loop.untouched),
            "random": positions,
        }
        inner = SavedState({}, {})
        if self.loop is not None and with_inner:
            inner = self.states.save(self.loop.stateful())
        return SavedState(found | inner.tensors, {METADATA_KEY: json.dumps(record)} | inner.metadata)

    def load(self, path: Path, about: Mapping[str, Any]) -> None:
        """Become what a file says, all generators included. Raises: StateUnusable, and nothing is as it was."""
        try:
            self._restore(self._expected_record(path, about), path)
        except StateUnusable:
            raise
        except Exception as error:  # whatever is wrong with a file, the work can begin anew
            raise StateUnusable(f"it cannot be read ({type(error).__name__}: {error})") from error

    def _expected_record(self, path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
        record = read_record(path)
        expected = {**about, "format": FORMAT, "torch": torch.__version__, "device": self._device.type}
        if other := [name for name, value in expected.items() if record.get(name) != value]:
            raise StateUnusable(f"its {other[0]} is another")
        return record

    def _restore(self, record: Mapping[str, Any], path: Path) -> None:
        parts: dict[str, TensorMap] = {part: {} for part in _PARTS}
        loaded = safetensors.torch.load_file(path)
        for name, tensor in loaded.items():
            part, _, own_name = name.partition("/")
            if part in parts:
                parts[part][own_name] = tensor
        self.tensors.load(parts["weights"], self._weights())
        self.sums.update({name: tensor.to(self._device) for name, tensor in parts["sums"].items()})
        self.residual.update(parts["residual"])
        if self.loop is not None:
            self.states.load(self.loop.stateful(), path)
            self.loop.untouched = set(record["untouched"])
        sums = dict(zip((name for name, _ in record["metrics"]), loaded["metrics"].tolist(), strict=True))
        self.means.go_on(sums, dict(record["metrics"]))
        self.steps, self.samples = int(record["steps"]), int(record["samples"])
        set_random_states(parts["random"], record["random"], self._device)

    def _weights(self) -> TensorMap:
        """Return what training changes, and the buffers that no weights file has."""
        known = {*self.tensors.all(), *self.tensors.tied}
        passing = {name: buffer for name, buffer in self.tensors.model.named_buffers() if name not in known}
        return self.tensors.changing() | passing

    @property
    def _device(self) -> torch.device:
        return next(iter(self.tensors.parameters.values())).device


def read_record(path: Path) -> dict[str, Any]:
    """Return a state file's metadata. Raises: StateUnusable if it is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
    except (OSError, ValueError, safetensors.SafetensorError, FarmError) as error:
        raise StateUnusable(f"it cannot be read ({error})") from error
    if not isinstance(record, dict):
        raise StateUnusable("it is no state of steps")
    return record


def _named(part: str, tensors: Mapping[str, torch.Tensor]) -> TensorMap:
    return {f"{part}/{name}": tensor.detach() for name, tensor in tensors.items()}
