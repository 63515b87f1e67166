"""Wrong addresses, tokens, references and options: one line on stderr, the documented exit code."""

from __future__ import annotations

import httpx
import pytest

from tests.farm_client.cli.fake_farm import ADDRESS, make_task, problem


def only_line(outcome) -> str:
    (line,) = outcome.stderr.splitlines()
    return line


def test_no_address_is_a_usage_error(farm):
    outcome = farm("ls", environ={"FARM_URL": ""})
    assert outcome.exit_code == 2
    assert "farm login" in only_line(outcome)


@pytest.mark.parametrize("address", ["localhost:8470", "ftp://x", "ws://t@h:1", "http://", "http://h:port"])
def test_an_address_that_cannot_be_a_farms(farm, address):
    outcome = farm("ls", "--farm", address)
    assert outcome.exit_code == 2
    assert only_line(outcome).startswith("farm: --farm: ")


def test_a_word_that_is_no_rung(farm, tmp_path):
    outcome = farm("submit", str(tmp_path), "--sandbox", "castle")
    assert outcome.exit_code == 2
    assert "'castle' is not one of 'strict', 'landlock', 'container', 'none'" in only_line(outcome)


def test_a_wrong_token(farm):
    outcome = farm("ls", "--farm", "http://wrong@farm.test:8470")
    assert outcome.exit_code == 6
    assert "refuses the token" in only_line(outcome)
    assert "wrong" not in only_line(outcome)


@pytest.mark.parametrize(
    "failure",
    [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut")],
)
def test_a_farm_that_does_not_answer(farm, fake, failure):
    def fail():
        raise failure

    fake.overrides["GET", "/v1/tasks"] = fail
    outcome = farm("ls", "--json")
    assert outcome.exit_code == 6
    assert "http://farm.test:8470" in only_line(outcome)
    assert outcome.envelope("error")["code"] == "farm_unreachable"


@pytest.mark.parametrize("body", [httpx.Response(404, text="<html>nginx</html>"), httpx.Response(200, text="hello")])
def test_something_else_answers(farm, fake, body):
    fake.overrides["GET", "/v1/tasks"] = lambda: body
    outcome = farm("ls")
    assert outcome.exit_code == 6
    assert "is not a farm" in only_line(outcome)


def test_an_unknown_task(farm):
    outcome = farm("show", "nosuch", "--json")
    assert outcome.exit_code == 1
    assert "`farm ls` lists the tasks" in only_line(outcome)
    assert outcome.envelope("error") == {
        "code": "not_found",
        "message": only_line(outcome).removeprefix("farm: "),
        "exit_code": 1,
    }


def test_an_error_that_this_version_does_not_know_keeps_its_sentence(farm, fake):
    fake.overrides["GET", "/v1/tasks"] = lambda: problem(418, "teapot", "brew tea instead")
    assert only_line(farm("ls")) == "farm: brew tea instead"


def test_debug_shows_the_traceback(farm):
    assert "Traceback" in farm("show", "nosuch", "--debug").stderr
    assert "Traceback" not in farm("show", "nosuch").stderr


def test_interrupting_says_what_goes_on(farm, fake):
    def interrupt():
        raise KeyboardInterrupt

    fake.overrides["GET", "/v1/tasks"] = interrupt
    outcome = farm("ls")
    assert outcome.exit_code == 130
    assert "goes on running on the farm" in only_line(outcome)


@pytest.mark.parametrize("arguments", [("nosuchverb",), ("show",), ("ls", "--nosuch"), ("wait", "x", "--timeout", "y")])
def test_a_wrong_command_line(farm, arguments):
    assert farm(*arguments).exit_code == 2


def test_version(farm):
    outcome = farm("--version")
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("farm 0.")


def test_login_remembers_a_farm_that_answers(farm, fake, tmp_path):
    assert farm("login", ADDRESS).exit_code == 0
    config = tmp_path / "config.toml"
    assert config.stat().st_mode & 0o077 == 0
    assert farm("ls", environ={"FARM_URL": ""}).exit_code == 0
    assert fake.requests[-1].headers["authorization"] == "Bearer t0ken"


def test_login_writes_nothing_for_a_wrong_token(farm, tmp_path):
    assert farm("login", "http://wrong@farm.test:8470").exit_code == 6
    assert not (tmp_path / "config.toml").exists()


@pytest.mark.parametrize("content", ["farm = 3", "farm = ", "\xff"])
def test_a_broken_config_file_is_named(farm, tmp_path, content):
    (tmp_path / "config.toml").write_bytes(content.encode("latin-1"))
    outcome = farm("ls", environ={"FARM_URL": ""})
    assert outcome.exit_code == 2
    assert "config.toml" in only_line(outcome)


def test_task_references(farm, fake):
    fake.tasks = [
        make_task("aaaa2222", name="old", submitted_at=1.0),
        make_task("aaaa3333", name="run", submitted_at=2.0),
        make_task("bbbb4444", name="run", submitted_at=3.0),
        make_task("cccc5555", name="aaaa"),
    ]
    meant = {"aaaa2222": "aaaa2222", "bb": "bbbb4444", "BBBB": "bbbb4444", "run": "bbbb4444", "aaaa": "cccc5555"}
    for reference, task_id in meant.items():
        assert farm("why", reference, "--json").envelope("why")["task_id"] == task_id
    assert "aaaa2222, aaaa3333" in only_line(farm("why", "aaa"))
