"""Proxies of the environment: honoured for the world, never for this machine, and said so where they cannot be used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.proxy import parse_proxy

from farm_client.proxies import BadProxy, is_loopback, is_spared, proxy_for, way_to

WORLD = ("http://farm.example:8470", "https://farm.example", "ws://farm.example:8470", "wss://farm.example")
HERE = (
    "127.0.0.1",
    "127.9.9.9",
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "0.0.0.0",
    "127.1",
)


@pytest.mark.parametrize("scheme", ["http", "https", "ws", "wss"])
@pytest.mark.parametrize("host", HERE)
@pytest.mark.parametrize(
    "proxies", [{"http": "http://p:1", "https": "http://p:1", "all": "ftp://nonsense"}, {"socks": "p"}]
)
def test_this_machine_is_never_asked_for_through_a_proxy_however_odd_it_is(scheme, host, proxies):
    assert proxy_for(f"{scheme}://{host}:8470/v1/farm", proxies) is None


@pytest.mark.parametrize(
    "host", ["farm.example", "10.0.0.1", "128.0.0.1", "localhost.example", "[2001:db8::1]", "1.example"]
)
def test_the_world_is_not_this_machine(host):
    assert not is_loopback(host.strip("[]"))


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [
        ({"http": "http://h:1", "https": "http://s:2"}, ("http://h:1", "http://s:2") * 2),
        ({"http": "h:1"}, ("http://h:1", None) * 2),
        ({"https": "https://s"}, (None, "https://s:443") * 2),
        ({"all": "socks5://a"}, ("socks5://a:1080",) * 4),
        ({"all": "socks://a:9/"}, ("socks5h://a:9",) * 4),
        ({"socks": "http://a:9", "all": "http://b:1"}, ("socks5h://a:9",) * 4),
        ({"all": "HTTP://u@[2001:db8::7]:3128/"}, ("http://u:@[2001:db8::7]:3128",) * 4),
        ({"all": " http://u:p%40ss@p:3128 "}, ("http://u:p%40ss@p:3128",) * 4),
        ({"all": "  ", "http": ""}, (None,) * 4),
        ({}, (None,) * 4),
    ],
)
def test_each_scheme_has_its_variable_and_all_have_one(proxies, expected):
    assert tuple(proxy_for(url, proxies) for url in WORLD) == expected


@pytest.mark.parametrize(
    ("spared", "host", "is_named"),
    [
        ("farm.example", "farm.example", True),
        ("example", "farm.example", True),
        (".example", "farm.example", True),
        ("*.example", "farm.example", True),
        ("arm.example", "farm.example", False),
        ("other, FARM.example", "farm.example", True),
        ("other FARM.example.", "farm.example", True),
        ("farm.example:8470", "farm.example", True),
        ("farm.example:80", "farm.example", False),
        ("*", "farm.example", True),
        ("a,*", "farm.example", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:8470", "10.1.2.3", True),
        ("[2001:db8::1]:8470", "2001:db8::1", True),
        ("2001:db8::/32", "2001:db8::1", True),
        ("example", "10.1.2.3", False),
        (" , ., ,", "farm.example", False),
        ("", "farm.example", False),
    ],
)
def test_a_list_spares_hosts_domains_and_networks(spared, host, is_named):
    assert is_spared(host, 8470, spared) == is_named


@pytest.mark.parametrize(
    "value",
    ["ftp://p:1", "socks4://p:1", "http://", "http://p:port", "http://p:99999", "http://p p:1", "http://pröxy:1", "://",
     "http://u:%ff@p:1", "http://[::1", "http://u\x1b:x@p", "p:1:2"],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named_and_not_shown(value):
    with pytest.raises(BadProxy, match="HTTPS_PROXY") as told:
        proxy_for("wss://farm.example", {"https": value})
    assert "http://HOST:PORT" in told.value.message
    assert told.value.message.isprintable()


def test_a_password_is_in_no_message():
    with pytest.raises(BadProxy) as told:
        proxy_for("https://farm.example", {"https": "quic://user:secret@proxy:1"})
    assert "secret" not in told.value.message


@given(st.text(), st.text())
def test_no_value_is_too_odd(value, spared):
    try:
        proxy = proxy_for("https://farm.example", {"all": value, "no": spared})
    except BadProxy:
        return
    if proxy is not None:
        parse_proxy(proxy)  # websockets is the strictest of those that use it


@pytest.mark.parametrize("lower", [False, True])
def test_the_environment_is_read_in_both_cases(monkeypatch, lower):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    name = "all_proxy" if lower else "ALL_PROXY"
    monkeypatch.setenv(name, "http://p:1")
    assert proxy_for("ws://farm.example") == "http://p:1"
    monkeypatch.setenv("no_proxy" if lower else "NO_PROXY", "example")
    assert proxy_for("ws://farm.example") is None


def test_a_proxy_is_named_in_a_sentence_without_its_password(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert way_to("ws://farm.example") == ""
    monkeypatch.setenv("ALL_PROXY", "http://user:secret@proxy:3128")
    assert way_to("ws://farm.example") == " through the proxy proxy:3128"
    assert way_to("ws://127.0.0.1:1") == ""
