import pytest

from farm_client.agent.connection.address import parse_address
from farm_client.agent.errors import BadAddress


@pytest.mark.parametrize(
    ("url", "websocket_url", "http_url"),
    [
        ("ws://tok@127.0.0.1:8470", "ws://127.0.0.1:8470/v1/farm", "http://127.0.0.1:8470"),
        ("wss://tok@farm.example.org", "wss://farm.example.org/v1/farm", "https://farm.example.org"),
        ("https://tok@host/base/", "wss://host/base/v1/farm", "https://host/base"),
        ("ws://tok@[::1]:1/v1/farm", "ws://[::1]:1/v1/farm", "http://[::1]:1"),
    ],
)
def test_an_address_names_both_doors(url, websocket_url, http_url):
    address = parse_address(url)
    assert (address.websocket_url, address.http_url) == (websocket_url, http_url)
    assert address.headers == {"Authorization": "Bearer tok"}


def test_the_token_is_never_shown():
    address = parse_address("ws://s%3Acret@host:1")
    assert address.token == "s:cret"
    assert "cret" not in address.shown + repr(address)


UNUSABLE = [
    "ws://a..b",
    f"ws://{'x' * 64}.example",
    "ws://tok%0D%0AX-Header%3A1@host",
    "ws://%00@host",
]
"""Their host has no form in the DNS, or their token none in a header."""


@pytest.mark.parametrize("url", ["", "farm", "ftp://host", "ws://", "ws://host:port", "ws://host:99999", *UNUSABLE])
def test_a_wrong_address_says_what_to_paste(url):
    with pytest.raises(BadAddress, match="farm-server up"):
        parse_address(url)
