"""The agent's life: start up, serve, drain, shut down.

startup    hold the home, test the devices, start a spare executor
serve      connect, work until the connection ends, connect again; what runs goes on meanwhile
drain      after the first Ctrl-C: finish or hand back, say goodbye
shutdown   end every executor, let the home go; a second Ctrl-C comes here at once
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from importlib.metadata import version
from typing import Final

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.address import JoinAddress
from farm_client.agent.connection.farm_choice import remember_farm
from farm_client.agent.connection.features import FEATURES
from farm_client.agent.connection.link import Link, open_link
from farm_client.agent.connection.reconnect_policy import ReconnectPolicy
from farm_client.agent.environments.keeper import EnvironmentKeeper
from farm_client.agent.environments.opening import open_environments
from farm_client.agent.errors import Displaced, OutOfReach
from farm_client.agent.executors.confining import choose_sandbox, keep_descriptors
from farm_client.agent.executors.executor import Executor
from farm_client.agent.executors.executor_pool import SPARE_RAM_BYTES, ExecutorPool, Keeping
from farm_client.agent.home.control_store import ControlStore
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.home.identity import Identity, load_identity
from farm_client.agent.home.known_farms import KnownFarms
from farm_client.agent.home.outbox import Outbox
from farm_client.agent.home.snapshot_store import SnapshotStore
from farm_client.agent.home.start_marks import StartMarks
from farm_client.agent.machine.probe import Probe
from farm_client.agent.machine.selftest import Verdicts, self_test
from farm_client.agent.reporting.console import Console
from farm_client.agent.reporting.display import Display
from farm_client.agent.reporting.meters import MachineMeter
from farm_client.agent.reporting.owner_front import OwnerFront
from farm_client.agent.reporting.screens import StatusView, shown
from farm_client.agent.reporting.status import StatusBoard
from farm_client.agent.settings import AgentSettings
from farm_client.agent.sharing.house import lending, shared_blobs
from farm_client.agent.work.failed_steps import FailedSteps
from farm_client.agent.work.granting import Grants, lent
from farm_client.agent.work.job import Tools
from farm_client.agent.work.result_sender import ResultSender
from farm_client.agent.work.worker import Worker, WorkerParts
from farm_client.executor.process import EXECUTOR_MODULE, Launch
from farm_client.heap import give_back
from farm_client.sandbox.cgroups import find_delegation
from farm_client.signals import existing, heeded
from protocol.composition import Wrap, as_built
from protocol.compression import CodecName
from protocol.errors import FarmError
from protocol.limits import MAX_CACHED_DIGESTS
from protocol.link_capacity import LinkCapacity
from protocol.messages import Bye, Hello
from protocol.versions import SUPPORTED

_SIGNALS: Final = existing("SIGINT", "SIGTERM", "SIGHUP")


class Agent:
    """One volunteer machine's agent. ``run`` is its whole life."""

    def __init__(
        self,
        address: JoinAddress,
        settings: AgentSettings,
        executor_module: str = EXECUTOR_MODULE,
        *,
        new_identity: bool = False,
        view: StatusView = StatusView.LINES,
        wrap: Wrap = as_built,
    ) -> None:
        """``view``: how its owner looks at it.

        ``new_identity``: join as a new client, and leave the former identity to whoever has a copy of it.
        ``wrap``: what stands in the place of parts that a test wants to reach.
        """
        self._address = address
        self._settings = settings
        self._executor_module = executor_module
        self._new_identity = new_identity
        self._view = view
        self._wrap = wrap
        # absolute: executors work in folders of their own, where a relative path leads nowhere
        self._home = HomeFolder(settings.home.absolute())
        self._console = Console(settings.log_format)
        self._board = StatusBoard(self._home.status_file, events=self._console.events)
        self._finishing = asyncio.Event()
        """The owner wants the agent to end once its work is done."""
        self._leaving = asyncio.Event()
        self._leave_by = 0.0
        """When the leaving agent gives up what still runs; set with ``_leaving``."""
        self._run_id = secrets.token_hex(8)
        """Of this process, for the farm: it tells a client that comes back from two that share an identity."""
        self._capacity = LinkCapacity()
        self._signals = heeded(*_SIGNALS)

    async def run(self) -> None:
        """Serve the farm until a signal ends the run.

        Raises: FarmError saying why this machine cannot serve; CancelledError after a second Ctrl-C.
        """
        keep_descriptors()
        with self._home.held():
            self._listen_to_signals(asyncio.current_task())
            async with shown(self._view, self._board, self._console):
                await self._live()

    async def _live(self) -> None:
        self._board.show(farm=self._address.shown, name=self._settings.name)
        self._owner = OwnerFront(self._home, self._board, self._console)
        self._owner.joined_with(self._settings)
        async with self._owner.open(self._finishing.set):
            await self._lend(Probe(self._home.root, lent(self._settings, self._owner.keeper.policy)))

    async def _lend(self, probe: Probe) -> None:
        probe.accelerators.grant(self._owner.keeper.policy.gpus)
        self._board.measure = MachineMeter(probe)
        pool: ExecutorPool | None = None
        try:
            verdicts = await self._startup(probe)
            pool = self._open_pool(probe)
            async with (
                self._open_transfers() as transfers,
                self._open_fetcher(transfers) as fetcher,
                Grants(
                    self._settings, probe, pool, transfers, fetcher.cache, self._owner, self._home.power_file
                ).in_force(),
                lending(fetcher.cache, self._home, self._settings),
                self._open_environments(pool) as environments,
            ):
                starts = StartMarks(self._home.started_dir)
                sender = self._wrap(ResultSender(transfers, self._console.tell))
                tools = Tools(
                    pool,
                    fetcher,
                    transfers,
                    self._open_outbox(),
                    sender,
                    starts,
                    self._open_snapshots(),
                    FailedSteps(transfers),
                    self._home,
                    environments,
                    ControlStore(
                        self._home.controls_dir, self._address.shown, self._identity.client_id, self._console.tell
                    ),
                )
                self._board.environments = environments.stats
                await self._serve(tools, probe, verdicts)
        finally:
            await self._shutdown(pool, probe)

    async def _startup(self, probe: Probe) -> Verdicts:
        self._identity: Identity = load_identity(self._home.identity_file, anew=self._new_identity)
        self._board.show(doing="trying to get out of the sandbox", client_id=self._identity.client_id)
        self._choice = await choose_sandbox(
            self._home, probe, self._settings, self._executor_module, self._console.tell
        )
        self._board.show(doing="testing the devices", sandbox=self._choice.sandbox.label)
        remembered = self._settings.self_test_file or self._home.self_test_file
        verdicts = await self_test(probe, remembered, confinement=self._choice.confinement)
        for refused in verdicts.refused:
            self._console.tell(f"not lending {refused.name}: {refused.reason}")
        probe.accelerators.keep_only(verdicts.gpu_indices)
        probe.accelerators.adopt(*verdicts.others)
        return verdicts

    def _open_pool(self, probe: Probe) -> ExecutorPool:
        slots = self._settings.slots
        launch = self._wrap(
            Launch(
                scratch_root=self._home.scratch_dir,
                cpu_cores=max(1, probe.cpu_cores // slots),
                gpus=probe.accelerators.visible,
                vram_share=self._owner.keeper.policy.vram_share,
                processes=self._settings.processes,
                shard=self._settings.shard,
                module=self._executor_module,
                confinement=self._choice.confinement,
                cgroups=find_delegation(),
            )
        )
        keeping = Keeping(
            fewest=slots + 1,
            most=self._settings.warm_executors,
            has_room=probe.has_room_for,
            idle_seconds=self._settings.idle_executor_seconds,
            may_spare=lambda: self._settings.spare_executor and probe.can_spare(SPARE_RAM_BYTES),
        )
        pool = ExecutorPool(launch, keeping, self._wrap(Executor))
        if self._owner.reason is None:
            pool.prestart()
        return pool

    def _open_transfers(self) -> Transfers:
        return Transfers(
            self._address,
            client_id=self._identity.client_id,
            upload_rate=self._settings.upload_rate,
            download_rate=self._settings.download_rate,
            wrap=self._wrap,
        )

    def _open_fetcher(self, transfers: Transfers) -> Fetcher:
        cache = BlobCache(self._home.cache_dir, self._settings.cache_bytes, self._console.tell)
        self._board.look = lambda: (cache.stats(), transfers.tally)
        return Fetcher(cache, transfers, shared_blobs(self._home, self._settings))

    def _open_environments(self, pool: ExecutorPool) -> AbstractAsyncContextManager[EnvironmentKeeper]:
        policy = self._owner.keeper
        return open_environments(
            self._home.environments_dir,
            self._settings,
            lambda: policy.policy.allow_installs,
            self._console.tell,
            in_use=pool.packages_in_use,
            rests=lambda: self._owner.reason,
        )

    def _open_outbox(self) -> Outbox:
        return Outbox(
            root=self._home.outbox_dir,
            farm=self._address.shown,
            client_id=self._identity.client_id,
            max_bytes=self._settings.outbox_bytes,
            note=self._console.tell,
        )

    def _open_snapshots(self) -> SnapshotStore:
        return SnapshotStore(
            self._home.snapshots_dir, self._address.shown, self._identity.client_id, self._console.tell
        )

    async def _serve(self, tools: Tools, probe: Probe, verdicts: Verdicts) -> None:
        worker = Worker(tools, self._worker_parts(probe))
        self._board.work = worker.views
        self._owner.on_rest, self._owner.keeper.on_choice = worker.rest, worker.regard_choice
        worker.rest(self._owner.reason, self._owner.until)
        worker.take_up_left()
        welcomed_by = KnownFarms(self._home.known_farms_file)
        policy = ReconnectPolicy(self._address.shown, welcomed_by, self._settings.give_up_seconds)
        hello = partial(self._hello, tools, worker, probe, verdicts)
        loop = asyncio.get_running_loop()
        chores = [loop.create_task(tools.pool.sweep_regularly()), loop.create_task(self._finish(worker))]
        try:
            while (link := await self._connect(policy, hello)) is not None:
                why = await self._work(link, worker)
                if not self._leaving.is_set():
                    await self._wait_to_retry(why, policy.ended(why))
            if worker.busy:  # the connection went before the work was done
                await self._leave_work(worker)
        except FarmError:
            raise
        except Exception:
            tools.starts.keep()
            raise
        finally:
            for chore in chores:
                chore.cancel()
            await worker.close()

    async def _finish(self, worker: Worker) -> None:
        """At the owner's word, leave once what is held is done."""
        await self._finishing.wait()
        await worker.finish()
        self._leave(None)

    def _worker_parts(self, probe: Probe) -> WorkerParts:
        return WorkerParts(probe, Display(self._board, self._console), self._settings.slots, self._owner.keeper)

    async def _connect(self, policy: ReconnectPolicy, hello: Callable[[], Hello]) -> Link | None:
        """Return an open link, however long it takes; None if told to leave before there is one.

        Raises: Unauthorized, VersionMismatch, BadAddress; OutOfReach at the owner's limit.
        """
        while not self._leaving.is_set():
            self._board.show(connection="connecting", connected_at=0.0)
            try:
                link = self._wrap(await open_link(self._address, hello(), self._capacity))
            except OutOfReach as error:
                await self._wait_to_retry(error, policy.failed(error))
            else:
                policy.welcomed()
                self._board.show(doing="waiting: joined just now", connection="connected", connected_at=time.time())
                remember_farm(self._home.farm_file, self._address)
                farm = f" ({link.welcome.server})" if link.welcome.server else ""
                self._console.tell(f"joined {self._address.shown}{farm} as {self._settings.name}")
                give_back()  # what the start left over: it may wait for long
                return link
        return None

    async def _wait_to_retry(self, why: OutOfReach, seconds: float) -> None:
        """Sleep before the next try, or until told to leave."""
        until = "until it leaves" if isinstance(why, Displaced) else "until it answers"
        doing = f"waiting: {why.message}; trying again {until}"
        self._console.keep_telling(doing, doing)
        self._board.show(doing=doing, connection="away", connected_at=0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()

    async def _work(self, link: Link, worker: Worker) -> OutOfReach:
        """Serve one connection to its end, and return why it ended.

        A mistake of the agent's own is told to the farm and ends the connection; what is being done goes on, and the
        agent connects again.
        """
        bye: Bye | None = None
        mistake: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                worker.attach(link)
                chores = [
                    group.create_task(chore) for chore in (worker.beat(), worker.watch(), self._drain(worker, link))
                ]
                async for message in link.messages():
                    worker.handle(message)
                for chore in chores:
                    chore.cancel()
        except ExceptionGroup as errors:  # of anything else, such as an interrupt, there are groups too: they end us
            mistake = errors.exceptions[0]
            bye = Bye(reason=f"the agent failed: {mistake!r}"[:500], crashed=True)
        finally:
            worker.detach()
            await link.close(bye)
        if mistake is None:
            return link.reason
        self._console.trace("a mistake in farm-client ended the connection", mistake)
        return OutOfReach(f"a mistake in farm-client ended the connection ({mistake!r}); its traceback is above")

    async def _drain(self, worker: Worker, link: Link) -> None:
        await self._leaving.wait()
        await self._leave_work(worker)
        self._console.tell("left the farm; thank you")
        await link.close(Bye(reason="the volunteer left"))

    async def _leave_work(self, worker: Worker) -> None:
        """Finish what computes; when the connection breaks meanwhile, the time that is left is left."""
        seconds = max(0.0, self._leave_by - time.monotonic())
        self._console.tell(f"leaving: finishing what runs, at most {seconds:.0f} s (Ctrl-C again stops at once)")
        await worker.drain("the volunteer leaves", seconds)

    async def _shutdown(self, pool: ExecutorPool | None, probe: Probe) -> None:
        if pool is not None:
            await pool.close()
            self._board.show()
            self._console.tell(self._board.status.cache.in_words())
            self._console.tell(self._board.status.moved.in_words())
        probe.close()
        for number in self._signals:
            asyncio.get_running_loop().remove_signal_handler(number)
        self._board.show(doing="stopped", connection="stopped", connected_at=0.0, task="", round=None)

    def _hello(self, tools: Tools, worker: Worker, probe: Probe, verdicts: Verdicts) -> Hello:
        return Hello(
            versions=SUPPORTED,
            client_id=self._identity.client_id,
            client_secret=self._identity.client_secret,
            run_id=self._run_id,
            name=self._settings.name,
            agent=f"aifarm/{version('aifarm')}",
            resources=probe.resources(verdicts.bench_gflops),
            load=probe.load(),
            sandbox=self._choice.sandbox,
            environments=tools.environments.told(),
            tags=self._settings.tags,
            team=self._settings.team,
            cached=tools.fetcher.cache.digests(MAX_CACHED_DIGESTS),
            codecs=tuple(name.value for name in CodecName if name is not CodecName.NONE),
            features=FEATURES,
            held=worker.held(),
        )

    def _listen_to_signals(self, life: asyncio.Task[None] | None) -> None:
        for number in self._signals:
            asyncio.get_running_loop().add_signal_handler(number, self._leave, life)

    def _leave(self, life: asyncio.Task[None] | None) -> None:
        """Drain at the first signal, stop at the second."""
        if self._leaving.is_set() and life is not None:
            life.cancel()
        self._leave_by = time.monotonic() + self._settings.drain_seconds
        self._leaving.set()
