"""The agent's side of a real executor process: what starts it, sends it orders and hears its reports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from farm_client.executor.channel import FD_VARIABLE
from farm_client.executor.layout import ModelTensors
from farm_client.executor.messages import REPORT, Advance, Building, LoadTask, Order, Piece, Report, Run
from protocol.assignments import Kind
from protocol.digests import digest_bytes
from protocol.framing import FrameDecoder, pack_frame
from protocol.recipe import Mode
from protocol.tasks import Shard, Split

_FAREWELL_SECONDS = 3.0


@dataclass
class Agent:
    """The agent's side: sends orders and hears reports."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    decoder: FrameDecoder = field(default_factory=FrameDecoder)
    reports: list[Report] = field(default_factory=list)

    def send(self, order: Order) -> None:
        self.connection.sendall(pack_frame(order.model_dump()))

    def hear(self) -> Report:
        while not self.reports:
            data = self.connection.recv(1 << 16)
            assert data, "the executor closed its socket"
            self.reports += [REPORT.validate_python(frame) for frame in self.decoder.feed(data)]
        report = self.reports.pop(0)
        return self.hear() if isinstance(report, Building) else report

    def hear_end(self) -> tuple[list[Advance], Report]:
        """Hear the progress of an assignment and its outcome."""
        advances = []
        while isinstance(report := self.hear(), Advance):
            advances.append(report)
        return advances, report


@contextmanager
def started(module: str = "farm_client.executor", **variables: str) -> Iterator[Agent]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        env={**os.environ, **variables, FD_VARIABLE: str(theirs.fileno())},
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    theirs.close()
    yield Agent(process, ours)
    ours.close()
    with suppress(subprocess.TimeoutExpired):  # one that ends by itself tells what it measured of itself
        process.wait(timeout=_FAREWELL_SECONDS)
    process.kill()
    process.communicate()


def load_order(folder: Path, source: str, **changes: Any) -> LoadTask:
    code = folder / "code"
    code.mkdir(exist_ok=True)
    (code / "train.py").write_text(textwrap.dedent(source))
    order = LoadTask(
        task_id="t",
        code_dir=str(code),
        entry="train.py",
        config={},
        mode=Mode.WEIGHTS,
        seed=1,
        batch_samples=8,
        dataset_kind="files",
        scratch_dir=str(folder),
        report_bytes=1 << 20,
    )
    return order.model_copy(update=changes)


def run_order(shards: list[Shard], files: dict[str, Path], **changes: Any) -> Run:
    weights = ModelTensors.of(nn.Linear(3, 2)).weights_file()
    pieces = tuple(
        Piece(
            shard=s.index,
            split=s.split,
            shard_samples=s.samples,
            first_row=0,
            path=str(files[s.blob.digest]),
            start=0,
            stop=s.samples,
        )
        for s in shards
        if s.split is Split.TRAIN and s.blob
    )
    order = Run(
        assignment_id="a1",
        kind=Kind.TRAIN,
        round=0,
        epoch=0,
        weights_digest=digest_bytes(weights),
        weights=weights,
        pieces=pieces,
    )
    return order.model_copy(update=changes)
