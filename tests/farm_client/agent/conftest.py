import asyncio
import shutil
import socket
from contextlib import asynccontextmanager, suppress

import pytest

from farm_client.agent.connection.address import parse_address
from farm_client.agent.daemon import Agent
from farm_client.agent.machine.probe import Probe
from farm_client.agent.machine.selftest import self_test
from farm_client.agent.settings import load_settings
from protocol.composition import as_built
from tests.farm_client.agent.scripted_farm import SUBMITTER, running_farm

FAKE_EXECUTOR = "tests.farm_client.agent.fake_executor"


@pytest.fixture(scope="session")
def passed_self_test(tmp_path_factory):
    """The self-test of this machine, run once for all tests."""
    path = tmp_path_factory.mktemp("self-test") / "self-test.json"
    asyncio.run(self_test(Probe(path.parent), path))
    return path


@pytest.fixture
async def farm():
    async with running_farm() as farm:
        yield farm


@pytest.fixture
def home(tmp_path, passed_self_test):
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(passed_self_test, home / "self-test.json")
    return home


@pytest.fixture
def closed_port():
    """A port of loopback that is taken and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def start_agent(farm, home):
    """Run an agent with fake executors for the length of a block."""

    @asynccontextmanager
    async def start(executor_module=FAKE_EXECUTOR, *, new_identity=False, wrap=as_built, **options):
        # Fake executors are told apart by files that they write beside the tests: a sandbox has tests of its own.
        unconfined = {"sandbox": "none", "allow_unsandboxed": True, "work_for": (SUBMITTER,)}
        settings = load_settings(**{"home": home, "name": "tester", "drain_seconds": 1.0} | unconfined | options)
        agent = Agent(parse_address(farm.url), settings, executor_module, new_identity=new_identity, wrap=wrap)
        life = asyncio.create_task(agent.run())
        try:
            yield life
        finally:
            life.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await life

    return start
