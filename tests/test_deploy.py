"""deploy/ fits what exists: its files parse, and every command and setting in them is a real one."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import typer.main
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
FILES = [*UNITS, *DOCKERFILES, DEPLOY / "compose.yaml", DEPLOY / "README.md"]


def unit(path):
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def known_settings():
    from farm_client.agent.settings import ENV_PREFIX, AgentSettings
    from farm_server.environment.settings import ServerSettings

    server = {f"FARM_SERVER_{name}".upper() for name in ServerSettings.model_fields}
    return server | {f"{ENV_PREFIX}{name}".upper() for name in AgentSettings.model_fields}


def verbs(program):
    if program == "farm-server":
        from farm_server.cli import app
    else:
        from farm_client.agent.cli import app
    return set(typer.main.get_group(app).commands)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_settings_exist(path):
    used = set(re.findall(r"\bFARM_(?:SERVER|CLIENT)_[A-Z_]+", path.read_text(encoding="utf-8")))
    assert used <= known_settings()


def test_compose_has_a_server_and_two_clients():
    services = COMPOSE["services"]
    assert set(services) == {"server", "client-1", "client-2"}
    assert services["server"]["healthcheck"]["test"][0] == "CMD"
    assert services["server"]["volumes"] == ["server-data:/data"]
    for name in ("client-1", "client-2"):
        assert services[name]["depends_on"]["server"]["condition"] == "service_healthy"
        assert services[name]["command"][0] in verbs("farm-client")


def test_compose_names_only_what_it_declares():
    for service in COMPOSE["services"].values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert {v.split(":")[0] for v in service["volumes"]} <= set(COMPOSE["volumes"])
        dockerfile = service["build"]["dockerfile"]
        assert (DEPLOY.parent / dockerfile).is_file()


def test_each_client_has_a_home_of_its_own():
    homes = [COMPOSE["services"][name]["volumes"][0] for name in ("client-1", "client-2")]
    assert len({home.split(":")[0] for home in homes}) == 2


def test_containers_give_up_their_rights():
    for service in COMPOSE["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_compose_asks_only_for_variables_that_the_example_explains():
    asked = set(re.findall(r"\$\{([A-Z_]+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    explained = set(re.findall(r"^#?([A-Z_]+)=", (DEPLOY / "example.env").read_text(encoding="utf-8"), re.MULTILINE))
    assert asked == explained


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_images_run_a_real_command_without_root(path):
    text = path.read_text(encoding="utf-8")
    final = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER (?!root)\w+$", final, re.MULTILINE)
    program = re.search(r'^ENTRYPOINT \["([^"]+)"\]$', final, re.MULTILINE).group(1)
    command = re.search(r'^CMD \["([^"]+)"\]$', final, re.MULTILINE).group(1)
    assert command in verbs(program) | {"--help"}


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_units_start_a_real_command_with_few_rights(path):
    service = unit(path)["Service"]
    program, verb = service["ExecStart"].split()[:2]
    assert verb in verbs(Path(program).name)
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert unit(path)["Install"]["WantedBy"] == "multi-user.target"


def test_the_client_is_given_more_time_than_its_drain_takes():
    from farm_client.agent.settings import AgentSettings

    drain_seconds = AgentSettings.model_fields["drain_seconds"].default
    assert int(unit(DEPLOY / "systemd/farm-client.service")["Service"]["TimeoutStopSec"]) > drain_seconds
    grace = COMPOSE["services"]["client-1"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > drain_seconds
