"""The owner's commands, as a person types them: beside a running agent, without one, and with wrong words."""

import asyncio
import json
import sys

import pytest
from typer.testing import CliRunner

from farm_client.agent import owner_limit_options
from farm_client.agent.cli import app
from farm_client.agent.errors import BadSettings, ControlRefused, DamagedPolicy, NoAgent, NoControlSocket
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.owner.policy import OwnerPolicy, load_policy, save_policy
from farm_client.agent.owner_commands import describe, seconds_of
from farm_client.agent.owner_limit_options import share_of
from farm_client.agent.reporting.status import read_status
from protocol.assignments import Reject, Result
from protocol.messages import Drain, Pause, Ready, Resume
from protocol.resources import Gpu
from tests.farm_client.agent.scripted_farm import SUBMITTER, joined
from tests.farm_client.agent.test_cli import run


def typed(home, *words):
    return CliRunner().invoke(app, [*words, "--home", str(home)])


async def typed_beside(home, *words):
    """Type words while an agent runs in this very process."""
    return await asyncio.to_thread(typed, home, *words)


def told(done):
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["data"]


class TestWithoutAnAgent:
    def test_set_writes_the_policy_for_the_next_start(self, tmp_path):
        done = typed(tmp_path / "home", "set", "--hours", "22:00-07:00", "--pause-while", "game", "--only-idle")
        assert "when an agent starts here" in done.stderr
        policy = load_policy(tmp_path / "home" / "policy.json")
        assert policy == OwnerPolicy(hours="22:00-07:00", pause_while=("game",), only_idle=True)
        assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700

    def test_set_keeps_what_it_does_not_name_and_takes_back_what_it_does(self, tmp_path):
        typed(tmp_path, "set", "--for", "alice", "--for", "bob", "--idle-after", "10m", "--idle-load", "50%")
        typed(tmp_path, "set", "--on-battery", "--pause-while", "game")
        data = told(typed(tmp_path, "set", "--for", "all", "--pause-while", "none", "--hours", "all", "--json"))
        assert data["running"] is False
        assert (data["policy"]["work_for"], data["policy"]["pause_while"], data["policy"]["hours"]) == ([], [], "")
        assert (data["policy"]["idle_seconds"], data["policy"]["idle_load"]) == (600.0, 0.5)
        assert data["policy"]["on_battery"] is True

    def test_set_chooses_kinds_and_topics_and_takes_the_choice_back(self, tmp_path):
        data = told(
            typed(
                *(tmp_path, "set", "--kind", "train,evaluate", "--topic", "Science", "--topic", "physics"),
                *("--not-topic", "ads", "--json"),
            )
        )
        assert data["policy"]["kinds"] == ["train", "evaluate"]
        assert (data["policy"]["topics"], data["policy"]["not_topics"]) == (["physics", "science"], ["ads"])
        shown = typed(tmp_path, "set").stdout.splitlines()
        assert "kinds of work: train, evaluate" in shown
        assert "only topics:   physics, science" in shown
        assert "never topics:  ads" in shown
        done = typed(tmp_path, "set", "--kind", "all", "--topic", "all", "--not-topic", "none")
        assert "topics" not in done.stdout
        assert load_policy(tmp_path / "policy.json") == OwnerPolicy()

    def test_set_without_options_shows_and_writes_nothing(self, tmp_path):
        done = typed(tmp_path / "home", "set")
        assert "works for:     everybody" in done.stdout
        assert not (tmp_path / "home").exists()

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--hours", "25:00-26:00"),
            ("--cpu", "150%"),
            ("--duty", "1%"),
            ("--idle-after", "0s"),
            ("--gpu-power", "99999W"),
            ("--gpus", "4000"),
        ],
    )
    def test_what_cannot_be_set_is_refused_by_the_options_name(self, tmp_path, option, value):
        done = typed(tmp_path / "home", "set", option, value)
        assert isinstance(done.exception, BadSettings)
        assert done.exception.message.startswith(f"{option}: ")
        assert not (tmp_path / "home").exists()

    @pytest.mark.parametrize("command", ["pause", "resume", "finish", "logs"])
    def test_the_others_say_what_to_do(self, tmp_path, command):
        done = typed(tmp_path, command)
        assert isinstance(done.exception, NoAgent)
        assert "farm-client join" in done.exception.message

    def test_status_says_so_and_is_exit_code_1(self, tmp_path):
        done = typed(tmp_path, "status")
        assert done.exit_code == 1
        assert "farm-client join" in done.stdout

    def test_a_damaged_policy_is_told_and_not_written_over(self, tmp_path):
        (tmp_path / "policy.json").write_text("{")
        assert isinstance(typed(tmp_path, "set", "--only-idle").exception, DamagedPolicy)
        assert (tmp_path / "policy.json").read_text() == "{"

    def test_an_agent_starts_with_no_damaged_policy(self, tmp_path):
        (tmp_path / "policy.json").write_text("{")
        done = run("join", "ws://t@127.0.0.1:1", "--home", str(tmp_path))
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "farm-client set" in done.stderr

    def test_an_agent_without_a_socket_says_to_restart_it(self, tmp_path):
        with HomeFolder(tmp_path).held():
            done = typed(tmp_path, "pause")
            assert typed(tmp_path, "status").exit_code == 0
        assert isinstance(done.exception, NoControlSocket)
        assert "restart it" in done.exception.message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "--hours", "soon"), "--hours"),
        (("set", "--idle-after", "5"), "--idle-after"),
        (("set", "--idle-after", "0m"), "--idle-after"),
        (("set", "--idle-load", "half"), "--idle-load"),
        (("set", "--idle-load", "150%"), "--idle-load"),
        (("set", "--pause-while", " "), "--pause-while"),
        (("set", "--kind", "sweep"), "--kind: Input should be 'train', 'evaluate'"),
        (("set", "--topic", "two words"), "--topic: a topic is one word"),
        (("set", "--topic", "ads", "--not-topic", "ads"), "--not-topic: ads is among the topics"),
        (("pause", "--for", "tomorrow"), "--for"),
    ],
)
def test_wrong_words_name_the_option(tmp_path, words, said):
    done = typed(tmp_path, *words)
    assert isinstance(done.exception, BadSettings)
    assert said in done.exception.message


class TwoGpus:
    def sample(self):
        return (
            Gpu(index=0, name="A", memory_bytes=1, memory_free_bytes=1),
            Gpu(index=2, name="B", memory_bytes=1, memory_free_bytes=1),
        )

    def close(self):
        self.closed = True


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.setattr(owner_limit_options, "Accelerators", TwoGpus)
    done = typed(tmp_path, "set", "--gpus", "0,9")
    assert isinstance(done.exception, BadSettings)
    assert done.exception.message == "--gpus: this machine has no GPU 9: it has 0 (A), 2 (B)"
    assert not (tmp_path / "policy.json").exists()
    for words, kept in (("0,2", (0, 2)), ("none", ()), ("all", None)):
        assert typed(tmp_path, "set", "--gpus", words).exit_code == 0
        assert load_policy(tmp_path / "policy.json").gpus == kept
    monkeypatch.setattr(TwoGpus, "sample", lambda _: ())
    assert "shows none at all" in typed(tmp_path, "set", "--gpus", "0").exception.message
    assert typed(tmp_path, "set", "--on-battery").exit_code == 0, "what was set before is not looked at again"


@pytest.mark.parametrize(
    "words", [("set", "--nonsense"), ("pause", "now"), ("logs", "-n", "-1"), ("finish", "--at-once")]
)
def test_unknown_words_are_wrong_usage(tmp_path, words):
    assert typed(tmp_path, *words).exit_code == 2


def test_wrong_words_are_exit_code_2_and_one_line(tmp_path):
    done = run("set", "--home", str(tmp_path), "--hours", "soon")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "policy.json").exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5 H", 5400), ("1d", 86_400)]
)
def test_times_as_people_write_them(text, seconds):
    assert seconds_of(text, "--for") == seconds


def test_shares_as_people_write_them():
    assert share_of("25%", "--idle-load") == 0.25


def test_a_policy_in_lines():
    lines = describe(OwnerPolicy(only_idle=True, pause_while=("a", "b"), work_for=("alice",), paused=True))
    assert "when used:     only without input for 300 s, and others below 25% of the processor" in lines
    assert lines[-1] == "paused:        until `farm-client resume`"
    assert "until " in describe(OwnerPolicy(paused=True, paused_until=0.0))[-1]


class TestBesideAnAgent:
    async def test_a_pause_reaches_the_farm_and_survives_its_agent(self, farm, start_agent, home):
        async with start_agent():
            peer = await joined(farm)
            done = await typed_beside(home, "pause", "--for", "2h")
            assert "not working (paused): paused by this machine's owner until" in done.stdout
            assert (await peer.expect(Pause)).reason.startswith("paused: paused by this machine's owner until")
            data = told(await typed_beside(home, "status", "--json"))
            assert [rest["reason"] for rest in data["rests"]] == ["paused"]
            assert data["rests"][0]["until"] > 0
            assert (data["running"], data["sandbox"].startswith("none")) == (True, True)
        async with start_agent():
            peer = await joined(farm, incarnation=2)
            await peer.expect(Pause)
            assert "resume" not in (await typed_beside(home, "resume", "--json")).stderr
            await peer.expect(Resume)
            await peer.expect(Ready)
        assert load_policy(home / "policy.json").paused is False

    async def test_set_is_in_force_at_once(self, farm, start_agent, home):
        async with start_agent():
            peer = await joined(farm)
            done = await typed_beside(home, "set", "--for", "somebody-else")
            assert "in force now" in done.stderr
            await peer.send(farm.assign(farm.task()))
            assert "does not work for" in (await peer.expect(Reject)).message
            refused = await typed_beside(home, "set", "--for", "all")
            assert isinstance(refused.exception, ControlRefused)  # it runs without a sandbox
            assert load_policy(home / "policy.json").work_for == ("somebody-else",)
            assert told(await typed_beside(home, "set", "--json"))["running"] is True

    async def test_hours_that_are_over_keep_an_agent_from_work_from_its_start(self, farm, start_agent, home):
        save_policy(home / "policy.json", OwnerPolicy(paused=True))
        async with start_agent():
            peer = await joined(farm)
            await peer.expect(Pause)
            await peer.send(farm.assign(farm.task()))
            assert (await peer.expect(Reject)).code == "paused"

    async def test_what_join_was_told_is_what_set_shows(self, farm, start_agent, home):
        async with start_agent():
            await joined(farm)
            assert told(await typed_beside(home, "set", "--json"))["policy"]["work_for"] == [SUBMITTER]

    async def test_finish_ends_an_idle_agent(self, farm, start_agent, home):
        async with start_agent() as life:
            peer = await joined(farm)
            assert told(await typed_beside(home, "finish", "--json"))["finish"] == {"finishing": True}
            await peer.expect(Drain)
            async with asyncio.timeout(30):
                await life  # without an error: exit code 0

    async def test_logs_show_what_was_said_last(self, farm, start_agent, home):
        async with start_agent():
            await joined(farm)
            lines = (await typed_beside(home, "logs", "-n", "1")).stdout.splitlines()
            assert len(lines) == 1
            envelopes = [json.loads(line) for line in (await typed_beside(home, "logs", "--json")).stdout.splitlines()]
            assert "joined" in " ".join(envelope["data"]["text"] for envelope in envelopes)
            assert [e["data"]["number"] for e in envelopes] == sorted({e["data"]["number"] for e in envelopes})
            assert (await typed_beside(home, "logs", "-n", "0")).stdout == ""

    async def test_logs_are_followed_until_the_agent_ends(self, farm, start_agent, home):
        async with start_agent():
            await joined(farm)
            command = [sys.executable, "-m", "farm_client", "logs", "-f", "--home", str(home)]
            following = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            async with asyncio.timeout(60):
                while b"joined" not in await following.stdout.readline():
                    continue
                await typed_beside(home, "pause")
                while b"not working: paused" not in await following.stdout.readline():
                    continue
        async with asyncio.timeout(60):
            assert await following.wait() == 0

    async def test_a_policy_written_while_an_agent_starts_reaches_it(self, farm, start_agent, home, monkeypatch):
        """At the first look none runs, and it may have read the old policy before the new one was written."""
        looks = iter([False])
        in_use = HomeFolder.in_use
        async with start_agent():
            peer = await joined(farm)
            monkeypatch.setattr(HomeFolder, "in_use", lambda self: next(looks, None) is None and in_use(self))
            done = await typed_beside(home, "set", "--pause-while", "python", "--for", SUBMITTER)
            assert "in force now" in done.stderr
            assert (await peer.expect(Pause)).reason == "program: while python runs"

    async def test_without_a_socket_an_agent_says_so_and_works(self, farm, start_agent, home):
        (home / "control.sock").mkdir()
        async with start_agent():
            peer = await joined(farm)
            await peer.send(farm.assign(farm.task()))
            await peer.expect(Result)
        assert any("cannot reach this agent" in event.text for event in read_status(home / "status.json").events)
