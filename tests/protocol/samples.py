"""One message of each type, for the tests that go over the whole union."""

from __future__ import annotations

from typing import get_args

from protocol.assignments import (
    Accept,
    Ack,
    Assign,
    AssignmentProgress,
    Cancel,
    Kind,
    LogLine,
    MetricPoint,
    Phase,
    Prefetch,
    Progress,
    Reject,
    RejectCode,
    Result,
    Slice,
)
from protocol.digests import digest_bytes
from protocol.messages import (
    Bye,
    Drain,
    Error,
    Heartbeat,
    Hello,
    Message,
    Pace,
    Pause,
    Ready,
    Resume,
    Scope,
    Welcome,
)
from protocol.recipe import Mode
from protocol.resources import Gpu, Load, Resources
from protocol.sandbox import Rung, Sandbox
from protocol.secure_messages import (
    BareShare,
    KeysAt,
    PeerShares,
    PublicKeys,
    Revealed,
    RoundKeys,
    SealedShare,
    SealedShares,
    Survivors,
)
from protocol.tasks import BlobRef, Shard, TaskBrief

MESSAGE_TYPES: tuple[type[Message], ...] = get_args(get_args(Message)[0])

BLOB = BlobRef(digest=digest_bytes(b"weights"), size_bytes=7, inline=b"weights")
GPU = Gpu(index=0, name="Test GPU", memory_bytes=8 << 30, memory_free_bytes=7 << 30, utilization=0.5)
DOING = AssignmentProgress(assignment_id="a1", fence=3, phase=Phase.COMPUTING, samples_done=64)
BRIEF = TaskBrief(
    task_id="abcdefgh",
    name="digits",
    mode=Mode.WEIGHTS,
    code=BlobRef(digest=digest_bytes(b"code"), size_bytes=4),
    entry="train.py",
    config={"lr": 0.1, "schedule": None, "layers": [64, 10]},
    seed=7,
    batch_samples=32,
    dataset_kind="files",
)
KEYS = PublicKeys(cipher_key=b"c" * 32, mask_key=b"m" * 32, commitment=b"s" * 32)
SAMPLES: tuple[Message, ...] = (
    Hello(
        versions=(1, 2),
        client_id="c1",
        client_secret="s" * 16,
        name="lab",
        resources=Resources(gpus=(GPU,)),
        sandbox=Sandbox(rung=Rung.LANDLOCK, probes=1),
    ),
    Welcome(version=2, incarnation=4),
    Pace(heartbeat_seconds=4.0, progress_seconds=1.0, lost_after_seconds=16.0),
    Heartbeat(load=Load(cpu=0.25, gpus=(GPU,)), assignments=(DOING,)),
    Ready(slots=1),
    Assign(
        assignment_id="a1",
        fence=3,
        kind=Kind.TRAIN,
        task=BRIEF,
        round=0,
        epoch=0,
        weights=BLOB,
        slices=(Slice(shard=Shard(index=0, samples=100, blob=BLOB), start=0, stop=64),),
        lease_seconds=30.0,
    ),
    Prefetch(blobs=(BlobRef(digest=digest_bytes(b"delta"), size_bytes=9_000_000),)),
    Accept(assignment_id="a1", fence=3, keys=KEYS),
    RoundKeys(assignment_id="a1", fence=3, advertised=(KeysAt(point=1, keys=KEYS), KeysAt(point=65, keys=KEYS))),
    SealedShares(assignment_id="a1", fence=3, shares=(SealedShare(point=65, sealed=bytes(148)),)),
    PeerShares(assignment_id="a1", fence=3, shares=(SealedShare(point=65, sealed=bytes(148)),)),
    Survivors(assignment_id="a1", fence=3, points=(1, 65)),
    Revealed(assignment_id="a1", fence=3, self_shares=(BareShare(point=1, share=bytes(66)),), key_shares=()),
    Reject(assignment_id="a1", fence=3, code=RejectCode.BUSY, message="one at a time"),
    Progress(progress=DOING, metrics=(MetricPoint(name="loss", value=0.5, step=2),), logs=(LogLine(text="hi"),)),
    Result(assignment_id="a1", fence=3, samples=64, metrics={"loss": 0.5}, update=BLOB, compute_seconds=0.1),
    Ack(assignment_id="a1", fence=3, counted=True),
    Error(code="task_code", message="boom", assignment_id="a1", fence=3, scope=Scope.NOBODY, traceback="Traceback"),
    Cancel(assignment_id="a1", fence=3, reason="cancelled by its submitter"),
    Pause(task_id="abcdefgh", reason="paused by its submitter"),
    Resume(task_id="abcdefgh"),
    Drain(reason="Ctrl-C"),
    Bye(reason="done"),
)
BY_TYPE: dict[str, Message] = {message.type: message for message in SAMPLES}
