"""An agent and the packages of its tasks: handed back while they are installed, and done once they are there."""

from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner

from farm_client.agent.cli import app
from farm_client.agent.environments.keeper import NO_CONSENT
from farm_client.agent.environments.store import EnvironmentStore
from farm_client.agent.work.preflight import lacking
from protocol.assignments import Reject, RejectCode, Result
from protocol.environments import Environments
from protocol.messages import Error, Hello, Ready
from protocol.versions import TASK_ENVIRONMENT
from tests.farm_client.agent.environments.tiny_index import HAS_UV, make_wheel, pin_of, serving
from tests.farm_client.agent.scripted_farm import joined

needs_uv = pytest.mark.skipif(not HAS_UV, reason="uv is not installed (the group dev has it)")


@pytest.fixture
def index(tmp_path):
    (tmp_path / "wheels").mkdir()
    with serving(tmp_path / "wheels") as index:
        yield index


def packed(farm, index, name="tinyone", **changes):
    """Return a task with a lock of one package that the index has."""
    lock = farm.store(f"{pin_of(make_wheel(index.folder, name))}\n".encode())
    return farm.task().model_copy(update={"environment": lock, **changes})


async def news_of(peer) -> Environments:
    """Wait until the agent says something new of its environments."""
    while True:
        ready = await peer.expect(Ready)
        if ready.environments is not None:
            return ready.environments


async def test_without_consent_it_says_so_and_asks_no_index(farm, start_agent, index):
    async with start_agent():
        peer = await joined(farm)
        hello = next(message for message in peer.log if isinstance(message, Hello))
        assert TASK_ENVIRONMENT in hello.features
        assert hello.environments == Environments()
        await peer.send(farm.assign(packed(farm, index)))
        reject = await peer.expect(Reject)
        assert (reject.code, reject.message) == (RejectCode.ENVIRONMENT, NO_CONSENT)
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)
    assert not index.paths


@needs_uv
async def test_it_hands_back_installs_tells_and_does(farm, start_agent, index, home):
    async with start_agent(allow_installs=True, package_index=index.url):
        peer = await joined(farm)
        task = packed(farm, index)
        await peer.send(farm.assign(task))
        reject = await peer.expect(Reject)
        assert (reject.code, reject.message) == (RejectCode.ENVIRONMENT, "it begins to install it")
        told = await news_of(peer)
        assert told == Environments(built=(task.environment.digest,), installs=True)
        await peer.send(farm.assign(task.model_copy(update={"modules": ("tinyone",)})))
        await peer.expect(Result)
        status = json.loads((home / "status.json").read_text())["environments"]
        assert (status["environments"], status["installs"]) == (1, True)
    async with start_agent():  # the policy outlives the agent, and so do environments
        peer = await joined(farm)
        hello = next(message for message in peer.log if isinstance(message, Hello))
        assert hello.environments == Environments(built=(task.environment.digest,), installs=True)
        await peer.send(farm.assign(task.model_copy(update={"modules": ("no_such_module_here",)})))
        assert (await peer.expect(Error)).code == "missing_module"


@needs_uv
async def test_consent_that_comes_while_it_runs_is_told(farm, start_agent, index, home):
    async with start_agent(package_index=index.url):
        peer = await joined(farm)
        words = ["set", "--allow-installs", "--home", str(home)]
        done = await asyncio.to_thread(CliRunner().invoke, app, words)
        assert done.exit_code == 0, done.output
        assert "installs:      packages that tasks name" in done.stdout
        assert (await news_of(peer)).installs
        await peer.send(farm.assign(packed(farm, index)))
        assert (await peer.expect(Reject)).code is RejectCode.ENVIRONMENT
        assert (await news_of(peer)).built


def test_modules_of_an_environment_are_not_lacking(tmp_path):
    (tmp_path / "tinyone").mkdir()
    (tmp_path / "tinytwo.cpython-311-x86_64-linux-gnu.so").write_text("")
    assert lacking(("tinyone", "tinytwo", "json"), tmp_path) is None
    assert lacking(("tinyone", "tinythree"), tmp_path) == "tinythree"


def built(home, digest="a" * 64, size_bytes=100) -> None:
    store = EnvironmentStore(home / "environments", 10**9)
    folder = store.begin()
    (folder / "packages/one.py").write_bytes(b"#" * size_bytes)
    store.finish(folder, digest, ["one==1"])


def typed(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


class TestCommands:
    def test_list_shows_what_is_installed(self, tmp_path):
        assert typed("environments", "list", "--home", tmp_path).stdout == "nothing is installed for tasks here\n"
        built(tmp_path)
        said = typed("environments", "list", "--home", tmp_path).stdout
        assert said.startswith("a" * 12)
        assert "100 B" in said
        assert "1 package: one==1" in said
        data = json.loads(typed("environments", "list", "--home", tmp_path, "--json").stdout)["data"]
        assert data["folder"] == str(tmp_path / "environments")
        (one,) = data["environments"]
        assert (one["digest"], one["packages"], one["size_bytes"]) == ("a" * 64, ["one==1"], 100)

    def test_clear_removes_one_or_all(self, tmp_path):
        for digit in "abc":
            built(tmp_path, digit * 64)
        assert typed("environments", "clear", "bb", "--home", tmp_path).stdout == "removed 1 environment, 100 B\n"
        data = json.loads(typed("environments", "clear", "--home", tmp_path, "--json").stdout)["data"]
        assert data == {"environments": 2, "size_bytes": 200}
        assert typed("environments", "clear", "--home", tmp_path).stdout == "removed 0 environments, 0 B\n"

    def test_clear_wants_to_know_which(self, tmp_path):
        built(tmp_path, "ab" * 32)
        built(tmp_path, "ac" * 32)
        assert "2 environments begin with 'a'" in str(typed("environments", "clear", "a", "--home", tmp_path).exception)
        assert "no environment begins with 'x'" in str(
            typed("environments", "clear", "x", "--home", tmp_path).exception
        )

    async def test_clear_leaves_a_running_agent_its_environments(self, farm, start_agent, home):
        built(home)
        async with start_agent():
            await joined(farm)
            done = await asyncio.to_thread(typed, "environments", "clear", "--home", home)
            assert "an agent runs in this home" in str(done.exception)
        assert EnvironmentStore(home / "environments", 10**9).digests()
