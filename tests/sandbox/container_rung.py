"""Tries the container rung with the Podman of this machine, as the user whose program this is: one JSON line a result.

    python -m tests.sandbox.container_rung HOME

The first line says whether Podman itself works here, by a container that has nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from farm_client.sandbox import podman
from farm_client.sandbox.leftovers import end_leftovers
from farm_client.sandbox.protection import Protection
from farm_client.sandbox.prove import prove
from farm_client.sandbox.room import Room
from protocol.sandbox import Rung
from tests.farm_client.sandbox.machine import confinement, environment, policy
from tests.sandbox.suite import run_suite

TAKEN_AWAY = (
    Protection.FILES,
    Protection.READ_ONLY,
    Protection.NETWORK,
    Protection.CAPABILITIES,
    Protection.SYSTEM_CALLS,
    Protection.CGROUPS,
)
CASES = (
    "read_secret",
    "change_given",
    "fork_bomb",
    "memory_together",
    "fill_shm",
    "nameless_daemon",
    "kill_supervisor",
)
GONE_SECONDS = 10
HOG = "farm_client.sandbox.hog"


def works(home: Path) -> str:
    """Return why Podman starts nothing here; nothing if it does."""
    binary = next(podman.binaries(), None)
    if binary is None:
        return "there is no Podman"
    with tempfile.TemporaryDirectory(dir=home) as folder:
        root = Path(folder) / "root"
        root.mkdir()
        own = dict.fromkeys(("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), folder)
        ended = subprocess.run(
            [
                *(binary, "--runtime=crun", f"--tmpdir={folder}/tmp", "run", "--network=none", "--cgroups=disabled"),
                *("--log-driver=none", "--volume=/usr:/usr:ro", "--volume=/lib:/lib:ro", "--volume=/lib64:/lib64:ro"),
                *("--rootfs", root, "/usr/bin/true"),
            ],
            env={"PATH": os.environ["PATH"], **own},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        with suppress(OSError, ValueError):  # it holds the namespaces of this user's containers
            os.kill(int(Path(folder, "tmp", "pause.pid").read_text()), signal.SIGKILL)
    return "" if ended.returncode == 0 else ended.stderr.strip()[-500:]


def said_and_ended(home: Path, code: str) -> tuple[object, int]:
    """Run a module in a container that says something on a descriptor; return that, and its exit code."""
    room, rung = Room.make(home), confinement(Rung.CONTAINER, policy((home,)))
    reading, writing = os.pipe()
    command = rung.command(room, "tests.sandbox.says", (str(writing), code), (writing,))
    variables = environment(room.scratch, os.environ)
    ended = subprocess.run(command, pass_fds=(writing,), env=variables, cwd=room.scratch, check=False)
    os.close(writing)
    with open(reading, "rb") as said:  # noqa: PTH123  it is a descriptor
        words = said.read()
    room.remove()
    return json.loads(words or b"null"), rung.own_exit_code(ended.returncode)


def killed_agent(home: Path) -> list[str]:
    """Start an agent that starts a container, kill it, and return the commands that outlive it."""
    words = [sys.executable, "-m", "tests.sandbox.container_rung", "agent", str(home)]
    agent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    mark = agent.stdout.readline().strip()
    if not with_mark(mark):
        return ["nothing was started"]
    agent.kill()
    agent.wait()
    asyncio.run(until_gone(mark))
    left = with_mark(mark)
    Room(Path(mark)).remove()
    return left


def killed_keeper(home: Path) -> tuple[list[str], list[str]]:
    """Kill a keeper and its parent at once; return what runs in the container then, and what is left later."""
    room = Room.make(home)
    process = started(room)
    waiting = psutil.Process(process.pid)
    both = (waiting, *waiting.children())
    for one in both:
        one.suspend()  # or the first one's end would be the other's word to end the rest
    for one in both:
        one.kill()
    process.wait()
    asyncio.run(until_gone(str(room.root), HOG))
    inside = with_mark(str(room.root), HOG)
    end_leftovers(home)
    asyncio.run(until_gone(str(room.root)))
    left = with_mark(str(room.root))
    room.remove()
    return inside, left


async def until_gone(*marks: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(GONE_SECONDS):
            while with_mark(*marks):  # noqa: ASYNC110  no event tells of a process that is no child
                await asyncio.sleep(0.05)


def agent(home: Path) -> None:
    """Be an agent whose container waits until it is ended."""
    room = Room.make(home)
    started(room)
    print(room.root, flush=True)
    signal.pause()


def started(room: Room) -> subprocess.Popen[bytes]:
    """Start a container that waits until it is ended."""
    rung = confinement(Rung.CONTAINER, policy((room.root.parent,)))
    process = subprocess.Popen(
        rung.command(room, HOG, ("memory", "1")),
        stdout=subprocess.PIPE,
        env=environment(room.scratch, os.environ),
        cwd=room.scratch,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def with_mark(*marks: str) -> list[str]:
    """List the commands of processes that all marks show in: in their words, variables, or where they are."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            about = words + (folder / "environ").read_bytes() + os.fsencode((folder / "cwd").readlink())
            if all(mark.encode() in about for mark in marks) and int(folder.name) != os.getpid():
                found.append(words.replace(b"\0", b" ").decode()[:100])
    return found


def run(home: Path) -> None:
    """Try everything, and print it."""
    tell("works", works(home))
    for protection in (None, *TAKEN_AWAY):
        without = frozenset() if protection is None else frozenset({protection})
        rung = confinement(Rung.CONTAINER, policy((home,)), without)
        proof = asyncio.run(prove(rung, home, environment))
        tell(f"without {protection or 'nothing'}", {breach.protection for breach in proof.breaches}, proof.problem)
    for result in asyncio.run(run_suite(home, Rung.CONTAINER, names=CASES)).values():
        tell(f"case {result.case}", asdict(result))
    for code in ("7", "-9"):
        tell(f"ends with {code}", *said_and_ended(home, code))
    tell("killed agent", killed_agent(home))
    tell("killed keeper", *killed_keeper(home))
    tell("left", sorted(os.listdir(home)), with_mark(str(home)))  # noqa: PTH208


def tell(name: str, *what: object) -> None:
    print(json.dumps([name, *(sorted(one) if isinstance(one, set) else one for one in what)]), flush=True)


def main(words: Sequence[str]) -> None:
    """Do what the command line says."""
    if words[0] == "agent":
        agent(Path(words[1]))
    else:
        run(Path(words[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
