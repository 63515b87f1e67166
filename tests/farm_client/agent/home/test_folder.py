import os
import stat
from pathlib import Path

import pytest

from farm_client.agent.connection.address import parse_address
from farm_client.agent.daemon import Agent
from farm_client.agent.errors import BadHome, DamagedIdentity, HomeInUse
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.home.identity import load_identity
from farm_client.agent.settings import load_settings


def test_one_agent_at_a_time(tmp_path):
    home = HomeFolder(tmp_path / "home")
    assert not home.in_use()
    with home.held():
        assert home.in_use()
        with pytest.raises(HomeInUse, match="--home"), HomeFolder(home.root).held():
            pass
    assert not home.in_use()


def test_what_a_killed_agent_left_behind_is_cleared(tmp_path):
    home = HomeFolder(tmp_path)
    (home.scratch_dir / "executor-1").mkdir(parents=True)
    with home.held():
        assert not any(home.scratch_dir.iterdir())


def test_a_home_that_cannot_be_made_is_told_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadHome, match="--home"), HomeFolder(tmp_path / "file" / "home").held():
        pass


def test_an_identity_lasts_and_is_private(tmp_path):
    path = tmp_path / "identity.json"
    first = load_identity(path)
    assert load_identity(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.client_secret not in repr(first)


@pytest.mark.parametrize(("text", "words"), [("{", "damaged"), ("", "empty"), ('{"client_id": ""}', "damaged")])
def test_a_damaged_identity_says_what_to_do(tmp_path, text, words):
    path = tmp_path / "identity.json"
    path.write_text(text)
    with pytest.raises(DamagedIdentity, match=f"{words}.*delete it"):
        load_identity(path)
    assert path.read_text() == text


def test_an_identity_is_on_the_disk_before_it_is_used(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink()))
    load_identity(tmp_path / "identity.json")
    assert synced == [tmp_path / "identity.new", tmp_path]


def test_executors_find_their_files_though_home_was_given_as_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent = Agent(parse_address("ws://token@127.0.0.1:1"), load_settings(home="h"))
    assert agent._home.root == tmp_path / "h"
