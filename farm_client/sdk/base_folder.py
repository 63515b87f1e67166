"""A task's base: the folder of a pretrained model, as ``save_pretrained`` and the Hugging Face hub lay it out.

Each file is a blob by its digest, which tasks over one base, restarts and clients share. Nothing of it is unpickled
anywhere: weights are safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from farm_client.data.sharding import blob_of
from protocol.errors import InvalidTask
from protocol.tasks import MAX_BASE_FILES, BaseFile, base_path_fault

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_UNTRIED: Final = {"gptq": "GPTQ", "awq": "AWQ"}
"""Forms of quantized weights, by ``quant_method``, whose layers keep what nobody has tried to train over or to send."""
_HUB_BLOBS: Final = "blobs"
"""A snapshot of the hub's cache is a folder of links into this one, two levels above it."""


def read_base(folder: Path) -> dict[str, Path]:
    """Return the folder's files by their paths in it; hidden ones stay out.

    Raises: InvalidTask if it is no model's folder, a shard of its weights is missing or damaged, a file is a pickle or
        lies elsewhere, or the weights are quantized in a form that the farm has no layers for.
    """
    if not folder.is_dir():
        raise InvalidTask(f"--base {folder} is no folder: give the one that save_pretrained wrote")
    files = {path.relative_to(folder).as_posix(): path for path in _inside(folder)}
    if len(files) > MAX_BASE_FILES:
        raise InvalidTask(f"--base {folder} has {len(files)} files, more than {MAX_BASE_FILES}: leave only the model's")
    homes = (folder.resolve(), folder.resolve().parent.parent / _HUB_BLOBS)
    for name, path in files.items():
        if why := base_path_fault(name):
            raise InvalidTask(f"--base {folder}: {why}")
        if not any(path.resolve().is_relative_to(home) for home in homes):
            raise InvalidTask(f"--base {folder}: {name} is a link to a file elsewhere; copy the file into the folder")
    _refuse_untried(folder, _json(folder, files, CONFIG))
    for name in _weights(folder, files):
        _check_tensors(folder, name, files[name])
    return files


def base_blobs(files: Mapping[str, Path]) -> tuple[tuple[BaseFile, ...], dict[str, Path]]:
    """Return how a task names the files of its base, and the files by digest."""
    named = tuple(
        BaseFile(path=name, blob=blob_of(path)) for name, path in sorted(files.items()) if path.stat().st_size
    )
    return named, {file.blob.digest: files[file.path] for file in named}


def _inside(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _inside(path)
        elif path.is_file():
            yield path
        else:
            raise InvalidTask(f"--base {folder}: {path.name} leads to no file; remove it, or fetch the model again")


def _json(folder: Path, files: Mapping[str, Path], name: str) -> dict[str, object]:
    if name not in files:
        raise InvalidTask(f"--base {folder} has no {name}: give the folder that save_pretrained wrote")
    try:
        document = json.loads(files[name].read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidTask(f"--base {folder}: {name} is not JSON ({error}); fetch the model again") from error
    if not isinstance(document, dict):
        raise InvalidTask(f"--base {folder}: {name} holds no table; fetch the model again")
    return document


def _refuse_untried(folder: Path, config: Mapping[str, object]) -> None:
    about = config.get("quantization_config")
    method = about.get("quant_method") if isinstance(about, dict) else None
    if form := _UNTRIED.get(str(method).lower()):
        raise InvalidTask(
            f"--base {folder} is quantized by {form}, and the farm trains over bitsandbytes' layers alone: give "
            "the model before it was quantized, and have build_model load it with "
            "quantization_config=BitsAndBytesConfig(load_in_4bit=True), or 8bit"
        )


def _weights(folder: Path, files: Mapping[str, Path]) -> set[str]:
    """Return the names of the files with the weights. Raises: InvalidTask if there are none, or one is missing."""
    if WEIGHTS in files:
        return {WEIGHTS}
    if INDEX not in files:
        raise InvalidTask(f"--base {folder} has neither {WEIGHTS} nor {INDEX}: write the model with save_pretrained")
    shards = _json(folder, files, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InvalidTask(f"--base {folder}: {INDEX} names no file; fetch the model again")
    named = {str(name) for name in shards.values()}
    if missing := sorted(named - files.keys()):
        raise InvalidTask(f"--base {folder}: {INDEX} names {missing[0]}, which is not there; fetch the model again")
    return named


def _check_tensors(folder: Path, name: str, path: Path) -> None:
    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except SafetensorError as error:
        raise InvalidTask(f"--base {folder}: {name} is no whole safetensors file ({error})") from error
