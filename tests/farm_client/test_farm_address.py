"""One parser for a farm's address: any printable token comes out as it went in, whether encoded or pasted raw."""

from __future__ import annotations

import string
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from farm_client.agent.connection.address import parse_address as parse_join_address
from farm_client.agent.errors import BadAddress
from farm_client.farm_address import split_address
from farm_client.sdk.config import parse_address, resolve_address, save_address
from farm_client.sdk.errors import BadFarmAddress

PLACES = ["farm.example.org:8470", "127.0.0.1:1", "[::1]:8470", "host/base"]
TOKENS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)


@given(token=TOKENS, place=st.sampled_from(PLACES))
@example(token="a/b+c=d@e:f#g?h", place="host:1")
def test_a_token_may_be_encoded_or_raw(token: str, place: str) -> None:
    encoded = quote(token, safe="")
    for written in {encoded, token if "%" not in token else encoded}:
        parts = split_address(f"http://{written}@{place}")
        assert parts.token == token
        assert parts.url() == f"http://{place}"
        assert parse_address(f"http://{written}@{place}", "--farm").token == token
        assert parse_join_address(f"ws://{written}@{place}").token == token


@given(token=TOKENS)
def test_a_remembered_address_is_the_same_address(tmp_path_factory: pytest.TempPathFactory, token: str) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    save_address(f"http://{quote(token, safe='/+=@:#')}@host:1", path)
    assert resolve_address(None, {"FARM_CONFIG": str(path)}).token == token


@given(text=st.text(st.characters(codec=None) | st.sampled_from(string.punctuation + "\0\n\udc80"), max_size=30))
@example(text="http://a..b:1")
@example(text="http://[::1")
@example(text="http://h:99999")
@example(text="http://\udcff@host")
@example(text="http://%ff@host")
@example(text="http://a\nb@host")
@example(text="http://" + "a" * 70 + ".org")
def test_any_text_is_an_address_or_a_typed_error(text: str) -> None:
    for address in (text, f"http://{text}", f"http://{text}@h:1", f"http://t@{text}"):
        try:
            parse_address(address, "--farm")
        except BadFarmAddress as error:
            assert error.message.startswith("--farm: ")  # noqa: PT017
        try:
            parse_join_address(address)
        except BadAddress as error:
            assert "farm-server up" in error.message  # noqa: PT017


def test_no_message_has_the_token() -> None:
    for address in ("http://s3cret@h:port", "http://s3cret@", "http://s3cret@a..b", "ftp://s3cret@h", "ws://s3cret@h"):
        with pytest.raises(BadFarmAddress) as refused:
            parse_address(address, "--farm")
        assert "s3cret" not in refused.value.message
        assert "s3cret" not in repr(split_address("http://s3cret@h"))


@pytest.mark.parametrize("content", [b"farm = 3", b"farm = ", b"\xff", b"a = " + b"[" * 10_000])
def test_a_broken_config_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(BadFarmAddress, match=r"config\.toml"):
        resolve_address(None, {"FARM_CONFIG": str(path)})


def test_a_folder_is_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(BadFarmAddress, match="directory"):
        resolve_address(None, {"FARM_CONFIG": str(tmp_path)})
