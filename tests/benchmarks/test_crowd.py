"""A crowd counts what its members meet with, and is not taken for back before it is."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from benchmarks.crowd import Counts, Crowd, CrowdLife, tags_of
from benchmarks.farm import BenchmarkError
from farm_client.agent.errors import OutOfReach

ADDRESS = "ws://token@127.0.0.1:1"


def test_so_many_clients_have_each_tag_and_the_rest_has_none():
    assert [tags_of(number, ["a", "b"], 2) for number in range(5)] == [["a"], ["a"], ["b"], ["b"], []]
    assert tags_of(0, [], 0) == []


class Brief:
    """A connection that ends at once."""

    async def work(self) -> None:
        raise OutOfReach("the farm is gone")


async def test_each_failure_is_counted_by_its_kind_and_a_welcome_as_one(monkeypatch):
    failures = [OutOfReach("503", retry_after_seconds=2.0), OutOfReach("late", was_slow=True), OutOfReach("refused")]
    life = CrowdLife(ADDRESS, 1, (), 0)
    (member,) = life._members
    seen = []

    @asynccontextmanager
    async def joined():
        if failures:
            raise failures.pop(0)
        yield Brief()
        seen.append(life._counts)

    monkeypatch.setattr(member.client, "joined", joined)
    delays = []
    for _ in range(4):
        await member._visit()
        delays.append(member._reconnecting.delay_seconds())
    assert life._counts == Counts(online=0, joins=1, sent_away=1, timed_out=1, failed=1)
    assert delays[0] >= 2.0  # what the farm asked for


class Script:
    """A process that prints what it is told to."""

    def __init__(self, tmp_path):
        program = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)\nsys.exit('the last words')"
        self.log = tmp_path / "crowd.log"
        with self.log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )

    def tell(self, **counts):
        print(json.dumps(counts), file=self.process.stdin, flush=True)


@pytest.fixture
def script(tmp_path):
    script = Script(tmp_path)
    yield script
    script.process.stdin.close()
    script.process.wait()


def test_a_crowd_is_back_only_when_each_has_joined_anew(script):
    crowd = Crowd(script.process, 2, script.log)
    script.tell(at=1.0, online=2, joins=2)
    before = crowd.wait_online(10)
    with pytest.raises(BenchmarkError, match="not all of 2 clients"):
        crowd.wait_online(0.3, before)  # nobody has noticed yet that the farm is gone
    script.tell(at=2.0, online=1, joins=3)
    script.tell(at=3.0, online=2, joins=4, sent_away=5)
    assert crowd.wait_online(10, before) == Counts(at=3.0, online=2, joins=4, sent_away=5)


def test_a_crowd_that_has_ended_is_told_with_its_last_words(script):
    crowd = Crowd(script.process, 2, script.log)
    script.process.stdin.close()
    script.process.wait()
    with pytest.raises(BenchmarkError, match="the last words"):
        crowd.wait_online(10)
