"""The agent's settings: command line over ``FARM_CLIENT_*`` variables over defaults, resolved here and nowhere else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from platformdirs import user_data_path
from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from farm_client.agent.errors import BadSettings
from protocol.sandbox import Rung

ENV_PREFIX: Final = "FARM_CLIENT_"


def default_home() -> Path:
    """Return the folder that an agent uses when none is named."""
    return user_data_path("aifarm", appauthor=False) / "client"


class AgentSettings(BaseSettings):
    """Everything a volunteer may set. Sizes are bytes and accept ``8GB`` or ``512MiB``; times are seconds."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    home: Path = Field(default_factory=default_home, description="Folder of the identity, the cache and scratch files.")
    token_file: Path | None = Field(
        default=None, description="File with the join token alone, for an address without one; only you may read it."
    )
    name: str = Field(
        default_factory=socket.gethostname, max_length=100, description="How people see this machine; not unique."
    )
    tags: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=32, description="Labels that a task may ask for; separated by commas in the variable."
    )
    team: str = Field(
        default="", max_length=100, description="A team that the work of this machine is credited to as well."
    )
    cpu_cores: int | None = Field(default=None, ge=1, description="CPU cores to lend; unset lends all.")
    max_ram: ByteSize | None = Field(default=None, gt=0, description="Memory to lend, in bytes; unset lends all.")
    cache_bytes: ByteSize = Field(
        default=ByteSize(20 * 1024**3), gt=0, description="Largest size of the cache of shards and weights."
    )
    share: bool = Field(
        default=True,
        description="Link blobs that the agent in host_home has, and lend to others; else copies of this agent's own.",
    )
    host_home: Path = Field(
        default_factory=default_home,
        description="Home of the agent whose blobs the others of this machine link: see ADR 86.",
    )
    outbox_bytes: ByteSize = Field(
        default=ByteSize(10 * 1024**3), gt=0, description="Largest size of the finished updates that wait for the farm."
    )
    upload_rate: ByteSize | None = Field(
        default=None, gt=0, description="The most bytes to send in a second, all transfers together; unset: no limit."
    )
    download_rate: ByteSize | None = Field(
        default=None, gt=0, description="The most bytes to fetch in a second, all transfers together; unset: no limit."
    )
    sandbox: Rung = Field(
        default=Rung.CONTAINER,
        description="The least sandbox to run tasks in: strict, landlock or container; the best that holds is used. "
        "none tries no sandbox, and needs allow_unsandboxed.",
    )
    allow_unsandboxed: bool = Field(
        default=False,
        description="Run tasks without a sandbox where none holds, for the submitters in work_for alone.",
    )
    work_for: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=64, description="Submitters to work for, by name; unset works for all. See sandbox.md."
    )
    allow_installs: bool | None = Field(
        default=None,
        description="Install the packages that tasks name: wheels, by hash, in folders of their own. Sets the policy.",
    )
    environment_bytes: ByteSize = Field(
        default=ByteSize(10 * 1024**3), gt=0, description="Largest size of the packages that were installed for tasks."
    )
    install_seconds: float = Field(
        default=1800.0, gt=0, description="How long the installation of one task's packages may take."
    )
    package_index: str | None = Field(
        default=None,
        max_length=1000,
        description="The index to install packages from; unset: PIP_INDEX_URL, or what uv's own variables say.",
    )
    processes: Annotated[int, Field(ge=1, le=64)] | Literal["gpus"] = Field(
        default=1,
        description="Processes that share out each assignment, at most one for each GPU lent; gpus: as many as those.",
    )
    shard: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Have these processes hold each model in parts (FSDP2); auto: one too large for a device.",
    )
    slots: int = Field(default=1, ge=1, le=64, description="Assignments to work on at the same time.")
    drain_seconds: float = Field(
        default=20.0, ge=0, description="After Ctrl-C, how long running work may take to finish."
    )
    idle_executor_seconds: float = Field(
        default=300.0, gt=0, description="An executor without work for so long is stopped, and lets its GPU go."
    )
    warm_executors: int = Field(
        default=16,
        ge=1,
        description="The most tasks to stay warm for. More than slots + 1 only while an eighth of the memory is free.",
    )
    spare_executor: bool = Field(
        default=True,
        description="Keep a warm executor beside those at work, where memory is plenty: it replaces one that dies.",
    )
    give_up_seconds: float | None = Field(
        default=None, gt=0, description="Exit when the farm was out of reach for so long; unset waits for ever."
    )
    self_test_file: Path | None = Field(
        default=None,
        description="Where a passed self-test is remembered; unset: in the home. Agents of one machine may share it.",
    )
    log_format: Literal["lines", "json"] = Field(
        default="lines", description="What the agent says on stderr: lines for people, or JSON for programs."
    )

    @field_validator("tags", "work_for", mode="before")
    @classmethod
    def _split_tags(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(tag.strip() for tag in value.split(",") if tag.strip())
        return value

    @model_validator(mode="after")
    def _only_for_named(self) -> Self:
        if self.sandbox is Rung.NONE and not self.allow_unsandboxed:
            raise ValueError("--sandbox none runs strangers' code with all your rights; it needs --allow-unsandboxed")
        if self.allow_unsandboxed and not self.work_for:
            raise ValueError(
                "--allow-unsandboxed needs to know whose tasks may run with all your rights: name them with --for NAME"
            )
        return self


def load_settings(**given: Any) -> AgentSettings:
    """Resolve the settings; an option that is None or empty was not given.

    Raises: BadSettings naming the first setting that is wrong, and why.
    """
    try:
        return AgentSettings(**{name: value for name, value in given.items() if value not in (None, ())})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            raise BadSettings(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0]) if first["loc"] else "settings"
        expected = "write a size as 8GB or 512MiB" if first["type"].startswith("byte_size") else first["msg"]
        raise BadSettings(
            f"--{name.replace('_', '-')} (or {ENV_PREFIX}{name.upper()}): {expected}, not {first['input']!r}"
        ) from None
