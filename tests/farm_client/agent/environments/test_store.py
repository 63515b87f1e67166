"""Environments on disk: whole or not there, the least recently used gone first, and what is in use never."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farm_client.agent.environments.store import EnvironmentStore, measure
from protocol.environments import MAX_ENVIRONMENTS
from tests.farm_client.agent.environments.tiny_index import names_in

NAMES = [f"{number:064x}" for number in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> EnvironmentStore:
    return EnvironmentStore(tmp_path / "environments", 350)


def built(store: EnvironmentStore, digest: str, size_bytes: int = 100) -> None:
    folder = store.begin()
    (folder / "packages/one.py").write_bytes(b"#" * size_bytes)
    (folder / "cache").mkdir()
    (folder / "cache/left").write_text("over")
    (folder / "lock.txt").write_text("one==1")
    store.finish(folder, digest, ["one==1"])


def used_at(store: EnvironmentStore, digest: str, seconds: float) -> None:
    os.utime(store.root / digest / "environment.json", (seconds, seconds))


def test_what_was_built_is_found_with_what_it_is(store: EnvironmentStore) -> None:
    assert store.list() == []
    store.clear_up()
    built(store, NAMES[0])
    (about,) = store.list()
    assert (about.digest, about.packages, about.size_bytes, about.files) == (NAMES[0], ("one==1",), 100, 1)
    path = store.packages(NAMES[0])
    assert path is not None
    assert names_in(path) == ["one.py"]
    assert names_in(store.root) == [NAMES[0]]
    assert names_in(store.root / NAMES[0]) == ["environment.json", "packages"]
    assert store.packages(NAMES[1]) is None
    assert store.packages("../" + NAMES[0]) is None


def test_the_least_recently_used_goes_for_a_new_one(store: EnvironmentStore) -> None:
    for digest in NAMES[:3]:
        built(store, digest)
    for digest, seconds in zip(NAMES, (100, 300, 200), strict=False):
        used_at(store, digest, seconds)
    store.packages(NAMES[0])
    built(store, NAMES[3])
    assert set(store.digests()) == {NAMES[0], NAMES[1], NAMES[3]}
    assert store.digests()[0] in {NAMES[0], NAMES[3]}, "the last used first"


def test_what_is_in_use_stays_and_so_does_what_was_just_built(tmp_path: Path) -> None:
    in_use = {NAMES[0]}
    store = EnvironmentStore(tmp_path, 150, lambda: in_use)
    built(store, NAMES[0])
    used_at(store, NAMES[0], 1)
    built(store, NAMES[1], 200)
    assert set(store.digests()) == {NAMES[0], NAMES[1]}
    in_use.clear()
    store.evict()
    assert store.digests() == ()


@pytest.mark.parametrize("damage", ["shorter", "gone", "more", "unreadable", "renamed", "no packages"])
def test_what_is_not_as_it_was_built_is_removed_at_the_next_start(store: EnvironmentStore, damage: str) -> None:
    built(store, NAMES[0])
    built(store, NAMES[1])
    folder = store.root / NAMES[0]
    match damage:
        case "shorter":
            (folder / "packages/one.py").write_text("")
        case "gone":
            (folder / "packages/one.py").unlink()
        case "more":
            (folder / "packages/two.py").write_text("")
        case "unreadable":
            (folder / "environment.json").write_text("{")
        case "renamed":
            folder.rename(store.root / NAMES[2])
        case "no packages":
            (folder / "packages").rename(folder / "other")
    store.clear_up()
    assert names_in(store.root) == [NAMES[1]]


def test_what_a_killed_agent_left_goes_and_never_counted(store: EnvironmentStore) -> None:
    folder = store.begin()
    (folder / "packages/one.py").write_text("half")
    (store.root / "removing-x").mkdir()
    assert store.digests() == ()
    store.clear_up()
    assert names_in(store.root) == []


def test_what_is_given_up_leaves_nothing(store: EnvironmentStore) -> None:
    folder = store.begin()
    store.give_up(folder)
    assert names_in(store.root) == []


def test_a_client_names_only_so_many(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path, 10**9)
    for number in range(MAX_ENVIRONMENTS + 1):
        built(store, f"{number:064x}", 1)
    assert len(store.list()) == MAX_ENVIRONMENTS + 1
    assert len(store.digests()) == MAX_ENVIRONMENTS


def test_a_folder_that_is_not_there_measures_nothing(tmp_path: Path) -> None:
    assert measure(tmp_path / "none") == (0, 0)
