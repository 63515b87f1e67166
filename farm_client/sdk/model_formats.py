"""In which forms a trained model is written: `farm pull TASK --format …`, and ``task.pull(format=…)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from farm_client.sdk.api import FarmApi
from farm_client.sdk.download import pull_model, pull_torch
from farm_client.sdk.errors import BadFormat
from farm_client.sdk.model_folder import pull_folder
from farm_client.sdk.onnx_file import pull_onnx
from protocol.rest import ModelView

MODEL_FILE: Final = Path("model.safetensors")
"""Where a model is written that nobody gave a place; another format has another suffix."""

PullTo = Callable[[FarmApi, ModelView, Path, Callable[[int], None]], None]


class ModelFormat(StrEnum):
    """In which form a model is written."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    HF = "hf"
    ONNX = "onnx"


_WRITERS: Final[Mapping[ModelFormat, tuple[str, PullTo]]] = MappingProxyType(
    {
        ModelFormat.SAFETENSORS: (".safetensors", pull_model),
        ModelFormat.TORCH: (".pt", pull_torch),
        ModelFormat.HF: ("", pull_folder),
        ModelFormat.ONNX: (".onnx", pull_onnx),
    }
)
"""The suffix of the name that a model gets by itself, and what writes it."""


@dataclass(frozen=True, slots=True)
class WrittenAs:
    """A form for one model: its format, and for an adapter whether it is added to its base."""

    format: ModelFormat = ModelFormat.SAFETENSORS
    merged: bool = False

    @classmethod
    def named(cls, name: str, *, merged: bool = False) -> WrittenAs:
        """Return the form with this name. Raises: BadFormat if there is none, or none that can be merged."""
        if name not in list(ModelFormat):
            raise BadFormat(f"there is no format {name!r}: a model is written as {', '.join(ModelFormat)}")
        if merged and name != ModelFormat.HF:
            raise BadFormat("an adapter is merged into its base in the format hf alone: say --format hf --merged")
        return cls(ModelFormat(name), merged)

    def place(self, output: Path) -> Path:
        """Return where the model goes: ``output``, with the format's suffix if nobody chose it."""
        return output.with_suffix(_WRITERS[self.format][0]) if output == MODEL_FILE else output

    def pull(self, api: FarmApi, model: ModelView, output: Path, advance: Callable[[int], None]) -> None:
        """Write a model. ``advance`` is told how many more bytes came. Raises: as the format's writer."""
        pull_to = partial(pull_folder, merged=True) if self.merged else _WRITERS[self.format][1]
        pull_to(api, model, output, advance)
