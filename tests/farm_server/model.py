"""A tiny task: a model of one weight vector, and the files that a farm exchanges about it."""

from __future__ import annotations

import functools
import io
import zipfile
from typing import Any

import httpx
import numpy as np
import safetensors.numpy

from protocol.digests import digest_bytes
from protocol.recipe import OuterOptimizer, Recipe
from protocol.tasks import BlobRef, Dataset, Shard, Split, TaskSpec
from protocol.tensors import UPDATE_METADATA, weights_metadata

ELEMENTS = 8


def ref(data: bytes) -> BlobRef:
    return BlobRef(digest=digest_bytes(data), size_bytes=len(data))


@functools.cache
def weights(value: float = 0.0, elements: int = ELEMENTS) -> bytes:
    # cached: the library writes metadata in random order, so that the same weights have several digests
    return safetensors.numpy.save({"w": np.full(elements, value, np.float32)}, weights_metadata({}, {}))


def update(value: float = 1.0, elements: int = ELEMENTS) -> bytes:
    return safetensors.numpy.save({"w": np.full(elements, value, np.float32)}, dict(UPDATE_METADATA))


def values(file: bytes) -> np.ndarray:
    return safetensors.numpy.load(file)["w"]


def zipped(**files: str) -> bytes:
    """A zip of Python files by their names without the suffix; the same bytes at each call."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.py"), text)
    return output.getvalue()


CODE = zipped(train="the code of the task")
SHARD = b"a shard of 64 samples"


def spec(initial: bytes | None = None, **changes: Any) -> TaskSpec:
    fields: dict[str, Any] = {
        "name": "tiny",
        "code": ref(CODE),
        "initial_weights": ref(initial if initial is not None else weights()),
        "dataset": Dataset(kind="files", shards=(Shard(index=0, samples=64, blob=ref(SHARD)),)),
        "recipe": Recipe(rounds=3, round_samples=64, outer=OuterOptimizer(options={"lr": 1.0})),
    }
    return TaskSpec(**fields | changes)


def with_holdout(**changes: Any) -> TaskSpec:
    shards = (
        Shard(index=0, samples=64, blob=ref(SHARD)),
        Shard(index=1, samples=8, blob=ref(SHARD), split=Split.HOLDOUT),
    )
    return spec(dataset=Dataset(kind="files", shards=shards), **changes)


async def upload(http: httpx.AsyncClient, *blobs: bytes) -> None:
    for data in blobs:
        (await http.put(f"/v1/blobs/{digest_bytes(data)}", content=data)).raise_for_status()


async def submit(http: httpx.AsyncClient, task: TaskSpec | None = None, *, initial: bytes | None = None) -> str:
    await upload(http, CODE, SHARD, initial if initial is not None else weights())
    answer = await http.post("/v1/tasks", json=(task or spec(initial)).model_dump(mode="json"))
    answer.raise_for_status()
    return str(answer.json()["task"]["task_id"])
