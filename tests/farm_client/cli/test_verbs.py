"""Each verb that asks or tells the farm something, for people and with --json."""

from __future__ import annotations

import pytest

from farm_client.cli.logs import SHOWN_PRINTS, show_prints
from farm_client.cli.output import Output
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from protocol.recipe import Recipe, Requirements
from protocol.rest import EventView, LogView, MetricView, ShardBook
from protocol.sandbox import Rung, Sandbox
from protocol.tasks import BlobRef
from tests.farm_client.cli.fake_farm import ADDRESS, make_client, make_spec, make_task, problem


def make_log(seq: int, client: str, text: str, stream: str = "stdout") -> LogView:
    return LogView(seq=seq, at=0, client_id=f"id-{client}", client_name=client, round=1, stream=stream, text=text)


def make_metric(seq: int, value: float, source: str = "eval") -> MetricView:
    return MetricView(seq=seq, at=0, round=seq, step=0, name="accuracy", value=value, source=source)


def test_ls_shows_each_task_and_its_progress(farm):
    outcome = farm("ls")
    assert outcome.exit_code == 0
    assert "abcd2345" in outcome.stdout
    assert "3/20" in outcome.stdout


def test_ls_of_an_empty_farm_says_what_to_do(farm, fake):
    fake.tasks = []
    assert "farm submit" in farm("ls").stdout
    assert farm("ls", "--json").envelope("tasks") == []


def test_names_with_brackets_are_shown_as_they_are(farm, fake):
    fake.tasks = [make_task(name="[red]x[/red]", why="[bold]")]
    assert "[red]x[/red]" in farm("ls").stdout
    assert "[red]x[/red]" in farm("show", "abcd2345").stdout


def test_show_gives_recipe_progress_and_rounds(farm):
    text = farm("show", "digits").stdout
    for part in ("ada@lab", "round 3 of 20", "accuracy 0.9312", "lr=0.1", "1,438"):
        assert part in text


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, "32 a batch\n"),
        ({"aggregate": "median"}, "32 a batch, median of the updates"),
        (
            {"aggregate": "trimmed_mean", "trim_share": 0.25},
            "32 a batch, mean of the updates without 25% at either end",
        ),
    ],
)
def test_show_says_how_updates_become_one(farm, fake, chosen, said):
    fake.recipe = Recipe(rounds=20, min_clients=3, **chosen)
    assert said in farm("show", "digits").stdout


def test_show_says_what_a_client_must_have(farm, fake):
    assert "needs" not in farm("show", "digits").stdout
    needs = Requirements(cpu_cores=4, ram_bytes=2**33, gpu=True, tags=("lab",), modules=("gym",), sandbox=Rung.STRICT)
    fake.spec = make_spec().model_copy(update={"requirements": needs})
    text = " ".join(farm("show", "digits").stdout.split())
    assert (
        "needs 4 cores, 8.0 GiB of memory, a GPU, tagged lab, with gym, a sandbox that holds: strict or above" in text
    )


def test_show_names_the_environment(farm, fake):
    assert "packages" not in farm("show", "digits").stdout
    lock = BlobRef.carrying(b"einops==1").bare()
    fake.spec = make_spec().model_copy(update={"environment": lock})
    assert f"packages environment {lock.digest[:12]}" in " ".join(farm("show", "digits").stdout.split())


def test_clients_tell_their_sandbox_in_json(farm, fake):
    fake.clients = [make_client(sandbox=Sandbox(rung=Rung.LANDLOCK, probes=3)), make_client("old")]
    told = [client["sandbox"] for client in farm("clients", "--json").envelope("clients")]
    assert told == [{"rung": "landlock", "probes": 3}, None]


def test_show_tells_of_retries_and_the_last_error(farm, fake):
    fake.tasks = [make_task(state="pending", retries=2, error="ValueError: shapes differ")]
    text = farm("show", "digits").stdout
    assert "2 of 3" in text
    assert "last error" in text
    assert "ValueError: shapes differ" in text


@pytest.mark.parametrize(
    ("counted", "repeated", "balance"),
    [(100, 0, "each sample once"), (60, 0, "40 to go"), (100, 4, "4 counted twice")],
)
def test_show_shards_audits_the_books(farm, fake, counted, repeated, balance):
    fake.shards = [ShardBook(epoch=0, shard=0, samples=100, counted_samples=counted, repeated_samples=repeated)]
    assert balance in farm("show", "digits", "--shards").stdout
    assert farm("show", "digits", "--shards", "--json").envelope("shards")[0]["counted_samples"] == counted


def test_why_is_one_line(farm):
    assert farm("why", "abcd").stdout == "round 3 is with 2 clients\n"
    assert farm("why", "abcd", "--json").envelope("why") == {
        "task_id": "abcd2345",
        "why": "round 3 is with 2 clients",
    }


@pytest.mark.parametrize("action", ["pause", "resume", "cancel", "retry"])
def test_actions_ask_the_farm(farm, fake, action):
    outcome = farm(action, "digits", "--json")
    assert f"POST /v1/tasks/abcd2345/{action}" in fake.sent()
    assert outcome.envelope("task")["state"] == f"{action}d"


def test_rm_removes_what_is_over_and_the_rest_by_force(farm, fake):
    refused = farm("rm", "digits")
    assert refused.exit_code == 1
    assert refused.stderr == "farm: only one that is over can be removed\n"
    outcome = farm("rm", "digits", "--force", "--json")
    assert outcome.envelope("removed") == {"task_id": "abcd2345", "removed": True}
    assert "abcd2345" not in {task.task_id for task in fake.tasks}


def test_clients_rm_removes_one_by_its_name(farm, fake):
    fake.clients = [make_client("vm", client_id="aaaa1111"), make_client("desk", client_id="a/../b?", state="offline")]
    refused = farm("clients", "rm", "vm")
    assert (refused.exit_code, refused.stderr) == (1, "farm: it is connected: give --force\n")
    assert farm("clients", "rm", "aaaa", "--force", "--json").envelope("client_removed") == {
        "client_id": "aaaa1111",
        "removed": True,
    }
    assert farm("clients", "rm", "desk").stderr == "desk (a/../b?) is removed\n"
    assert fake.requests[-1].url.raw_path == b"/v1/clients/a%2F%2E%2E%2Fb%3F"
    assert fake.clients == []


def test_clients_rm_of_a_name_that_several_have_lists_their_ids(farm, fake):
    fake.clients = [make_client("vm", client_id=client_id) for client_id in ("ab12", "ab34")]
    assert "'vm' is the name of several clients (ab12, ab34): give an id" in farm("clients", "rm", "vm").stderr
    assert "'ab' is the beginning of several client ids (ab12, ab34)" in farm("clients", "rm", "ab").stderr
    assert "there is no client 'cd'" in farm("clients", "rm", "cd").stderr
    assert len(fake.clients) == 2


@pytest.mark.parametrize("arguments", [("rm",), ("--force",), ("vanish",), ("vanish", "vm")])
def test_clients_with_half_a_command_is_wrong_usage(farm, fake, arguments):
    assert farm("clients", *arguments).exit_code == 2
    assert not any(sent.startswith("DELETE") for sent in fake.sent())


def test_a_priority_is_given_to_the_farm(farm, fake):
    outcome = farm("priority", "digits", "9", "--json")
    assert "PUT /v1/tasks/abcd2345/priority" in fake.sent()
    assert outcome.envelope("task")["priority"] == 9
    assert farm("priority", "digits", "10").exit_code == 2


def test_an_action_that_the_state_forbids_is_one_line(farm, fake):
    fake.overrides["POST", "/v1/tasks/abcd2345/retry"] = lambda: problem(
        409, "illegal_transition", "task abcd2345 is running and cannot become pending"
    )
    outcome = farm("retry", "digits")
    assert outcome.exit_code == 1
    assert outcome.stderr == "farm: task abcd2345 is running and cannot become pending\n"


def test_clients_shows_machines(farm):
    text = farm("clients").stdout
    assert "laptop" in text
    assert "4 cores, 16.0 GiB" in text


def test_clients_of_one_name_are_told_apart(farm, fake):
    fake.clients = [make_client("vm", client_id="aaaa1111aaaa"), make_client("vm", client_id="bbbb2222bbbb")]
    fake.clients.append(make_client("desk", client_id="cccc3333cccc"))
    text = farm("clients").stdout
    assert "vm (aaaa11)" in text
    assert "vm (bbbb22)" in text
    assert "desk (" not in text
    fake.logs = [make_log(1, "vm", "hello").model_copy(update={"client_id": "bbbb2222bbbb"})]
    assert "vm (bbbb22) r1 hello" in farm("logs", "digits").stdout


def test_a_speed_is_told_with_its_task(farm, fake):
    fake.clients = [make_client("vm", samples_per_second={"gone5555": 48_441.0, "abcd2345": 600.0})]
    assert "600 samples/s (digits)" in farm("clients").stdout
    fake.tasks = [make_task(state="completed")]
    assert "samples/s" not in farm("clients").stdout


def test_no_client_says_what_to_do(farm, fake):
    fake.clients = []
    assert "farm-client join" in farm("clients").stdout


def test_explain_gives_terms_and_who_was_filtered_out(farm):
    text = farm("explain", "digits").stdout
    assert "throughput  free memory" in text
    assert "x 0.5" in text
    assert "0.80" in text
    assert "needs 8.0 GiB of memory" in text


def test_logs_are_shown_by_client(farm, fake):
    fake.logs = [make_log(1, "laptop", "hello"), make_log(2, "desktop", "Traceback", "stderr")]
    text = farm("logs", "digits").stdout
    assert "laptop r1 hello" in text
    assert "desktop r1 Traceback" in text
    assert "hello" not in farm("logs", "digits", "--client", "desktop").stdout


def test_logs_read_every_page(farm, fake):
    fake.logs = [make_log(seq, "laptop", f"line {seq}") for seq in range(1, 2501)]
    assert len(farm("logs", "digits", "--json").envelopes("log")) == 2500


def test_following_logs_ends_with_the_task(farm, fake):
    fake.tasks = [make_task(state="completed")]
    fake.logs = [make_log(1, "laptop", "bye")]
    assert farm("logs", "digits", "-f", "--json").envelope("log")["text"] == "bye"


def test_metrics_as_table_plot_and_lines(farm, fake):
    fake.metrics = [make_metric(seq, value) for seq, value in enumerate([0.5, 0.9, 0.95], start=1)]
    assert "▁▇█" in farm("metrics", "digits").stdout
    plot = farm("metrics", "digits", "--plot").stdout
    assert "accuracy by round" in plot
    assert len(plot.splitlines()) >= 10
    assert [m["value"] for m in farm("metrics", "digits", "--json").envelopes("metric")] == [0.5, 0.9, 0.95]


def test_no_metric_yet_is_not_an_error(farm):
    outcome = farm("metrics", "digits")
    assert outcome.exit_code == 0
    assert "No metric yet" in outcome.stderr


@pytest.mark.parametrize(("state", "exit_code"), [("completed", 0), ("failed", 3), ("cancelled", 4)])
def test_wait_and_watch_tell_the_outcome_by_exit_code(farm, fake, state, exit_code):
    fake.tasks = [make_task(state=state)]
    assert farm("wait", "digits").exit_code == exit_code
    assert farm("watch", "digits").exit_code == exit_code
    assert farm("wait", "digits", "--json").envelope("task")["state"] == state


def test_wait_gives_up_in_time(farm):
    outcome = farm("wait", "digits", "--timeout", "0")
    assert outcome.exit_code == 5
    assert "is running after 0 s" in outcome.stderr


def test_a_failed_task_shows_its_last_lines_and_the_next_commands(farm, fake):
    fake.tasks = [make_task(state="failed", error="ValueError: shapes differ")]
    fake.logs = [make_log(seq, "laptop", f"line {seq}", "stderr") for seq in range(1, 40)]
    text = farm("watch", "digits").stderr
    assert "line 39" in text
    assert "line 20" not in text
    assert "digits failed: ValueError: shapes differ" in text
    assert "farm logs abcd2345" in text
    assert "farm retry abcd2345" in text


def test_watching_without_a_terminal_prints_lines(farm, fake):
    fake.tasks = [make_task(state="completed", round=20, why="")]
    outcome = farm("watch", "digits")
    assert outcome.stdout.startswith("completed  round 20/20  loss 0.4123  accuracy 0.9312  1,234 samples/s  2 clients")


def test_watching_with_json_streams_events_and_tasks(farm, fake):
    fake.tasks = [make_task(state="completed")]
    fake.events = [EventView(seq=1, at=0, task_id="abcd2345", kind="round_committed", message="round 2 committed")]
    outcome = farm("watch", "digits", "--json")
    assert outcome.envelope("event")["message"] == "round 2 committed"
    assert outcome.envelope("task")["task_id"] == "abcd2345"


def test_a_runs_prints_are_shown_and_a_flood_is_cut(fake, capsys):
    fake.logs = [make_log(1, "laptop", "hello"), make_log(2, "laptop", "fetching", "agent")]
    with FarmApi(parse_address(ADDRESS, "test"), fake.transport()) as api:
        show_prints(api, "abcd2345", Output(as_json=False))
        told = capsys.readouterr().err
        assert "hello" in told
        assert "fetching" not in told
        show_prints(api, "abcd2345", Output(as_json=True))
        assert '"text": "hello"' in capsys.readouterr().out
        fake.logs = [make_log(n, "laptop", f"line {n}") for n in range(1, SHOWN_PRINTS + 6)]
        show_prints(api, "abcd2345", Output(as_json=False))
    told = capsys.readouterr().err
    assert "the 5 lines before these are not shown" in told
    assert "line 5\n" not in told
    assert f"line {SHOWN_PRINTS + 5}\n" in told
