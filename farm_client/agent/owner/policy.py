"""What the owner has set, kept in ``HOME/policy.json``: whole after a power cut, never guessed when it is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator

from farm_client.agent.errors import BadSettings, DamagedPolicy
from farm_client.agent.owner.hours import Hours, parse_hours
from farm_client.agent.owner.limits import OwnerLimits
from farm_client.durable_file import write_durably
from protocol.assignments import Kind
from protocol.topics import Topics
from protocol.wanted_work import WantedWork

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
_MOST_NAMES: Final = 64
_MOST_BYTES: Final = 1024 * 1024
"""Of the file; a real one has a few hundred."""


class OwnerPolicy(OwnerLimits):
    """Everything an owner may set, live; the defaults allow everything but to drain a battery.

    A field that is not known is an error: it may be a limit that a newer version wrote.
    """

    hours: str = Field(default="", max_length=1000)
    """When to work, as ``hours.parse_hours`` reads it; empty: always."""
    only_idle: bool = False
    """Work only while nobody uses the machine."""
    idle_seconds: float = Field(default=300.0, ge=1, le=86_400)
    """How long without keyboard and mouse is idle."""
    idle_load: float = Field(default=0.25, gt=0, le=1)
    """The share of the processor that other programs may use on an idle machine."""
    on_battery: bool = False
    """Work on while the machine runs on its battery."""
    pause_while: tuple[Name, ...] = Field(default=(), max_length=_MOST_NAMES)
    """Programs, by the name of their process, while which nothing is done."""
    work_for: tuple[Name, ...] = Field(default=(), max_length=_MOST_NAMES)
    """Submitters to work for; empty: all."""
    kinds: tuple[Kind, ...] = Field(default=(), max_length=_MOST_NAMES)
    """Kinds of work to do; empty: all."""
    topics: Topics = ()
    """Only tasks about one of these; empty: all."""
    not_topics: Topics = ()
    """No task about one of these."""
    allow_installs: bool = False
    """Whether the packages that tasks name may be installed."""
    paused: bool = False
    """Whether the owner paused the machine; it outlives a restart."""
    paused_until: float | None = None
    """Unix seconds at which that pause ends by itself; None: not before `farm-client resume`."""

    @field_validator("hours")
    @classmethod
    def _can_be_read(cls, text: str) -> str:
        parse_hours(text)
        return " ".join(text.split())

    @field_validator("not_topics")
    @classmethod
    def _not_both(cls, unwanted: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if both := sorted(set(unwanted) & set(info.data.get("topics", ()))):
            raise ValueError(f"{both[0]} is among the topics to work for as well")
        return unwanted

    @property
    def wanted(self) -> WantedWork:
        """Which work to do, as the farm is told."""
        return WantedWork(kinds=self.kinds, topics=self.topics, not_topics=self.not_topics)

    @property
    def working_hours(self) -> Hours:
        """The hours, read."""
        return parse_hours(self.hours)

    def changed(self, changes: Mapping[str, Any]) -> OwnerPolicy:
        """Return the policy with some fields set anew. Raises: BadSettings naming the field that is wrong, and why."""
        try:
            return OwnerPolicy.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise BadSettings(_first_of(error)) from None


def load_policy(path: Path) -> OwnerPolicy:
    """Read the policy; that of an owner who never set one if there is no file.

    Raises: DamagedPolicy if there is one that cannot be read: what it forbids is not known then.
    """
    try:
        with path.open("rb") as file:
            return OwnerPolicy.model_validate_json(file.read(_MOST_BYTES))
    except FileNotFoundError:
        return OwnerPolicy()
    except ValidationError as error:
        raise DamagedPolicy(_damaged(path, _first_of(error))) from None
    except OSError as error:
        raise DamagedPolicy(_damaged(path, str(error.strerror))) from None


def save_policy(path: Path, policy: OwnerPolicy) -> None:
    """Write the policy, readable by its owner alone. Raises: OSError, and the file is what it was."""
    write_durably(path, policy.model_dump_json(indent=1))


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the policy"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _damaged(path: Path, why: str) -> str:
    return (
        f"what this machine's owner allows cannot be read from {path} ({why}); mend it, or delete it and set it again "
        "with `farm-client set`"
    )
