"""A server that breaks as ``AIFARM_FAULTS`` says: ``python -m tests.injection.server up``, with the usual options.

Five parts are wrapped: what hears results and sends acknowledgements, what orders folds, what folds, and what writes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coordinator.commands import CommitRound, Fold, Send
from farm_server.clients.dispatch import Dispatch
from farm_server.clients.reception import Reception
from farm_server.clients.registry import Peer
from farm_server.environment.settings import ServerSettings
from farm_server.observability.logs import configure_logs
from farm_server.operations.daemon import run
from farm_server.tensors.aggregator import Aggregator
from farm_server.tensors.checkpoint_writer import CheckpointWriter, Done
from farm_server.tensors.torch_side import TorchSide
from protocol.assignments import Ack, Assign, Kind, Result
from protocol.digests import digest_bytes
from protocol.errors import FarmError
from protocol.messages import Message
from storage.checkpoints import NewCheckpoint, WrittenCheckpoint
from tests.injection.places import Places
from tests.injection.plan import Fault
from tests.injection.standing import Standing


class BreakableParts:
    """Wraps a farm's parts; a ``protocol.composition.Wrap``."""

    def __init__(self, places: Places) -> None:
        self.reach = places.reach
        self.rounds: dict[str, int] = {}
        """Of training assignments, by their ids; of updates that are to be folded, by their digests."""

    def __call__(self, part: Any) -> Any:
        """Return what stands in the part's place."""
        for kind, wrapper in _WRAPPERS.items():
            if isinstance(part, kind):
                return wrapper(part, self)
        return part


class _Breakable(Standing):
    def __init__(self, part: Any, parts: BreakableParts) -> None:
        super().__init__(part)
        self._rounds = parts.rounds
        self._reach = parts.reach


class _Reception(_Breakable):
    async def take(self, peer: Peer, message: Message) -> None:
        number = self._rounds.get(message.assignment_id) if isinstance(message, Result) else None
        if number is not None:
            await asyncio.to_thread(self._reach, Fault.SERVER_SLOW, number)
        await self._part.take(peer, message)


class _Dispatch(_Breakable):
    def send(self, command: Send) -> None:
        message = command.message
        if isinstance(message, Assign) and message.kind is Kind.TRAIN:
            self._rounds[message.assignment_id] = message.round
        if isinstance(message, Ack) and self._is_lost(message):
            if (peer := self._part._registry.find(command.client_id, command.incarnation)) is not None:
                peer.wire.end("an acknowledgement was lost on purpose")
        else:
            self._part.send(command)

    def _is_lost(self, ack: Ack) -> bool:
        number = self._rounds.get(ack.assignment_id)
        if number is None:
            return False
        after_commit = ack.counted and self._reach(Fault.SERVER_AFTER_COMMIT, number)
        return after_commit or self._reach(Fault.SERVER_REPLY_LOST, number)


class _Aggregator(_Breakable):
    def fold(self, command: Fold) -> None:
        self._rounds[command.update.digest] = command.round
        self._part.fold(command)


class _TorchSide(_Breakable):
    def open_task(self, *task: Any) -> Any:
        self._part.warm_up()
        from coordinator.numerics.aggregates import aggregate_of  # torch, when it is needed
        from farm_server.tensors.noise import fresh_gaussian
        from farm_server.tensors.task_tensors import TaskTensors

        aggregates: list[_Aggregate] = []

        def make_aggregate(*recipe_and_layout: Any) -> Any:
            aggregates.append(_Aggregate(aggregate_of(*recipe_and_layout, fresh_gaussian), self._reach))
            return aggregates[0]

        return _Tensors(TaskTensors(*task, make_aggregate), aggregates[0], self._rounds, self._reach)


class _Tensors(Standing):
    def __init__(self, tensors: Any, aggregate: _Aggregate, rounds: dict[str, int], reach: Callable[..., bool]) -> None:
        super().__init__(tensors)
        self._aggregate, self._rounds, self._reach = aggregate, rounds, reach

    def fold(self, update: bytes | Path, samples: int, scale: float, *, client: str | None) -> None:
        self._aggregate.round = self._rounds[update.name if isinstance(update, Path) else digest_bytes(update)]
        self._reach(Fault.SERVER_BEFORE_FOLD, self._aggregate.round)
        self._part.fold(update, samples, scale, client=client)


class _Aggregate(Standing):
    round = 0

    def __init__(self, aggregate: Any, reach: Callable[..., bool]) -> None:
        super().__init__(aggregate)
        self._reach = reach

    def fold(self, update: Any, samples: int, scale: float, *, client: str | None) -> None:
        number = self.round
        reader = _Reader(update, lambda: self._reach(Fault.SERVER_WHILE_FOLDING, number))
        self._part.fold(reader, samples, scale, client=client)


class _Reader:
    """Reads an update's tensors; ``midway`` is called when the second one is asked for, or the only one."""

    def __init__(self, reader: Any, midway: Callable[[], object]) -> None:
        self.header = reader.header
        self._reader = reader
        self._midway: Callable[[], object] | None = midway
        self._first: str | None = None

    def read_into(self, name: str, start_byte: int, buffer: memoryview) -> None:
        self._first = self._first or name
        if self._midway is not None and (name != self._first or len(self.header.tensors) == 1):
            midway, self._midway = self._midway, None
            midway()
        self._reader.read_into(name, start_byte, buffer)


class _Writer(_Breakable):
    def prepare(self, command: CommitRound, *rest: Any) -> Any:
        self._reach(Fault.SERVER_BEFORE_COMMIT, command.round)
        return self._part.prepare(command, *rest)

    def finish_behind(self, new: NewCheckpoint, begun: Any, done: Done, *rest: Any) -> Any:
        return self._part.finish_behind(new, begun, self._durable(new, done), *rest)

    def write_behind(self, new: NewCheckpoint, done: Done) -> None:
        self._part.write_behind(new, self._durable(new, done))

    def _durable(self, new: NewCheckpoint, done: Done) -> Done:
        def durable(written: WrittenCheckpoint) -> None:
            self._reach(Fault.SERVER_WHILE_COMMITTING, new.round - 1)
            done(written)

        return durable


_WRAPPERS = {
    Reception: _Reception,
    Dispatch: _Dispatch,
    Aggregator: _Aggregator,
    TorchSide: _TorchSide,
    CheckpointWriter: _Writer,
}


def main() -> None:
    """Run a server whose parts are wrapped; its first line of output is its addresses, as with ``--json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["up"])
    parser.add_argument("--json", action="store_true")
    for name in ("--data-dir", "--host", "--port"):
        parser.add_argument(name)
    given = vars(parser.parse_args())
    settings = ServerSettings(**{name: given[name] for name in ("data_dir", "host", "port") if given[name] is not None})
    configure_logs(settings)
    try:
        run(settings, lambda info: print(json.dumps(asdict(info)), flush=True), wrap=BreakableParts(Places.planned()))
    except FarmError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()
