"""Which farm a command talks to: the option, the variable, the file; and what is said of one that cannot be it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.sdk.config import FarmAddress, config_path, parse_address, resolve_address, save_address
from farm_client.sdk.errors import BadFarmAddress, NoFarmAddress


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"FARM_CONFIG": str(tmp_path / "aifarm" / "config.toml")}


class TestWhichFarm:
    """The nearest word counts."""

    def test_the_option_before_the_variable_before_the_file(self, environ: dict[str, str]) -> None:
        save_address("http://file:1", config_path(environ))
        assert resolve_address(None, environ).url == "http://file:1"
        environ["FARM_URL"] = "http://variable:2"
        assert resolve_address(None, environ).url == "http://variable:2"
        assert resolve_address("http://option:3", environ).url == "http://option:3"

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_an_empty_word_is_none(self, environ: dict[str, str], nothing: str | None) -> None:
        environ["FARM_URL"] = ""
        with pytest.raises(NoFarmAddress, match="farm login"):
            resolve_address(nothing, environ)

    def test_each_says_where_it_came_from(self, environ: dict[str, str]) -> None:
        assert resolve_address("http://a", environ).source == "--farm"
        assert resolve_address(None, environ | {"FARM_URL": "http://a"}).source == "FARM_URL"
        save_address("http://a", config_path(environ))
        assert resolve_address(None, environ).source == environ["FARM_CONFIG"]

    def test_without_a_word_the_file_is_where_the_system_keeps_such(self) -> None:
        assert config_path({}).parts[-2:] == ("aifarm", "config.toml")
        assert config_path({"FARM_CONFIG": ""}) == config_path({})


class TestAddress:
    """``http://TOKEN@host:port``, its token kept apart."""

    @pytest.mark.parametrize(
        ("text", "url", "token"),
        [
            ("http://t0ken@farm.example.org:8470", "http://farm.example.org:8470", "t0ken"),
            ("https://t0ken@farm.example.org/", "https://farm.example.org", "t0ken"),
            ("http://127.0.0.1:8470", "http://127.0.0.1:8470", None),
            ("http://[::1]:8470/", "http://[::1]:8470", None),
            ("  http://t@host:1 \n", "http://host:1", "t"),
        ],
    )
    def test_its_parts(self, text: str, url: str, token: str | None) -> None:
        address = parse_address(text, "--farm")
        assert (address.url, address.token) == (url, token)
        assert address.headers == ({"Authorization": f"Bearer {token}"} if token else {})

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("ws://t@host:8470", "volunteers join with; the farm CLI needs the http://"),
            ("wss://t@host:8470", "the farm CLI needs the https://"),
            ("ftp://host", "looks like http://TOKEN@host:8470"),
            ("host:8470", "http://TOKEN@host:8470"),
            ("http://", "http://TOKEN@host:8470"),
            ("http://host:99999", "http://TOKEN@host:8470"),
            ("http://host:port", "http://TOKEN@host:8470"),
        ],
    )
    def test_another_one_is_refused_with_its_setting_and_an_example(self, text: str, words: str) -> None:
        with pytest.raises(BadFarmAddress) as refused:
            parse_address(text, "FARM_URL")
        assert refused.value.message.startswith("FARM_URL: ")
        assert words in refused.value.message

    @given(st.text(max_size=40))
    def test_any_text_is_an_address_or_refused_in_a_line(self, text: str) -> None:
        refusal, url = "", ""
        try:
            url = parse_address(text, "--farm").url
        except BadFarmAddress as error:
            refusal = error.message
        assert url.startswith(("http://", "https://")) != refusal.startswith("--farm: ")

    @pytest.mark.parametrize(
        ("host", "here"), [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("10.0.0.1", False)]
    )
    def test_whether_it_is_this_machine(self, host: str, here: bool) -> None:
        assert FarmAddress(f"http://{host}:8470", None, "--farm").is_loopback is here


class TestFile:
    """What ``farm login`` wrote, or a person."""

    def test_nobody_else_may_read_the_token_even_where_the_file_was_open(self, environ: dict[str, str]) -> None:
        path = config_path(environ)
        path.parent.mkdir()
        path.touch(mode=0o644)
        path.chmod(0o644)
        save_address("http://t0ken@host:8470", path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("token", ["t0ken", 'quo"te', "back\\slash", "tökén", "per%40cent"])
    def test_whatever_the_token_it_is_read_as_it_was_given(self, environ: dict[str, str], token: str) -> None:
        given_text = f"http://{token}@host:8470"
        try:
            saved = save_address(given_text, config_path(environ))
        except BadFarmAddress:
            assert not config_path(environ).exists()  # refused before anything is written
        else:
            read = resolve_address(None, environ)
            assert (read.url, read.token) == (saved.url, saved.token)

    def test_a_refused_address_leaves_the_old_one(self, environ: dict[str, str]) -> None:
        save_address("http://good:1", config_path(environ))
        with pytest.raises(BadFarmAddress, match="farm login"):
            save_address("ws://bad:2", config_path(environ))
        assert resolve_address(None, environ).url == "http://good:1"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_text("farm = "),
            lambda path: path.write_bytes(b"farm = '\xff'"),
            lambda path: path.write_text("farm = " + "[" * 5000),
            lambda path: path.mkdir(),
        ],
        ids=["torn", "no text", "nested", "a folder"],
    )
    def test_a_damaged_one_is_told_with_the_way_out(
        self, environ: dict[str, str], damage: Callable[[Path], object]
    ) -> None:
        path = config_path(environ)
        path.parent.mkdir()
        damage(path)
        with pytest.raises(BadFarmAddress, match=r"run `farm login URL` to write it anew, or give --farm URL"):
            resolve_address(None, environ)

    @pytest.mark.parametrize("value", ["7", "['http://a']", "true"])
    def test_a_farm_that_is_no_text_is_told(self, environ: dict[str, str], value: str) -> None:
        path = config_path(environ)
        path.parent.mkdir()
        path.write_text(f"farm = {value}")
        with pytest.raises(BadFarmAddress, match='write farm = "http'):
            resolve_address(None, environ)

    def test_one_without_a_farm_names_none(self, environ: dict[str, str]) -> None:
        path = config_path(environ)
        path.parent.mkdir()
        path.write_text("[other]\nfarm = 'http://x'\n")
        with pytest.raises(NoFarmAddress):
            resolve_address(None, environ)
