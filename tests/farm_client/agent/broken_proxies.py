"""Thirty agents, each behind a proxy that is broken in a way of its own for a while: all of them must come back.

They are real agents in this process; only their farm is played, and what runs tasks is left out.
"""

import asyncio
import random
import shutil
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from farm_client.agent.connection.address import parse_address
from farm_client.agent.daemon import Agent
from farm_client.agent.settings import load_settings
from tests.farm_client.agent.odd_server import (
    BEFORE_THE_REQUEST,
    RELAY,
    RESET,
    SILENCE,
    OddServer,
    odd_server,
    status,
)
from tests.farm_client.agent.scripted_farm import TOKEN
from tests.farm_client.agent.waiting import until

SEEDS = 30
BACK_SECONDS = 60.0
STATUSES = (200, 204, 301, 302, 400, 403, 404, 408, 418, 421, 429, 500, 502, 503, 504)
KINDS = {
    "refuse": lambda chance: (BEFORE_THE_REQUEST, RESET),
    "cut": lambda chance: chance.choice([b"", RESET, (BEFORE_THE_REQUEST, b"")]),
    "half": lambda chance: status(101, "Upgrade: websocket", "Connection: Upgrade")[: chance.randrange(1, 60)],
    "status": lambda chance: status(chance.choice(STATUSES), *chance.choice([(), ("Retry-After: 3600",)])),
    "early status": lambda chance: (BEFORE_THE_REQUEST, status(chance.choice(STATUSES))),
    "silence": lambda chance: SILENCE,
}


@dataclass
class Member:
    """One agent and its proxy. A third of the proxies keep to one kind of fault, the others draw one each time."""

    seed: int
    proxy: OddServer
    life: asyncio.Task

    async def spoil(self):
        """Break what is open, and all that is to come."""
        chance, kinds = random.Random(self.seed), sorted(KINDS)
        kind = kinds[self.seed // 3 % len(kinds)]
        if self.seed % 3:
            self.proxy.answer = lambda: KINDS[chance.choice(kinds)](chance)
        else:
            self.proxy.answer = lambda: KINDS[kind](chance)
            if kind == "refuse":
                self.proxy.listener.close()
        self.proxy.cut()

    async def mend(self):
        """Lead to the farm again, and let go of what was broken, as a proxy that is started anew does."""
        self.proxy.answer = RELAY
        if not self.proxy.listener.is_serving():
            await self.proxy.listen()
        self.proxy.cut()


async def outlive(farm, root, self_test_file, broken_seconds):
    """Let all agents join, break their proxies for so long, mend them; return the seconds until all were back.

    Every other one starts while all is broken, and has never met its farm.
    """
    online = set()

    async def welcome_all():
        while True:
            peer = await farm.next_client(timeout_seconds=1e6)
            greetings.add(asyncio.create_task(greet(peer)))

    async def greet(peer):
        hello = await peer.welcome(heartbeat_seconds=1.0)
        online.add(hello.name)
        await peer.closed.wait()
        online.discard(hello.name)

    greetings, members = set(), []
    host = asyncio.create_task(welcome_all())
    async with AsyncExitStack() as stack:
        try:
            for seed in range(SEEDS):
                proxy = await stack.enter_async_context(odd_server(RELAY, farm.port))
                life = None if seed % 2 else start(seed, proxy, root, self_test_file)
                members.append(Member(seed, proxy, life))
            await until(lambda: len(online) == SEEDS // 2, 60)
            for member in members:
                await member.spoil()
            await until(lambda: not online, 60)
            for member in members:
                member.life = member.life or start(member.seed, member.proxy, root, self_test_file)
            await asyncio.sleep(broken_seconds)  # how long it is broken is what is tested, not a guess
            for member in members:
                await member.mend()
            began = asyncio.get_running_loop().time()
            await until(lambda: len(online) == SEEDS or any(member.life.done() for member in members), BACK_SECONDS)
            ended = {member.seed: member.life.exception() for member in members if member.life.done()}
            assert ended == {}
            return asyncio.get_running_loop().time() - began
        finally:
            tasks = [host, *greetings, *(member.life for member in members if member.life is not None)]
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)


def start(seed, proxy, root, self_test_file):
    home = root / f"agent{seed}"
    home.mkdir()
    shutil.copy(self_test_file, home / "self-test.json")
    settings = load_settings(home=home, name=f"agent{seed}", spare_executor=False, drain_seconds=0.0)
    agent = Agent(parse_address(f"ws://{TOKEN}@127.0.0.1:{proxy.port}"), settings, "nothing.to.run")
    return asyncio.create_task(agent.run())
