"""Offers of any size, for tests of what carries them."""

from __future__ import annotations

from protocol.assignments import Assign, Kind, Slice
from protocol.recipe import Mode
from protocol.tasks import BlobRef, Shard, TaskBrief

DIGEST = "0" * 64
BRIEF = TaskBrief(
    task_id="t1",
    name="t1",
    mode=Mode.WEIGHTS,
    code=BlobRef(digest=DIGEST, size_bytes=1),
    entry="train.py",
    config={},
    seed=0,
    batch_samples=1,
    dataset_kind="code",
)


def assign(number: int, inline_bytes: int = 0) -> Assign:
    return Assign(
        assignment_id=f"a{number}",
        fence=number,
        kind=Kind.TRAIN,
        task=BRIEF,
        round=0,
        epoch=0,
        weights=BlobRef(digest=DIGEST, size_bytes=inline_bytes, inline=bytes(inline_bytes)),
        slices=(Slice(shard=Shard(index=0, samples=1), start=0, stop=1),),
        lease_seconds=1.0,
    )
