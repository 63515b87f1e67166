"""The status page: what it shows to whom, and what it costs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re

import pytest

from farm_server.http import page_view
from farm_server.http.page_view import shown
from protocol.resources import Gpu, Resources
from protocol.sandbox import Rung, Sandbox
from tests.farm_server import model

ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b[31mred"


@pytest.fixture(autouse=True)
def _made_anew_each_time(monkeypatch):
    monkeypatch.setattr(page_view, "_MADE_ANEW_SECONDS", 0.0)


async def test_tasks_and_clients_are_shown_to_who_has_the_farm_token(server):
    await model.submit(server.http, model.spec(name="<b>bold</b>"))
    async with server.volunteer("c1", name="a laptop", sandbox=Sandbox(rung=Rung.LANDLOCK, probes=1)):
        page = (await server.http.get("/")).text
    assert "<td>landlock</td>" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "a laptop" in page
    assert "http" not in page.split("<body>")[1], "no external assets"


@pytest.mark.parametrize("token", [None, "join", "wrong"])
async def test_who_has_no_farm_token_sees_counts_and_health_only(server, token):
    task_id = await model.submit(server.http, model.spec(name="a secret study"))
    headers = (
        {} if token is None else {"Authorization": f"Bearer {server.farm.tokens.join if token == 'join' else 'x'}"}
    )
    async with server.volunteer("c1", name="a laptop"), server.client() as http:
        page = (await http.get("/", headers=headers)).text
        for path in ("/metrics", "/healthz", "/readyz"):
            page += (await http.get(path, headers=headers)).text
    assert not [name for name in ("a secret study", "a laptop", task_id, "c1") if name in page]
    assert re.search(r"<dt>Clients online</dt><dd>1</dd>", page)
    assert re.search(r"<dt>Tasks (pending|assigned|running)</dt><dd>1</dd>", page)
    assert 'http-equiv="refresh"' not in page  # it would empty the form


async def test_the_form_takes_the_farm_token_and_remembers_it_in_a_cookie(server):
    await model.submit(server.http, model.spec(name="a secret study"))
    async with server.client() as http:
        for wrong in ("", "nonsense", server.farm.tokens.join):
            refused = await http.post("/login", data={"token": wrong})
            assert (refused.status_code, "not this farm" in refused.text) == (401, True)
        assert "a secret study" not in (await http.get("/")).text
        answer = await http.post("/login", data={"token": server.farm.tokens.farm})
        cookie = answer.headers["set-cookie"]
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert server.farm.tokens.farm not in cookie
        assert "a secret study" in (await http.get("/")).text
        assert (await http.get("/v1/tasks")).status_code == 401  # it opens the page, and nothing else
        await http.post("/logout")
        assert "a secret study" not in (await http.get("/")).text


async def test_a_browser_runs_and_loads_nothing_that_a_text_brings(server):
    answer = await server.http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert " style=" not in answer.text
    assert "<script" not in answer.text


async def test_control_characters_are_taken_out_and_texts_are_cut(server):
    await model.submit(server.http, model.spec(name=f"t{ESCAPES}"))
    gpus = (Gpu(index=0, name=ESCAPES + "g" * 60, memory_bytes=1, memory_free_bytes=1),)
    async with server.volunteer("c1", name=f"n{ESCAPES}", resources=Resources(gpus=gpus)):
        page = (await server.http.get("/")).text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert "tred" in page
    assert "nred" in page
    assert len(shown("x" * 10**6)) <= 300


async def test_the_newest_hundred_clients_are_shown(server, monkeypatch):
    monkeypatch.setattr(page_view, "_SHOWN", 3)
    for number in range(5):
        async with server.volunteer(f"gone{number}", name=f"gone{number}"):
            pass
    async with server.volunteer("here", name="here"):
        for _ in range(100):
            clients = (await server.http.get("/v1/clients")).json()
            if sum(client["state"] == "online" for client in clients) == 1:
                break
            await asyncio.sleep(0.02)
        page = (await server.http.get("/")).text
    assert re.findall(r"<strong>(here|gone\d)</strong>", page) == ["here", "gone3", "gone4"]
    assert "the newest 3 of 6" in page


async def test_it_is_made_once_a_second_for_all(server, monkeypatch):
    monkeypatch.setattr(page_view, "_MADE_ANEW_SECONDS", 1000.0)
    made = []
    render = page_view._render
    monkeypatch.setattr(page_view, "_render", lambda *given: made.append(given[0]) or render(*given))
    async with server.client() as http:
        pages = await asyncio.gather(*(http.get("/") for _ in range(20)), *(server.http.get("/") for _ in range(20)))
    assert all(page.status_code == 200 for page in pages)
    assert sorted(made) == ["guest.html", "status.html"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8470", "localhost.evil.example", "evil", ""])
async def test_a_name_that_is_not_ours_gets_nothing_without_a_token(server, host):
    async with server.client(headers={"Host": host}) as http:
        for path in ("/", "/healthz", "/metrics", "/openapi.json", "/login"):
            answer = await http.get(path)
            assert answer.status_code == 421, path
            assert "FARM_SERVER_ALLOWED_HOSTS" in answer.json()["message"]
        token = {"Authorization": f"Bearer {server.farm.tokens.farm}"}
        assert (await http.get("/v1/farm", headers=token)).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "box.localhost", "127.0.0.1", "10.1.2.3:8470", "[::1]:8470", "a.example", "b."]
)
async def test_our_own_names_are_answered(start, host):
    names = {"public_url": "https://a.example/farm", "allowed_hosts": "b, c.example"}
    async with start(**names) as server, server.client(headers={"Host": host}) as http:
        assert (await http.get("/")).status_code == 200


async def test_every_name_can_be_allowed(start):
    async with start(allowed_hosts="*") as server, server.client(headers={"Host": "any.example"}) as http:
        assert (await http.get("/")).status_code == 200
