"""What Hugging Face's libraries say of a model of theirs, in their own files; free of torch and of those libraries."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
MODEL_FILES: Final = (CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG)
BASE_PREFIX: Final = "base_model.model."
"""What peft's names begin with, in a model and in an adapter's file."""
_ADAPTER: Final = "default"
"""What peft calls the adapter of a model that has one."""


def model_files(model: Any) -> dict[str, Any]:
    """Return the JSON files, as read, by which ``from_pretrained`` knows this model; none if it is of another kind.

    An adapter is described only where its tensors have the names in its file that ``adapter_name`` gives them; with it
    its base, where the one can be merged into the other.
    """
    whole, adapter = model, None
    if _is_of(model, "peft", "PeftModel"):
        adapters = model.peft_config
        if adapters.keys() != {_ADAPTER} or not _has_usual_names(model):
            return {}
        whole, adapter = model.get_base_model(), adapters[_ADAPTER]
    writers = [] if adapter is None else [adapter]
    is_known = _is_of(whole, "transformers", "PreTrainedModel")
    if is_known and (adapter is None or hasattr(model.base_model, "merge_and_unload")):
        writers += [whole.config, getattr(whole, "generation_config", None)]
    files: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="aifarm-model-files-") as folder:
        for writer in writers:
            files |= _written(writer, Path(folder))
    if ADAPTER_CONFIG in files:
        files[ADAPTER_CONFIG]["base_model_name_or_path"] = None  # a folder of this machine
    if CONFIG in files:
        files[CONFIG]["architectures"] = [type(whole).__name__]  # a model writes it there, its configuration doesn't
    return files


def adapter_name(name: str) -> str | None:
    """Return what peft calls a tensor of the model in an adapter's file; None if it is not the adapter's."""
    *parts, last = name.split(".")
    if _ADAPTER not in (*parts, last):
        return None
    if last == _ADAPTER:
        return ".".join(parts)
    kept = [part for part in parts if part not in {_ADAPTER, "modules_to_save"}]
    return ".".join((*kept, last))


def base_name(name: str) -> str | None:
    """Return what a tensor of a model with an adapter is called in its base; None if it is the adapter's."""
    parts = name.removeprefix(BASE_PREFIX).split(".")
    return (
        None if _ADAPTER in parts else ".".join(part for part in parts if part not in {"base_layer", "original_module"})
    )


def _is_of(model: Any, library: str, kind: str) -> bool:
    """Return whether a model is of a library's class, by name.

    To ask the library for the class imports more of it, for seconds, and raises where that lacks something.
    """
    return any(base.__name__ == kind and base.__module__.partition(".")[0] == library for base in type(model).__mro__)


def _has_usual_names(model: Any) -> bool:
    peft = sys.modules["peft"]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return bool({adapter_name(name) for name in trained} == peft.get_peft_model_state_dict(model).keys())


def _written(writer: Any, folder: Path) -> dict[str, Any]:
    """Let a configuration write itself, and return the files that it wrote; none if it can't, or they are no JSON."""
    save = getattr(writer, "save_pretrained", None)
    if save is None:
        return {}
    try:
        save(str(folder))
        paths = [folder / name for name in MODEL_FILES if (folder / name).is_file()]
        return {path.name: json.loads(path.read_bytes(), parse_constant=_refuse) for path in paths}
    except Exception:  # of a library, or of the researcher's own class: no reason to refuse the task
        return {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
