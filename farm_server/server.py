"""The composition: all parts of one running server, put together room by room. Nothing is decided here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Self

import structlog

from coordinator.commands import (
    Command,
    CommitRound,
    ConfirmEnd,
    DropClient,
    DropRound,
    DropUpdate,
    FlushCheckpoint,
    Fold,
    ForgetTask,
    OpenRound,
    ReleaseTask,
    Send,
)
from coordinator.engine import Coordinator
from coordinator.events import EndConfirmed, Restored, Tick
from coordinator.records import Entry
from coordinator.settings import CoordinatorSettings
from farm_server.clients.certificates import Certificates
from farm_server.clients.directory import ClientDirectory
from farm_server.clients.dispatch import Dispatch
from farm_server.clients.entry_buffer import EntryBuffer
from farm_server.clients.gateway import Gateway
from farm_server.clients.leaderboard import Leaderboard
from farm_server.clients.reception import Reception
from farm_server.clients.registry import Registry
from farm_server.clients.results import IncomingResults
from farm_server.control.in_process_bus import InProcessBus
from farm_server.control.journal import Journal
from farm_server.control.readiness import Readiness
from farm_server.control.runtime import Runtime
from farm_server.edge.admission import Admission
from farm_server.edge.entrance import Entrance
from farm_server.environment.clock import Clock, SteadyClock
from farm_server.environment.data_folder import DataFolder
from farm_server.environment.disk_space import DiskSpace
from farm_server.environment.durable_state import DurableState, contradictions, open_state
from farm_server.environment.settings import ServerSettings
from farm_server.housekeeping.cleaning import Cleaner
from farm_server.housekeeping.disk_usage import DiskUsage
from farm_server.housekeeping.periodic import collect_blobs, every, once, ticks
from farm_server.housekeeping.retention import Retention
from farm_server.http.bulk import Traffic
from farm_server.http.callers import Callers
from farm_server.http.farm_status import FarmStatus
from farm_server.http.services import Services
from farm_server.observability.alarms import Alarms
from farm_server.observability.telemetry import Telemetry
from farm_server.tasks.commands import TaskCommands
from farm_server.tasks.ended_tasks import EndedTasks
from farm_server.tasks.feeds import Feeds
from farm_server.tasks.outcomes import AggregatorOutcomes
from farm_server.tasks.queries import TaskQueries
from farm_server.tasks.removal import Removal
from farm_server.tasks.rescue import Rescue
from farm_server.tasks.submissions import Submissions
from farm_server.tensors.aggregator import Aggregator
from farm_server.tensors.checkpoint_writer import CheckpointWriter
from farm_server.tensors.intake import Intake
from farm_server.tensors.layouts import Layouts
from farm_server.tensors.spooled_updates import SpooledUpdates
from farm_server.tensors.torch_side import TorchSide, WarmUp
from farm_server.tensors.unwrapping import Unwrapper
from farm_server.transfers.bandwidth import Bandwidth
from farm_server.transfers.blob_access import BlobAccess
from farm_server.transfers.map_outputs import MapOutputs
from farm_server.transfers.memory_blobs import MemoryBlobs
from farm_server.transfers.unreferenced_blobs import UnreferencedBlobs
from farm_server.transfers.uploads import Uploads, UploadTarget
from protocol.composition import Wrap, as_built
from storage.checkpoints import CheckpointStore
from storage.ports.bus import Bus, topics_of

_log = structlog.get_logger(__name__)


class FarmServer:
    """The server without its sockets. ``open`` it, ``start`` it, and at the end ``close`` it, on one event loop."""

    @classmethod
    async def open(
        cls, settings: ServerSettings, folder: DataFolder, *, new_ledger: bool = False, wrap: Wrap = as_built
    ) -> Self:
        """Open the ledger and the blob store in a locked folder and take up what is there.

        ``new_ledger``: go on with the ledger that is there, although the blobs may be another one's. ``wrap``: what
        stands in the place of parts that a test wants to reach. Raises: FarmError.
        """
        state = await open_state(settings, folder, new_ledger=new_ledger)
        try:
            with contradictions():
                farm = cls(settings, state, wrap)
        except BaseException:
            await state.ledger.close()
            raise
        state.log()
        return farm

    def __init__(self, settings: ServerSettings, state: DurableState, wrap: Wrap = as_built) -> None:
        self.settings = settings
        self._wrap = wrap
        self.tokens, self._signing_key = state.tokens, state.signing_key
        self.ledger = state.ledger
        self.blobs = state.blobs
        self.clock: Clock = SteadyClock(not_before=state.newest_time())
        self.disk_space = DiskSpace(settings.data_dir, settings.min_free_bytes)
        self.telemetry = Telemetry()
        self.alarms = Alarms()
        self._background: list[asyncio.Task[None]] = []
        found = state.snapshot
        self._restored = bool(found.tasks or found.rounds or found.assignments)
        self._build_control(state)
        self._build_tensors(state)
        self._build_transfers(state)
        self._build_tasks()
        self._build_clients(state)
        self._doers: Mapping[type[Command], Callable[[Any], None]] = {
            Send: self._dispatch.send,
            OpenRound: self._open_round,
            Fold: self._aggregator.fold,
            CommitRound: self._aggregator.commit_round,
            FlushCheckpoint: self._aggregator.flush_checkpoint,
            DropRound: self._aggregator.drop_round,
            DropUpdate: lambda command: self._spooled.release(command.update),
            ReleaseTask: self._release_task,
            ConfirmEnd: lambda command: self.runtime.post(EndConfirmed(command.record)),
            ForgetTask: lambda command: self._forget_task(command.task_id),
            DropClient: self.gateway.drop_client,
        }
        self.services = self._serve()

    def _build_control(self, state: DurableState) -> None:
        """The loop around the coordinator."""
        self.bus: Bus = InProcessBus()
        self.entries = EntryBuffer(self.ledger, self._announce, self.disk_space.lacks)
        self.journal = Journal(self.ledger, self._announce, self.entries.flush_before)
        self.coordinator = Coordinator(
            state.snapshot,
            CoordinatorSettings(stall_seconds=self.settings.stall_seconds),
            lambda: secrets.token_hex(8),
            secrets.SystemRandom().random,
        )
        self.runtime = Runtime(self.coordinator, self.clock, self.journal, self._carry_out)
        self._ended = EndedTasks(self.ledger, self.coordinator.holds, self.runtime.ask)

    def _build_tensors(self, state: DurableState) -> None:
        """Checks of updates, folding, and new versions."""
        self.torch_side = self._wrap(TorchSide(self.settings.torch_threads))
        self._warm_up = WarmUp(self.torch_side)
        self._layouts = Layouts(self.blobs)
        self._spooled = SpooledUpdates(self.blobs)
        unwrapper = Unwrapper(self.blobs, self.disk_space.claim)
        self._intake = Intake(self._layouts, self._spooled, self.torch_side, unwrapper)
        self.memory = MemoryBlobs(self.settings.inline_cache_bytes)
        self.retention = Retention(
            self.ledger, self.blobs, self.settings.superseded_grace_seconds, self.settings.keep_inputs_seconds
        )
        checkpoints = CheckpointStore(self.blobs)
        ask, post = self.runtime.ask, self.runtime.post
        self._rescue = Rescue(ledger=self.ledger, blobs=self.blobs, checkpoints=checkpoints, clock=self.clock, ask=ask)
        aggregator = self._aggregator = self._wrap(
            Aggregator(
                checkpoints=checkpoints,
                writer=self._wrap(CheckpointWriter(checkpoints, self.clock, self.disk_space.claim)),
                spooled=self._spooled,
                torch_side=self.torch_side,
                outcomes=AggregatorOutcomes(post, self._rescue, self.memory, self.retention, self.telemetry),
                threads=self.settings.aggregator_threads,
            )
        )
        self.readiness = Readiness(
            self.journal,
            self.disk_space,
            lambda: aggregator.stalled,
            lambda: None if self.torch_side.is_warm else "torch is being imported",
            lambda: aggregator.fault,
        )

    def _build_transfers(self, state: DurableState) -> None:
        """Bulk bytes in and out."""
        self.unreferenced = UnreferencedBlobs(self.blobs, self.ledger, self.disk_space)
        refuses = self.readiness.not_ready
        target = UploadTarget(state.partials, self.blobs, self.disk_space, refuses, self.unreferenced.make_room)
        self.uploads = Uploads(target, self.settings, self.clock, self.bus, self.telemetry)

    def _build_tasks(self) -> None:
        """What happens to a task as a whole."""
        self.cleaner = Cleaner(self.ledger, self.blobs, self.settings)
        self._removal = Removal(self.ledger, self.retention, self._ended, self.entries.forget)
        self._submissions = Submissions(
            ledger=self.ledger,
            blobs=self.blobs,
            memory=self.memory,
            torch_side=self.torch_side,
            ask=self.runtime.ask,
            refuses=self.readiness.not_ready,
            used=self.unreferenced.used,
        )

    def _build_clients(self, state: DurableState) -> None:
        """The volunteers' connections."""
        self.registry = Registry(state.snapshot.clients, self.settings.max_clients)
        self._admission = Admission()
        self.entrance = Entrance(self.tokens, self.readiness.not_ready, self._admission, self.clock)
        self._dispatch = self._wrap(Dispatch(self.registry, self.memory, self.clock))
        results = IncomingResults(
            post=self.runtime.post,
            intake=self._intake,
            outputs=MapOutputs(self.blobs),
            spooled=self._spooled,
            telemetry=self.telemetry,
            used=self.unreferenced.used,
        )
        reception = Reception(
            post=self.runtime.post,
            in_flight=self.coordinator.assignment,
            results=results,
            entries=self.entries,
            clock=self.clock,
        )
        self.gateway = Gateway(
            settings=self.settings,
            admission=self._admission,
            registry=self.registry,
            reception=self._wrap(reception),
            post=self.runtime.post,
            telemetry=self.telemetry,
            clock=self.clock,
        )

    def _serve(self) -> Services:
        """What the routes may ask for."""
        settings, runtime = self.settings, self.runtime
        tasks = TaskQueries(self.coordinator, self._ended, self.ledger, self.clock, runtime.settle)
        clients = ClientDirectory(self.coordinator, self.registry, self.clock, runtime.ask)
        leaderboard = Leaderboard(self.ledger, clients, tasks.names, self.clock)
        upload = Bandwidth(settings.upload_rate, settings.client_upload_rate)
        download = Bandwidth(settings.download_rate, settings.client_download_rate)
        refuses = self.readiness.not_ready
        return Services(
            settings=settings,
            tokens=self.tokens,
            entrance=self.entrance,
            connections=self.gateway,
            tasks=tasks,
            commands=TaskCommands(self._ended, self._submissions, self._removal),
            feeds=Feeds(self.ledger, self.bus, self._ended),
            clients=clients,
            leaderboard=leaderboard,
            certificates=Certificates(
                settings.name, self.ledger, clients, tasks.names, key=self._signing_key, clock=self.clock
            ),
            blobs=BlobAccess(
                self.blobs,
                self.memory,
                self.disk_space,
                self.unreferenced,
                refuses=refuses,
                max_blob_bytes=settings.max_blob_bytes,
            ),
            uploads=self.uploads,
            traffic=Traffic(upload, download, self.telemetry),
            callers=Callers(self.tokens, clients.is_connected),
            disk=DiskUsage(self.ledger, settings, self.cleaner, self.clock, tasks.views),
            status=FarmStatus(
                name=settings.name,
                clock=self.clock,
                started_at=self.clock.now(),
                readiness=self.readiness,
                telemetry=self.telemetry,
                alarms=self.alarms,
                tasks=tasks,
                clients=clients,
                leaderboard=leaderboard,
                gateway=self.gateway,
                uploads=self.uploads,
            ),
        )

    def start(self) -> None:
        """Begin to work: mend what the last stop interrupted, tick, keep house, and warm torch up."""
        if self._restored:
            self.runtime.post(Restored())
            _log.info("recovery: interrupted rounds are settled", reopened=self._open_rounds())
        self._background = [asyncio.create_task(job) for job in self._jobs()]
        self._warm_up.start()

    def _jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What is done beside the events, once or again and again."""
        settings = self.settings
        often, seldom = settings.retention_seconds, settings.collect_seconds
        return [
            once(self.unreferenced.find_strays, "the search for blobs that nothing refers to"),
            every(often, lambda: self.retention.drop_superseded(self.clock.now()), "retention"),
            every(seldom, lambda: collect_blobs(self.ledger, self.blobs, settings), "blob collection"),
            every(seldom, self.uploads.collect, "collection of uploads"),
            every(often, self.unreferenced.make_room, "making room"),
            every(seldom, lambda: self.cleaner.prune_and_log(self.clock.now()), "pruning of histories"),
            ticks(settings.tick_seconds, self._tick),
        ]

    def _tick(self, lag_seconds: float, late_seconds: float) -> None:
        """Look at what only time changes. ``late_seconds``: how long the server itself stood still."""
        self.telemetry.loop_lag_seconds.observe(lag_seconds)
        self._admission.look(lag_seconds)
        self.uploads.forgive(late_seconds)
        self.gateway.sweep(late_seconds)
        self.gateway.keep_pace(lag_seconds, self.runtime.backlog)
        self.entries.flush(self.clock.now())
        self.readiness.tell(self.runtime.post)
        self.runtime.post(Tick(late_seconds))

    async def warm(self) -> None:
        """Wait until torch is imported. Raises: Unavailable if it can't be: this process will never train."""
        await self._warm_up.done()

    async def drain(self, reason: str) -> None:
        """Let clients leave in peace and end every wait; nothing new is taken, and no work is given out."""
        self.readiness.drain()
        self.coordinator.offer_nothing_more()
        self.bus.close()
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
        await self.ledger.close()  # writes what was submitted

    def _carry_out(self, command: Command) -> None:
        self._doers[type(command)](command)

    def _announce(self, entries: Sequence[Entry]) -> None:
        self.alarms.hear(entries)
        self.bus.publish(topics_of(entries))

    def _open_round(self, command: OpenRound) -> None:
        self._layouts.add(command.task_id, command.spec)
        self._aggregator.open_round(command)

    def _release_task(self, command: ReleaseTask) -> None:
        self._aggregator.release_task(command)
        self.memory.unpin(command.task_id)

    def _forget_task(self, task_id: str) -> None:
        self._layouts.drop(task_id)
        self.memory.unpin(task_id)

    def _open_rounds(self) -> list[str]:
        now = self.clock.now()
        ids = [task.task_id for task in self.coordinator.task_views(now)]
        views = ((task_id, self.coordinator.open_round_view(task_id, now)) for task_id in ids)
        return [f"{task_id}@{view.number}" for task_id, view in views if view is not None]
