"""What the SDK asks a farm, how it reads the answers, and which error each refusal becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import FarmAddress
from farm_client.sdk.errors import FarmUnreachable
from farm_client.sdk.retrying import RetryWhileAway
from protocol.errors import Conflict, FarmError, InvalidTask, NotFound, Unauthorized, Unavailable
from protocol.rest import EventView
from tests.farm_client.cli.fake_farm import make_spec, make_task

ADDRESS = FarmAddress("http://farm.test:8470", "t0ken", "--farm")
TASK = make_task().model_dump(mode="json")


class Farm:
    """Answers every request alike, and remembers them."""

    def __init__(self, answer: object = None, status: int = 200, **headers: str) -> None:
        self.answer, self.status, self.headers = answer, status, headers
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        content = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        return httpx.Response(self.status, content=content, headers=self.headers)

    @property
    def asked(self) -> tuple[str, str, dict[str, str]]:
        """Return the only request: its method, its path as it was sent, and its query."""
        (request,) = self.requests
        return request.method, request.url.raw_path.decode().partition("?")[0], dict(request.url.params)


def api_of(farm: Farm, **options: Any) -> FarmApi:
    return FarmApi(ADDRESS, httpx.MockTransport(farm), **options)


def refusal(code: str, message: str = "the farm's own words") -> dict[str, str]:
    return {"code": code, "message": message}


CALLS: dict[str, tuple[Callable[[FarmApi], object], object, tuple[str, str, dict[str, str]]]] = {
    "tasks": (lambda api: api.tasks(), [TASK], ("GET", "/v1/tasks", {})),
    "active tasks": (lambda api: api.active_tasks(), [TASK], ("GET", "/v1/tasks", {"active": "true"})),
    "pause": (lambda api: api.act("t1", "pause"), TASK, ("POST", "/v1/tasks/t1/pause", {})),
    "retry": (lambda api: api.act("t1", "retry"), TASK, ("POST", "/v1/tasks/t1/retry", {})),
    "priority": (lambda api: api.prioritize("t1", 9), TASK, ("PUT", "/v1/tasks/t1/priority", {})),
    "why": (lambda api: api.why("t1"), {"why": "it waits"}, ("GET", "/v1/tasks/t1/why", {})),
    "shards": (lambda api: api.shards("t1"), [], ("GET", "/v1/tasks/t1/shards", {})),
    "checkpoints": (lambda api: api.checkpoints("t1"), [], ("GET", "/v1/tasks/t1/checkpoints", {})),
    "clients": (lambda api: api.clients(), [], ("GET", "/v1/clients", {})),
    "links": (
        lambda api: api.links(),
        {
            "clients": 2,
            "round_trips": 1,
            "speeds": 0,
            "round_trip_seconds": 0.03,
            "download_bytes_per_second": 0.0,
            "upload_bytes_per_second": 0.0,
        },
        ("GET", "/v1/links", {}),
    ),
    "events": (
        lambda api: api.events("t1", 7, 2.5, 9),
        [],
        ("GET", "/v1/tasks/t1/events", {"after": "7", "wait": "2.5", "limit": "9"}),
    ),
    "logs": (
        lambda api: api.logs("t1"),
        [],
        ("GET", "/v1/tasks/t1/logs", {"after": "0", "wait": "0", "limit": "1000"}),
    ),
    "metrics": (
        lambda api: api.metrics("t1", after=3),
        [],
        ("GET", "/v1/tasks/t1/metrics", {"after": "3", "wait": "0", "limit": "1000"}),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_call_is_one_request_with_the_token(name: str) -> None:
    call, answer, asked = CALLS[name]
    farm = Farm(answer)
    with api_of(farm) as api:
        call(api)
    assert farm.asked == asked
    assert farm.requests[0].headers["authorization"] == "Bearer t0ken"
    assert farm.requests[0].headers["accept-encoding"] == "identity"  # nothing of an answer is unpacked here


def test_the_list_of_tasks_is_fetched_page_by_page_and_no_further_than_it_is_read() -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        more = {"link": '</v1/tasks?limit=2&cursor=7.5_b>; rel="next"'} if len(asked) % 2 else {}
        return httpx.Response(200, json=[TASK, TASK], headers=more)

    with FarmApi(ADDRESS, httpx.MockTransport(answer)) as api:
        assert next(api.each_task(2)) == make_task()
        assert asked == [{"limit": "2"}]
        asked.clear()
        assert len(api.tasks()) == 4
        assert asked == [{}, {"limit": "2", "cursor": "7.5_b"}]


def test_what_comes_back_is_typed() -> None:
    with api_of(Farm([TASK, TASK])) as api:
        assert api.tasks() == [make_task(), make_task()]
    with api_of(Farm({"why": "one client is missing"})) as api:
        assert api.why("t1") == "one client is missing"
    with api_of(Farm({})) as api:
        assert api.why("t1") == ""


@pytest.mark.parametrize(("force", "query"), [(False, {}), (True, {"force": "true"})])
def test_only_who_forces_says_so(force: bool, query: dict[str, str]) -> None:
    farm = Farm(refusal(Conflict.code), 409)
    with api_of(farm) as api, pytest.raises(Conflict):
        api.remove("t1", force=force)
    assert farm.asked == ("DELETE", "/v1/tasks/t1", query)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("c1", "c1"),
        ("..", "%2E%2E"),
        ("../tasks/t1", "%2E%2E%2Ftasks%2Ft1"),
        ("a?force=true", "a%3Fforce%3Dtrue"),
        ("a#b", "a%23b"),
        ("ä b", "%C3%A4%20b"),
    ],
)
def test_a_client_s_own_name_leads_to_no_other_place(name: str, path: str) -> None:
    """A client names itself: what it calls itself must not become another request of whoever removes it."""
    farm = Farm({}, 404)
    with api_of(farm) as api, pytest.raises(FarmError):
        api.remove_client(name)
    assert farm.asked == ("DELETE", f"/v1/clients/{path}", {})


def test_a_task_is_submitted_as_the_record_that_it_is() -> None:
    farm = Farm({}, 400)
    spec = make_spec()
    with api_of(farm) as api, pytest.raises(FarmUnreachable):
        api.submit(spec)
    assert type(spec).model_validate_json(farm.requests[0].content) == spec


class TestRefusals:
    """Each becomes the error of its code, in the farm's words."""

    @pytest.mark.parametrize("kind", [Conflict, NotFound, InvalidTask])
    def test_a_known_code_is_its_error(self, kind: type[FarmError]) -> None:
        with api_of(Farm(refusal(kind.code), 409)) as api, pytest.raises(kind, match="the farm's own words") as raised:
            api.tasks()
        assert type(raised.value) is kind

    def test_an_unknown_code_of_a_later_version_is_still_a_refusal(self) -> None:
        with api_of(Farm(refusal("invented_later"), 418)) as api, pytest.raises(FarmError, match="own words") as raised:
            api.tasks()
        assert type(raised.value) is FarmError

    def test_no_farm_can_say_that_it_was_not_reached(self) -> None:
        """That is what this side says: a farm that answers it is a farm that answers."""
        with api_of(Farm(refusal(FarmUnreachable.code), 400)) as api, pytest.raises(FarmError) as raised:
            api.tasks()
        assert type(raised.value) is FarmError

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_refused_token_is_told_with_the_setting_that_holds_it(self, status: int) -> None:
        with api_of(Farm(b"<html>", status)) as api, pytest.raises(Unauthorized, match="from --farm") as raised:
            api.tasks()
        assert "t0ken" not in raised.value.message

    @pytest.mark.parametrize("status", [200, 302, 404, 502])
    @pytest.mark.parametrize("body", [b"<html>a portal</html>", b"", b"[]", b'{"code": 7}', b"\xff"])
    def test_what_is_no_farm_is_told_so(self, status: int, body: bytes) -> None:
        with api_of(Farm(body, status)) as api, pytest.raises(FarmUnreachable, match=f"HTTP {status} to /v1/farm"):
            api.farm()


class TestUnreached:
    """Whatever keeps a request from its answer is one line that says what to do."""

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (httpx.ConnectError("refused"), "no farm answers at http://farm.test:8470"),
            (httpx.ConnectTimeout("slow"), "did not answer in time"),
            (httpx.ReadTimeout("slow"), "did not answer in time"),
            (httpx.ReadError("reset by peer"), "the connection to http://farm.test:8470 broke (reset by peer)"),
            (httpx.RemoteProtocolError(""), "broke (RemoteProtocolError)"),
            (httpx.TooManyRedirects("round and round"), "round and round"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_it_is_explained(self, error: Exception, words: str) -> None:
        with api_of(Farm(error)) as api, pytest.raises(FarmUnreachable) as raised:
            api.tasks()
        assert words in raised.value.message
        assert "\n" not in raised.value.message
        assert "t0ken" not in raised.value.message


class StillClock:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class TestRetryWhileAway:
    """What only reads is asked again while the farm is away; what changes something is not."""

    @pytest.fixture
    def away(self) -> Farm:
        return Farm(httpx.ConnectError("refused"))

    def test_a_change_is_asked_for_once(self, away: Farm) -> None:
        retry = RetryWhileAway(60, clock=StillClock(), from_start=True)
        with api_of(away, retry=retry) as api, pytest.raises(FarmUnreachable):
            api.act("t1", "cancel")
        assert len(away.requests) == 1

    def test_a_question_is_asked_until_the_time_is_up(self, away: Farm) -> None:
        clock = StillClock()
        with (
            api_of(away, retry=RetryWhileAway(10, clock=clock, from_start=True)) as api,
            pytest.raises(FarmUnreachable),
        ):
            api.tasks()
        assert clock.now == 10
        assert len(away.requests) == 21

    def test_a_farm_that_comes_back_answers_the_question_that_waited(self, away: Farm) -> None:
        told: list[str] = []

        class Returning(StillClock):
            def sleep(self, seconds: float) -> None:
                super().sleep(seconds)
                if self.now >= 3:
                    away.answer = [TASK]

        with api_of(away, retry=RetryWhileAway(10, told.append, Returning(), from_start=True)) as api:
            assert api.tasks() == [make_task()]
        assert len(told) == 2
        assert "waiting for it, 10 s at most" in told[0]
        assert told[1] == "the farm answers again"

    def test_a_wrong_address_is_told_at_once(self, away: Farm) -> None:
        with api_of(away, retry=RetryWhileAway(60, clock=StillClock())) as api, pytest.raises(FarmUnreachable):
            api.tasks()
        assert len(away.requests) == 1

    def test_who_was_answered_once_is_waited_for(self, away: Farm) -> None:
        clock = StillClock()
        farm = Farm([TASK])
        with api_of(farm, retry=RetryWhileAway(5, clock=clock)) as api:
            api.tasks()
            farm.answer = httpx.ConnectError("refused")
            with pytest.raises(FarmUnreachable):
                api.tasks()
        assert clock.now == 5

    def test_a_farm_that_says_it_is_unavailable_is_away_too(self) -> None:
        clock = StillClock()
        farm = Farm(refusal(Unavailable.code), 503)
        with api_of(farm, retry=RetryWhileAway(2, clock=clock, from_start=True)) as api, pytest.raises(Unavailable):
            api.tasks()
        assert clock.now == 2

    def test_a_refusal_is_an_answer(self) -> None:
        farm = Farm(refusal(NotFound.code), 404)
        with (
            api_of(farm, retry=RetryWhileAway(60, clock=StillClock(), from_start=True)) as api,
            pytest.raises(NotFound),
        ):
            api.tasks()
        assert len(farm.requests) == 1

    def test_suspended_it_asks_once_and_tells_nothing(self, away: Farm) -> None:
        told: list[str] = []
        retry = RetryWhileAway(60, told.append, StillClock(), from_start=True)
        with api_of(away, retry=retry) as api:
            with retry.suspended(), pytest.raises(FarmUnreachable):
                api.tasks()
            assert told == []
            with pytest.raises(FarmUnreachable):
                api.tasks()
        assert len(away.requests) == 1 + 121

    def test_each_absence_is_borne_anew(self) -> None:
        clock, told = StillClock(), list[str]()
        retry = RetryWhileAway(10, told.append, clock, from_start=True)
        for _ in range(3):
            retry.failed(FarmUnreachable("away"))
            clock.sleep(9)
            retry.failed(FarmUnreachable("away"))
            retry.answered()
        assert told == ["away; waiting for it, 10 s at most", "the farm answers again"] * 3


ODD_EVENT = {
    "seq": 1, "at": 1.0, "task_id": "t1", "kind": "task.failed", "message": "\x1b[2Jgone\nfake prompt $",
    "data": {"\x07": "\x9b"},
}  # fmt: skip


def test_texts_from_a_farm_do_nothing_on_a_terminal() -> None:
    with api_of(Farm([ODD_EVENT]), tidy=True) as api:
        (event,) = api.events("t1")
    ((key, value),) = event.data.items()
    for text in (event.message, key, str(value)):
        assert all(character.isprintable() for character in text)
    assert "gone" in event.message
    assert "fake prompt" in event.message


def test_for_programs_they_stay_as_they_are() -> None:
    with api_of(Farm([ODD_EVENT])) as api:
        assert api.events("t1") == [EventView.model_validate(ODD_EVENT)]


def test_a_blob_that_is_refused_is_the_farms_error_and_one_that_comes_is_raw() -> None:
    def streaming(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=iter([b"by", b"tes"]))

    with api_of(Farm(refusal(NotFound.code), 404)) as api, pytest.raises(NotFound), api.get_blob("a" * 64):
        pass
    with FarmApi(ADDRESS, httpx.MockTransport(streaming)) as api, api.get_blob("a" * 64) as chunks:
        assert b"".join(chunks) == b"bytes"


def test_a_farm_that_knows_no_links_is_an_older_one():
    with api_of(Farm(refusal(NotFound.code), 404)) as api:
        assert api.links() is None
