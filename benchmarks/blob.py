"""Gigabytes per second of one blob to a farm and back, by a client's own code, beside a raw copy through a socket.

Both sides do to the disk what the other does: an upload is synced before it is acknowledged, a download is not.
Then one more blob goes up and comes down and is cut on the way; the bytes that move twice are counted.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import httpx
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cut_uploads import cut
from benchmarks.farm import POLL_SECONDS
from benchmarks.measurement import Measurement
from benchmarks.raw_copy import download_seconds, raw_server, upload_seconds
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.address import JoinAddress, parse_address
from farm_client.cli.localfarm import end, launch_server, read_urls
from farm_client.transfer.carrier import ignore_bytes
from farm_client.transfer.partial_file import PartialFile
from storage.file_digest import digest_of_file

CUTS: Final = 3
_PIECE_BYTES: Final = 16 * 1024 * 1024
LONGEST_SECONDS: Final = 600.0
Direction = Literal["up", "down"]


@dataclass(frozen=True)
class BlobSpeed(Measurement):
    """One direction. ``raw_gb_per_s`` is the reference of the same run, ``ratio`` the farm's share of it; medians."""

    direction: Direction
    size_bytes: int
    repeats: int
    seconds: float
    gb_per_s: float
    raw_gb_per_s: float
    ratio: float


@dataclass(frozen=True)
class BlobResumed(Measurement):
    """One direction of a transfer that was cut.

    ``bytes_sent_twice`` had arrived, and were sent again all the same. What was on the wire at a cut is lost to
    whatever protocol: ``bytes_lost_in_flight``.
    """

    direction: Direction
    size_bytes: int
    cuts: int
    bytes_sent: int
    bytes_lost_in_flight: int
    bytes_sent_twice: int


@dataclass(slots=True)
class Trial:
    """A farm's server, a raw one, and a folder on the disk that both use."""

    folder: Path
    farm: JoinAddress
    raw_port: int
    size_bytes: int
    times: dict[str, list[float]] = field(default_factory=dict)

    def file(self, number: int) -> tuple[Path, str]:
        """Make a file that no farm has seen; return it with its digest."""
        path = self.folder / "source"
        with path.open("wb") as file:
            block = os.urandom(min(_PIECE_BYTES, self.size_bytes))
            for start in range(0, self.size_bytes, _PIECE_BYTES):
                head = f"{number} {start} ".encode()
                file.write((head + block)[: min(_PIECE_BYTES, self.size_bytes - start)])
            os.fsync(file.fileno())  # or the disk would still be at it during the measurement
        return path, digest_of_file(path)

    async def note(self, name: str, work: Awaitable[float | None]) -> None:
        """Await it, and note what it took by its own word, or else by the clock."""
        began = time.perf_counter()
        told = await work
        self.times.setdefault(name, []).append(time.perf_counter() - began if told is None else told)

    def speed(self, direction: Direction) -> BlobSpeed:
        """Compare the medians."""
        seconds, raw = (statistics.median(self.times[f"{who} {direction}"]) for who in ("farm", "raw"))
        return BlobSpeed(
            benchmark="blob",
            direction=direction,
            size_bytes=self.size_bytes,
            repeats=len(self.times[f"farm {direction}"]),
            seconds=seconds,
            gb_per_s=self.size_bytes / seconds / 1e9,
            raw_gb_per_s=self.size_bytes / raw / 1e9,
            ratio=raw / seconds,
        )


@dataclass(slots=True)
class Cuts:
    """Says when a transfer is to be cut: ``CUTS`` times, evenly."""

    size_bytes: int
    made: int = 0

    def is_due(self, moved_bytes: int) -> bool:
        """Tell whether the next cut comes now; it is counted then."""
        due = self.made < CUTS and moved_bytes * (CUTS + 1) > self.size_bytes * (self.made + 1)
        self.made += due
        return due

    def outcome(self, direction: Direction, *, sent: int, arrived: int) -> BlobResumed:
        """Say what all of them cost."""
        return BlobResumed(
            benchmark="blob",
            direction=direction,
            size_bytes=self.size_bytes,
            cuts=self.made,
            bytes_sent=sent,
            bytes_lost_in_flight=sent - arrived,
            bytes_sent_twice=arrived - self.size_bytes,
        )


def measure(size_bytes: int, repeats: int, folder: Path | None = None) -> Iterator[Measurement]:
    """Measure both directions, then what is moved twice where transfers are cut.

    ``folder`` chooses the disk; the system's folder for temporary files when it is not given.
    """
    with (
        tempfile.TemporaryDirectory(prefix="aifarm-blob-", dir=folder) as name,
        _running(Path(name), size_bytes) as trial,
    ):
        uvloop.run(_transfers(trial, repeats))
        yield trial.speed("up")
        yield trial.speed("down")
        yield uvloop.run(_cut_upload(trial, repeats))
        yield uvloop.run(_cut_download(trial))


@contextmanager
def _running(folder: Path, size_bytes: int) -> Iterator[Trial]:
    server = launch_server(folder)
    try:
        address = parse_address(read_urls(server)["join_url"])
        with raw_server(folder / "raw") as port:
            yield Trial(folder, address, port, size_bytes)
    finally:
        end([server])


async def _transfers(trial: Trial, repeats: int) -> None:
    """Take turns: a disk's speed changes with what else it does."""
    async with Transfers(trial.farm, client_id="benchmark") as transfers:
        for number in range(repeats):
            path, digest = trial.file(number)
            fetched = trial.folder / "fetched"
            await trial.note("raw up", asyncio.to_thread(upload_seconds, trial.raw_port, path))
            await trial.note("farm up", transfers.upload(digest, path))
            await trial.note("raw down", asyncio.to_thread(download_seconds, trial.raw_port, fetched, trial.size_bytes))
            fetched.unlink()
            partial = PartialFile(fetched, trial.size_bytes)
            await trial.note("farm down", transfers.download(digest, partial, ignore_bytes))
            fetched.unlink()


async def _cut_upload(trial: Trial, number: int) -> BlobResumed:
    """Cut an upload's connections some times, each time once all that left has arrived."""
    path, digest = trial.file(number)
    before = await _blob_bytes(trial.farm, "in")
    one_at_a_time, cuts = asyncio.Lock(), Cuts(trial.size_bytes)

    async def midway(_url: str) -> bool:
        async with one_at_a_time:  # the other parts wait too: so what left and what arrived become equal
            if not cuts.is_due(tally.sent_bytes):
                return False
            while await _blob_bytes(trial.farm, "in") - before < tally.sent_bytes:  # noqa: ASYNC110  it counts there
                await asyncio.sleep(POLL_SECONDS)
            return True

    async with Transfers(trial.farm, client_id="benchmark", wrap=cut(midway)) as transfers:
        tally = transfers.tally
        async with asyncio.timeout(LONGEST_SECONDS):
            await transfers.upload(digest, path)
    return cuts.outcome("up", sent=tally.sent_bytes, arrived=int(await _blob_bytes(trial.farm, "in") - before))


async def _cut_download(trial: Trial) -> BlobResumed:
    """Give a download up some times, and go on with it as another run of the program would."""
    digest, fetched = digest_of_file(trial.folder / "source"), trial.folder / "fetched"
    before = await _blob_bytes(trial.farm, "out")
    async with Transfers(trial.farm, client_id="benchmark") as transfers:
        cuts = Cuts(trial.size_bytes)
        while not await _download_until_cut(transfers, digest, PartialFile(fetched, trial.size_bytes), cuts):
            pass
    sent = int(await _blob_bytes(trial.farm, "out") - before)
    return cuts.outcome("down", sent=sent, arrived=transfers.tally.received_bytes)


async def _download_until_cut(transfers: Transfers, digest: str, partial: PartialFile, cuts: Cuts) -> bool:
    """Download until a cut is due; whether the file is whole."""

    def meter(_present_bytes: int) -> None:
        if not work.cancelling() and cuts.is_due(transfers.tally.received_bytes):
            work.cancel()

    work = asyncio.create_task(transfers.download(digest, partial, meter))
    await asyncio.wait([work])
    if work.cancelled():
        return False
    work.result()
    return True


async def _blob_bytes(farm: JoinAddress, direction: str) -> float:
    """Ask the server how many blob bytes it has moved."""
    async with httpx.AsyncClient(base_url=farm.http_url, trust_env=False) as http:
        page = (await http.get("/metrics")).text
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    wanted = ("farm_blob_bytes_total", {"direction": direction})
    return sum(sample.value for sample in samples if (sample.name, sample.labels) == wanted)
