import re
from pathlib import Path

import pytest

from farm_client.agent.errors import BadSettings
from farm_client.agent.settings import ENV_PREFIX, AgentSettings, load_settings

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "client-settings.md"


def test_the_reference_page_lists_every_setting_as_it_is():
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\| `(\w+)` \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    fields = AgentSettings.model_fields
    assert [row[0] for row in rows] == list(fields)
    for name, _, variable, _, meaning in rows:
        assert variable == ENV_PREFIX + name.upper()
        assert meaning == fields[name].description


def test_an_option_wins_over_its_variable(monkeypatch):
    monkeypatch.setenv("FARM_CLIENT_SLOTS", "3")
    assert load_settings().slots == 3
    assert load_settings(slots=2).slots == 2


def test_sizes_and_tags_are_read_as_people_write_them(monkeypatch):
    monkeypatch.setenv("FARM_CLIENT_TAGS", "lab, fast")
    monkeypatch.setenv("FARM_CLIENT_DOWNLOAD_RATE", "10MB")
    settings = load_settings(max_ram="2GiB", cache_bytes="5MB", upload_rate="512KiB")
    assert (settings.upload_rate, settings.download_rate) == (512 * 1024, 10_000_000)
    assert (settings.max_ram, settings.cache_bytes, settings.tags) == (2 * 1024**3, 5_000_000, ("lab", "fast"))


@pytest.mark.parametrize(("given", "processes"), [("2", 2), ("gpus", "gpus"), (None, 1)])
def test_processes_are_a_number_or_as_many_as_gpus(given, processes):
    assert load_settings(processes=given).processes == processes


@pytest.mark.parametrize(
    "given",
    [
        {"slots": 0},
        {"processes": "0"},
        {"processes": "many"},
        {"cpu_cores": -1},
        {"max_ram": "lots"},
        {"log_format": "xml"},
    ],
)
def test_a_wrong_value_is_named_with_its_option_and_variable(given):
    (name,) = given
    with pytest.raises(BadSettings, match=f"--{name.replace('_', '-')} .*FARM_CLIENT_{name.upper()}"):
        load_settings(**given)


@pytest.mark.parametrize("size", ["lots", "5parsecs"])
def test_a_size_that_is_none_says_how_to_write_one(size):
    with pytest.raises(BadSettings, match="write a size as 8GB or 512MiB, not "):
        load_settings(max_ram=size)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"allow_unsandboxed": True}, "name them with --for NAME"),
        ({"sandbox": "none"}, "needs --allow-unsandboxed"),
        ({"sandbox": "none", "work_for": ("alice",)}, "needs --allow-unsandboxed"),
        ({"sandbox": "steel"}, "--sandbox .*FARM_CLIENT_SANDBOX"),
    ],
)
def test_work_without_a_sandbox_is_typed_out_and_for_somebody(given, words):
    with pytest.raises(BadSettings, match=words):
        load_settings(**given)


def test_submitters_come_from_the_variable_separated_by_commas(monkeypatch):
    monkeypatch.setenv("FARM_CLIENT_WORK_FOR", "alice, bob@lab")
    assert load_settings().work_for == ("alice", "bob@lab")
