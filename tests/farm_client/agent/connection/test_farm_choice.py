"""Where the join token may come from, and where it can be seen."""

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.blotting import without_token, without_value
from farm_client.agent.connection.address import parse_address
from farm_client.agent.connection.farm_choice import choose_farm, remember_farm
from farm_client.agent.errors import BadAddress, BadSettings
from tests.farm_client.agent.scripted_farm import TOKEN
from tests.farm_client.agent.waiting import until

ODD = "a/b+c=d@e:f#g?h%20i ü"
"""Printable characters that mean something in a URL."""


@pytest.fixture
def choose(tmp_path):
    def chosen(given=None, token_file=None, **environ):
        return choose_farm(given, token_file, tmp_path / "farm.json", environ)

    return chosen


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(f"{ODD}\n")
    return path


def test_an_address_with_its_token_wins_over_all_else(choose, token_file):
    address = choose("ws://own@host:1", token_file, FARM_TOKEN="other", FARM_JOIN_URL="ws://third@elsewhere")
    assert (address.shown, address.token) == ("ws://host:1", "own")


def test_a_variable_names_the_farm(choose):
    assert choose(FARM_JOIN_URL=" ws://own@host:1\n") == parse_address("ws://own@host:1")


def test_a_token_comes_from_a_file_or_a_variable_as_it_is(choose, token_file):
    assert choose("ws://host:1", token_file, FARM_TOKEN="other").token == ODD
    assert choose("ws://host:1", FARM_TOKEN=ODD).token == ODD
    assert choose(FARM_JOIN_URL="ws://host:1", FARM_TOKEN=ODD).token == ODD


def test_the_last_farm_is_remembered_for_its_owner_alone(choose, tmp_path):
    address = parse_address(f"wss://{ODD.replace('%', '%25')}@host:1/base")
    assert address.token == ODD
    previous = os.umask(0)
    try:
        remember_farm(tmp_path / "farm.json", address)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "farm.json").stat().st_mode) == 0o600
    assert choose() == address
    assert choose("wss://host:1/base").token == ODD
    assert choose("wss://host:2/base").token is None, "another farm is not told this one's token"
    assert choose("wss://new@host:1/base").token == "new"
    assert choose(FARM_TOKEN="new").token == "new"


def test_what_cannot_be_remembered_is_asked_for_again(choose, tmp_path):
    remember_farm(tmp_path / "no folder" / "farm.json", parse_address("ws://a@host"))
    (tmp_path / "farm.json").write_text("{")
    with pytest.raises(BadAddress, match="FARM_JOIN_URL"):
        choose()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_file_that_others_may_read_is_refused(choose, token_file, mode):
    token_file.chmod(mode)
    with pytest.raises(BadSettings, match="chmod 600"):
        choose("ws://host", token_file)


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff", b"x" * 5000, b"a\x1b[2Jb"])
def test_a_token_file_without_a_token_says_so(choose, token_file, content):
    token_file.write_bytes(content)
    with pytest.raises(BadSettings, match="--token-file"):
        choose("ws://host", token_file)


def test_a_token_file_that_is_not_there_says_so(choose, tmp_path):
    with pytest.raises(BadSettings, match="No such file"):
        choose("ws://host", tmp_path / "none")


@given(st.binary(), st.binary())
def test_what_is_blotted_keeps_its_length_and_loses_its_secret(token, place):
    place = place.replace(b"@", b"")
    address = b"ws://" + token + b"@" + place
    assert without_token(address) == b"ws://" + b"*" * len(token) + b"@" + place
    assert without_value(b"NAME=" + token) == b"NAME=" + b"*" * len(token)
    assert without_token(b"wss://host:1") == b"wss://host:1"


def shown_of(pid):
    return [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is blotted out")
@pytest.mark.parametrize("way", ["argument", "FARM_JOIN_URL", "FARM_TOKEN", "remembered"])
async def test_the_token_is_not_seen_in_the_list_of_processes_nor_in_the_first_environment(farm, home, way):
    bare, environ, arguments = f"ws://{farm.host}:{farm.port}", dict(os.environ), []
    match way:
        case "argument":
            arguments = [farm.url]
        case "FARM_JOIN_URL":
            environ[way] = farm.url
        case "FARM_TOKEN":
            arguments, environ[way] = [bare], TOKEN
        case "remembered":
            remember_farm(home / "farm.json", parse_address(farm.url))
    command = [sys.executable, "-m", "farm_client", "join", *arguments, "--home", str(home), "--name", "tester"]
    agent = await asyncio.create_subprocess_exec(*command, env=environ, stderr=subprocess.DEVNULL)
    try:
        peer = await farm.next_client()  # it knows the token
        shown = shown_of(agent.pid)
        assert b"--name\0tester" in shown[0]
        assert TOKEN.encode() not in b"".join(shown)
        await peer.welcome()
        known = home / "farm.json"
        await until(lambda: known.exists() and TOKEN in known.read_text())
        assert stat.S_IMODE(known.stat().st_mode) == 0o600
    finally:
        agent.kill()
        await agent.wait()
