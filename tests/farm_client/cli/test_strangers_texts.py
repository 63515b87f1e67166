"""Names, reasons, logs and metrics of strangers reach a terminal as text, whatever is in them, from every verb."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from farm_client.cli.output import SafeConsole
from farm_client.sdk.watching.live_picture import draw_scene
from farm_client.sdk.watching.scene import Scene
from protocol.resources import Gpu, Resources
from protocol.rest import EventView, LogView, MetricView, TaskDetail
from tests.farm_client.cli.fake_farm import (
    FakeFarm,
    answer,
    make_client,
    make_explanation,
    make_spec,
    make_task,
    problem,
)

LOOKS = (
    ["ls"],
    ["show", "abcd2345"],
    ["why", "abcd2345"],
    ["watch", "abcd2345"],
    ["wait", "abcd2345"],
    ["logs", "abcd2345"],
    ["logs", "abcd2345", "-f"],
    ["metrics", "abcd2345"],
    ["metrics", "abcd2345", "--plot"],
    ["clients"],
    ["explain", "abcd2345"],
    ["pause", "abcd2345"],
)
ESC = "\x1b]0;title\x07\x1b[2J\x1b[31m"
PIECES = st.sampled_from(
    [ESC, "\x1b", "\x9b31m", "\n", "\r", "\u202e", "\u2028", "[/]", "[red]", "[/x]", ":bomb:", "%s", "{x}", "\\"]
)
TEXTS = st.lists(PIECES | st.text(max_size=3), min_size=1, max_size=4).map("".join)


def said_by_strangers(fake: FakeFarm, text: str) -> None:
    """Let everything that somebody else may call as they like be called ``text``."""
    gpu = Gpu(index=0, name=text, memory_bytes=1, memory_free_bytes=1)
    failed = make_task(
        name=text, submitter=text, state="failed", why=text, error=text, mode=text, metrics={text: 1.0}, started_at=1.0
    )
    fake.tasks = [failed]
    fake.clients = [make_client(text, reason=text, resources=Resources(hostname=text, gpus=(gpu,)), tags=(text,))]
    fake.events = [EventView(seq=1, at=0, task_id="abcd2345", kind=text, message=text)]
    fake.logs = [
        LogView(seq=1, at=0, client_id=text, client_name=text, round=1, stream="stdout", text=text),
        LogView(seq=2, at=0, client_id="i", client_name="", round=1, stream=text, text=text),
    ]
    fake.metrics = [
        MetricView(seq=seq, at=0, round=seq, step=0, name=text, value=float(seq), source=text) for seq in (1, 2)
    ]
    explanation = make_explanation("abcd2345")
    scores = [score.model_copy(update={"name": text, "reason": text}) for score in explanation.clients]
    told = explanation.model_copy(update={"why": text, "clients": tuple(scores)})
    fake.overrides["GET", "/v1/tasks/abcd2345/explain"] = lambda: answer(told)


def acting(shown: str) -> set[str]:
    """Return the characters that a terminal would act on."""
    return {char for char in shown if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {
        "\n",
        "\u200c",
        "\u200d",
    }


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
@example(text=ESC)
@example(text="[/]")
@example(text="innocent\nfarm: forged line")
def test_no_verb_lets_a_text_act(farm, fake, text: str) -> None:
    said_by_strangers(fake, text)
    for arguments in LOOKS:
        outcome = farm(*arguments)
        assert acting(outcome.stdout + outcome.stderr) == set(), arguments
        assert outcome.exit_code in {0, 3}, (arguments, outcome)
        lines = (outcome.stdout + outcome.stderr).splitlines()
        assert not any(line.startswith("farm: forged") for line in lines), arguments


def test_json_has_every_text_as_it_came_and_escapes_it(farm, fake) -> None:
    said_by_strangers(fake, ESC + "\u202e\x9b")
    outcome = farm("clients", "--json")
    assert acting(outcome.stdout) == set()
    assert outcome.stdout.isascii()
    assert outcome.envelope("clients")[0]["name"] == ESC + "\u202e\x9b"


def test_an_error_of_the_farm_is_one_harmless_line(farm, fake) -> None:
    fake.overrides["GET", "/v1/tasks"] = lambda: problem(409, "conflict", f"{ESC}a\nb [/]")
    assert farm("ls").stderr == "farm: a b [/]\n"


@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_the_live_picture_has_no_controls_but_its_own(text: str) -> None:
    task = make_task(name=text, why=text, error=text, metrics={text: 1.0})
    clients = (make_client(text, reason=text), make_client("b", state="draining", reason=text))
    event = EventView(seq=1, at=0, task_id="abcd2345", kind="k", message=text)
    scene = Scene(TaskDetail(task=task, spec=make_spec(), rounds=()), clients, (event,), (event,), (1.0,), absent=text)
    shown = io.StringIO()
    SafeConsole(ignores_broken_pipe=False, file=shown, force_terminal=True, width=100).print(draw_scene(scene))
    assert acting(re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())) == set()


@pytest.mark.parametrize("text", ["[bold]", ":bomb:"])
def test_what_looks_like_markup_is_shown_as_it_is(farm, fake, text: str) -> None:
    said_by_strangers(fake, text)
    for arguments in (["ls"], ["show", "abcd2345"], ["clients"], ["logs", "abcd2345"], ["pause", "abcd2345"]):
        outcome = farm(*arguments)
        assert text in outcome.stdout + outcome.stderr, arguments
