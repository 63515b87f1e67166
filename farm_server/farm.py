"""All parts of one running server, put together. Nothing is decided here."""

from __future__ import annotations

import asyncio
import gc
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Self

import structlog

from coordinator.commands import (
    Command,
    CommitRound,
    DropClient,
    DropRound,
    DropUpdate,
    Fold,
    OpenRound,
    ReleaseTask,
    Send,
)
from coordinator.engine import Coordinator
from coordinator.events import Event, Restored, ServerShort, Tick
from coordinator.records import CheckpointRecord, Entry, Snapshot
from coordinator.settings import CoordinatorSettings
from farm_server.clients.dispatch import Dispatch
from farm_server.clients.entry_buffer import EntryBuffer
from farm_server.clients.gateway import Gateway
from farm_server.clients.reception import Reception
from farm_server.clients.registry import Registry
from farm_server.control.journal import Journal
from farm_server.control.long_polling import FARM, Bells
from farm_server.control.placements import Placements
from farm_server.control.runtime import Runtime
from farm_server.edge.admission import Admission
from farm_server.edge.entrance import Entrance
from farm_server.environment.clock import Clock, SteadyClock
from farm_server.environment.data_folder import DataFolder
from farm_server.environment.disk_space import Room
from farm_server.environment.settings import ServerSettings
from farm_server.environment.tokens import Tokens
from farm_server.housekeeping.cleaning import Cleaner
from farm_server.housekeeping.periodic import collect_blobs, every
from farm_server.housekeeping.retention import Retention
from farm_server.observability.alarms import Alarms
from farm_server.observability.telemetry import Telemetry
from farm_server.tasks.removal import Removal
from farm_server.tasks.rescue import Rescue
from farm_server.tasks.submissions import Submissions
from farm_server.tensors.aggregator import Aggregator
from farm_server.tensors.checkpoint_writer import CheckpointWriter
from farm_server.tensors.intake import Intake
from farm_server.tensors.layouts import Layouts
from farm_server.tensors.spooled_updates import SpooledUpdates
from farm_server.tensors.torch_side import TorchSide
from farm_server.tensors.unwrapping import Unwrapper
from farm_server.transfers.bandwidth import Bandwidth
from farm_server.transfers.inline_blobs import InlineBlobs
from farm_server.transfers.unreferenced_blobs import Hoards
from farm_server.transfers.uploads import UploadPlaces, Uploads
from protocol.errors import FarmError
from protocol.tasks import TaskSpec
from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore
from storage.engine import ledger_path
from storage.errors import DamagedLedger
from storage.ledger import Ledger
from storage.owner import SPARED_SECONDS, check_owner, settle_owner
from storage.uploads import UPLOADS, UploadFolder

_SKEW_SECONDS = 60.0
_log = structlog.get_logger(__name__)

_LATE_SECONDS: Final = 0.5
"""A tick that is later than that is the server's own fault (stopped, suspended, swapping), and nobody else's delay."""


class Farm:
    """The server without its sockets. ``open`` it, ``start`` it, and at the end ``close`` it, on one event loop."""

    def __init__(
        self,
        settings: ServerSettings,
        tokens: Tokens,
        ledger: Ledger,
        blobs: FolderBlobStore,
        snapshot: Snapshot,
        *,
        partials: UploadFolder,
    ) -> None:
        self.settings = settings
        self.tokens = tokens
        self.ledger = ledger
        self.blobs = blobs
        self.clock: Clock = SteadyClock(not_before=_newest_time(snapshot))
        self.started_at = self.clock.now()
        self.telemetry = Telemetry()
        self.bells = Bells()
        self.torch_side = TorchSide(settings.torch_threads)
        self.inline = InlineBlobs(settings.inline_cache_bytes)
        self.registry = Registry(snapshot.clients, settings.max_clients)
        self._admission = Admission()
        self.entrance = Entrance(tokens, self.not_ready, self._admission, self.clock)
        self.alarms = Alarms()
        self.room = Room(settings.data_dir, settings.min_free_bytes)
        self.retention = Retention(ledger, blobs, settings.superseded_grace_seconds)
        self.journal = Journal(ledger, self._ring)
        self.entries = EntryBuffer(ledger, self._ring, self.room.lacks)
        self.coordinator = Coordinator(
            snapshot,
            CoordinatorSettings(stall_seconds=settings.stall_seconds),
            lambda: secrets.token_hex(8),
            secrets.SystemRandom().random,
        )
        self._placements = Placements()
        self._placements.restore(snapshot.assignments)
        self.runtime = Runtime(self.coordinator, self.clock, self.journal, self._carry_out)
        self._loop = asyncio.get_running_loop()
        self._restored = bool(snapshot.tasks)
        self._background: list[asyncio.Task[None]] = []
        self._draining = False
        self._warming: asyncio.Future[FarmError | None] = self._loop.create_future()
        self._told_lacks: str | None = None
        self.upload_bandwidth = Bandwidth(settings.upload_rate, settings.client_upload_rate)
        self.download_bandwidth = Bandwidth(settings.download_rate, settings.client_download_rate)
        self.hoards = Hoards(blobs, ledger, self.room)
        places = UploadPlaces(partials, blobs, self.room, self.not_ready, self.hoards.make_room)
        self.uploads = Uploads(places, settings, self.clock, self.bells, self.telemetry)
        self._assemble(snapshot)

    @classmethod
    async def open(cls, settings: ServerSettings, folder: DataFolder, *, new_ledger: bool = False) -> Self:
        """Open the ledger and the blob store in a locked folder and take up what is there.

        ``new_ledger``: go on with the ledger that is there, although the blobs may be another one's. Raises: FarmError.
        """
        if not new_ledger:
            check_owner(folder.blobs, ledger_path(settings.ledger_url))
        tokens = folder.tokens(settings)
        blobs = FolderBlobStore(folder.blobs)
        partials = UploadFolder(folder.blobs / UPLOADS, blobs)
        ledger = await Ledger.open(settings.ledger_url)
        try:
            snapshot = await ledger.load()
            spared = settle_owner(folder.blobs, ledger.identity, is_new=new_ledger, now=time.time())
            with _contradictions():
                farm = cls(settings, tokens, ledger, blobs, snapshot, partials=partials)
        except BaseException:
            await ledger.close()
            raise
        # only now: where a start fails, its one line of error should be all that is said
        _log.info("recovery: the data folder is ours", data_dir=str(folder.root))
        _log.info("recovery: blobs are open", leftovers_removed=blobs.leftovers, unfinished_uploads=len(partials))
        _log.info("recovery: the ledger is open")
        _log.info(
            "recovery: facts are loaded",
            tasks=len(snapshot.tasks),
            open_rounds=len(snapshot.rounds),
            held_assignments=len(snapshot.assignments),
        )
        if (ahead_seconds := _newest_time(snapshot) - time.time()) > _SKEW_SECONDS:
            # it must not run backwards: leases and backoffs would last as long as it was ahead
            _log.warning("the farm's time is ahead of this machine's clock, and stays so", seconds=round(ahead_seconds))
        if spared is not None:
            _log.warning("blobs that nothing refers to are kept", reason=spared, seconds=SPARED_SECONDS)
        return farm

    def _assemble(self, snapshot: Snapshot) -> None:
        """Connect the parts that talk to each other."""
        layouts = self._layouts = Layouts(self.blobs)
        self.cleaner = Cleaner(self.ledger, self.blobs, self.settings)
        self.removal = Removal(self.ledger, self.retention, self.runtime.ask, self._forget_task)
        for task in snapshot.tasks:
            layouts.add(task.task_id, task.spec)
        spooled = SpooledUpdates(self.blobs)
        checkpoints = CheckpointStore(self.blobs)
        unwrapper = Unwrapper(self.blobs, self.room.claim)
        self._intake = Intake(layouts, spooled, self.torch_side, unwrapper)
        dispatch = Dispatch(self.registry, self._placements, self.inline, self.clock)
        reception = Reception(
            post=self.runtime.post,
            intake=self._intake,
            spooled=spooled,
            placements=self._placements,
            entries=self.entries,
            telemetry=self.telemetry,
            clock=self.clock,
            used=self.hoards.used,
        )
        self.gateway = Gateway(
            settings=self.settings,
            admission=self._admission,
            registry=self.registry,
            reception=reception,
            post=self.runtime.post,
            telemetry=self.telemetry,
            clock=self.clock,
        )
        self.submissions = Submissions(
            ledger=self.ledger,
            blobs=self.blobs,
            layouts=layouts,
            inline=self.inline,
            torch_side=self.torch_side,
            ask=self.runtime.ask,
            refuses=self.not_ready,
            used=self.hoards.used,
        )
        self._rescue = Rescue(
            ledger=self.ledger, blobs=self.blobs, checkpoints=checkpoints, clock=self.clock, ask=self.runtime.ask
        )
        self._aggregator = Aggregator(
            checkpoints=checkpoints,
            writer=CheckpointWriter(checkpoints, self.clock, self.room.claim),
            spooled=spooled,
            torch_side=self.torch_side,
            outcomes=self,
            threads=self.settings.aggregator_threads,
        )
        self._doers: Mapping[type[Command], Callable[[Any], None]] = {
            Send: dispatch.send,
            OpenRound: self._aggregator.open_round,
            Fold: self._aggregator.fold,
            CommitRound: self._aggregator.commit_round,
            DropRound: self._aggregator.drop_round,
            DropUpdate: lambda command: spooled.release(command.update),
            ReleaseTask: self._release_task,
            DropClient: self.gateway.drop_client,
        }
        self.telemetry.watch_tasks(lambda: Counter(self.coordinator.task_states()))

    def start(self) -> None:
        """Begin to work: mend what the last stop interrupted, tick, keep house, and warm torch up."""
        self.journal.start()
        if self._restored:
            self.runtime.post(Restored())
            _log.info("recovery: interrupted rounds are settled", reopened=self._open_rounds())
        settings = self.settings
        jobs = [
            every(settings.retention_seconds, lambda: self.retention.drop_superseded(self.clock.now()), "retention"),
            every(
                settings.collect_seconds, lambda: collect_blobs(self.ledger, self.blobs, settings), "blob collection"
            ),
            every(settings.collect_seconds, self.uploads.collect, "collection of uploads"),
            every(settings.retention_seconds, self.hoards.make_room, "making room"),
            every(settings.collect_seconds, self._prune, "pruning of histories"),
            self._tick_for_ever(),
        ]
        self._background = [asyncio.create_task(job) for job in (self._find_strays(), *jobs)]
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    async def _find_strays(self) -> None:
        try:
            await self.hoards.find_strays()
        except FarmError as error:
            _log.warning("blobs that nothing refers to were not found", code=error.code, error=error.message)

    async def _prune(self) -> None:
        if rows := await self.cleaner.prune(self.clock.now()):
            _log.info("histories are pruned", rows=rows)

    def _forget_task(self, task_id: str) -> None:
        self._placements.forget(task_id)
        self._layouts.drop(task_id)
        self.inline.unpin(task_id)

    def _open_rounds(self) -> list[str]:
        now = self.clock.now()
        ids = [task.task_id for task in self.coordinator.task_views(now)]
        views = ((task_id, self.coordinator.open_round_view(task_id, now)) for task_id in ids)
        return [f"{task_id}@{view.number}" for task_id, view in views if view is not None]

    async def warm(self) -> None:
        """Wait until torch is imported. Raises: Unavailable if it can't be: this process will never train."""
        if (failure := await asyncio.shield(self._warming)) is not None:
            raise failure

    def _warm_up(self) -> None:
        failure: FarmError | None = None
        try:
            self.torch_side.warm_up()
        except FarmError as error:
            failure = error
        gc.freeze()  # torch brings a million objects that live for ever: no collection should walk them again
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._warmed, failure)

    def _warmed(self, failure: FarmError | None) -> None:
        if not self._warming.done():
            self._warming.set_result(failure)

    async def drain(self, reason: str) -> None:
        """Let clients leave in peace and end every wait; nothing new is taken, and no work is given out."""
        self._draining = True
        self.coordinator.offer_nothing_more()
        self.bells.close()
        await self.gateway.drain(reason)

    async def close(self) -> None:
        """Stop all work, make what was decided durable, and close the ledger."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._rescue.close()
        self._intake.close()
        await asyncio.to_thread(self._aggregator.close)
        await asyncio.to_thread(self.uploads.close)
        await asyncio.sleep(0)  # the aggregator's last outcomes are on the loop already
        self.entries.flush(self.clock.now())
        await self.journal.close()
        await self.ledger.close()

    def not_ready(self) -> str | None:
        """Say why the server can take no new work now, or return None."""
        if self._draining:
            return "the server is shutting down"
        return self.short_of()

    def problem(self) -> str | None:
        """Say what a watch should know: all of ``not_ready``, an import of torch under way, a fault of a moment ago."""
        warming = None if self.torch_side.is_warm else "torch is being imported"
        return self.not_ready() or warming or self._aggregator.fault

    def _tell_lacks(self) -> None:
        """Let people who ask what a task waits for hear that it is the server."""
        lacks = self.short_of() or self.room.refused()
        if (lacks is None) is not (self._told_lacks is None):
            self._told_lacks = lacks
            self.runtime.post(ServerShort(lacks))

    def short_of(self) -> str | None:
        """Say what the data folder's disk refuses now, or return None."""
        return self.journal.failure or self._aggregator.stalled or self.room.lacks()

    def event(self, event: Event) -> None:
        """Take an outcome from a worker thread to the coordinator."""
        self._loop.call_soon_threadsafe(self.runtime.post, event)

    def damaged(self, command: OpenRound, message: str) -> None:
        """Take the news of an unreadable checkpoint from a worker thread to those who find another one."""
        self._loop.call_soon_threadsafe(self._rescue.begin, command, message)

    def committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: float
    ) -> None:
        """Take a new version from a worker thread to those who serve it."""
        self._loop.call_soon_threadsafe(self._committed, spec, checkpoint, small, seconds)

    def _committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: float
    ) -> None:
        if checkpoint.manifest is None:
            self.inline.pin(checkpoint.task_id, checkpoint.weights.digest, small[checkpoint.weights.digest])
        else:
            self.inline.unpin(checkpoint.task_id)
            for digest, data in small.items():
                self.inline.keep(data, digest)
            self.retention.note(checkpoint.task_id, spec.recipe)
        self.telemetry.rounds.inc()
        self.telemetry.commit_seconds.observe(seconds)

    def _release_task(self, command: ReleaseTask) -> None:
        self._aggregator.release_task(command)
        self.inline.unpin(command.task_id)

    def _carry_out(self, command: Command) -> None:
        self._doers[type(command)](command)

    def _ring(self, entries: Sequence[Entry]) -> None:
        self.alarms.hear(entries)
        self.bells.ring({FARM, *(e.task_id or FARM for e in entries)})

    async def _tick_for_ever(self) -> None:
        interval = self.settings.tick_seconds
        while True:
            due = self._loop.time() + interval
            await asyncio.sleep(interval)
            lag_seconds = max(self._loop.time() - due, 0.0)
            self.telemetry.loop_lag_seconds.observe(lag_seconds)
            self._admission.look(lag_seconds)
            late_seconds = lag_seconds if lag_seconds > _LATE_SECONDS else 0.0
            self.uploads.forgive(late_seconds)
            self.gateway.sweep(late_seconds)
            self.gateway.keep_pace(lag_seconds, self.runtime.backlog)
            self.entries.flush(self.clock.now())
            self._tell_lacks()
            self.runtime.post(Tick(late_seconds))


def _newest_time(snapshot: Snapshot) -> float:
    """Return the latest moment that the ledger knows of: the clock must not start before it."""
    times = [t.created_at for t in snapshot.tasks]
    times += [c.last_seen for c in snapshot.clients]
    times += [c.created_at for c in snapshot.checkpoints]
    return max(times, default=0.0)


@contextmanager
def _contradictions() -> Iterator[None]:
    """Say what it means if records that the ledger holds can't be put together. Raises: DamagedLedger."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise DamagedLedger(
            f"the ledger's records contradict each other ({type(error).__name__}: {error}); restore it from a backup"
        ) from error
