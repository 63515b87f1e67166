"""The types of everything that comes from outside: numbers finite and in range, texts and lists bounded.

A bare ``int``, ``float`` or ``str`` takes 10**400, NaN and a lone surrogate; then whoever computes with it, writes it
to the ledger or says it in JSON fails in its place. So no message, and no submission, has a bare one.

Identities and numbers out of bounds are refused. A text that is only for people is cut instead, and what no encoding
can write is replaced: nobody is thrown out of a farm because a traceback is long. The same types make the messages
that are sent, so that a sender cuts as a receiver does.

``docs/protocol.md`` calls the types by the names that they have here in quotes; a test compares it with them.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

MAX_COUNT: Final = 2**53
"""Each whole number up to here is a float64 too."""
MAX_BYTES: Final = 2**60
"""1 EiB: a few of them add up to less than 2**63."""
MAX_SECONDS: Final = 1e9
"""Thirty years."""
MIN_RATE: Final = 1e-6
MAX_RATE: Final = 1e12
MAX_CONFIG_DEPTH: Final = 64
"""Lists and maps inside each other."""
MAX_TAGS: Final = 32
MAX_METRICS: Final = 100
MAX_STAGES: Final = 32
MAX_SHARDS: Final = 2**18


def _range(name: str, low: float, high: float) -> Any:  # what pydantic's Field returns
    return Field(ge=low, le=high, allow_inf_nan=False, json_schema_extra={"bound": name})


def _whole(name: str, low: int, high: int) -> Any:
    """A range of whole numbers, which are finite: to look at that would be a call of Python for each of them."""
    return Field(ge=low, le=high, json_schema_extra={"bound": name})


def _named(name: str, low: int, high: int) -> Any:
    return Field(min_length=low, max_length=high, json_schema_extra={"bound": name})


Int64 = Annotated[int, _whole("int64", -(2**63), 2**63 - 1)]
Natural = Annotated[int, _whole("natural", 0, 2**63 - 1)]
"""A fence or an incarnation: compared, never computed with."""
Count = Annotated[int, _whole("count", 0, MAX_COUNT)]
"""Of samples, rounds, epochs, waits: what is computed with."""
Positive = Annotated[int, _whole("positive", 1, MAX_COUNT)]
Bytes = Annotated[int, _whole("size", 0, MAX_BYTES)]
Cores = Annotated[int, _whole("cores", 1, 2**20)]
Clients = Annotated[int, _whole("clients", 1, 10**6)]
Version = Annotated[int, _whole("version", 0, 2**16)]
FrameBytes = Annotated[int, _whole("frame bytes", 128, 2**31 - 1)]

Finite = Annotated[float, Field(allow_inf_nan=False, json_schema_extra={"bound": "finite"})]
Seconds = Annotated[float, _range("seconds", 0, MAX_SECONDS)]
Interval = Annotated[float, _range("interval", 1e-3, MAX_SECONDS)]
Epochs = Annotated[float, _range("epochs", 1e-9, 1e9)]
Threshold = Annotated[float, _range("threshold", 1e-12, 1e12)]
"""What a gradient is clipped to."""
Mu = Annotated[float, _range("mu", 0, 1e12)]
"""How strongly a proximal term pulls; 0 is not at all."""
Share = Annotated[float, _range("share", 0, 1)]
StepsOrShare = Annotated[float, _range("steps or share", 0, 1e9)]
"""So many global steps; below 1 a share of the task's."""
Power = Annotated[float, _range("power", 1e-3, 1e3)]
Rate = Annotated[float, _range("rate", 0, MAX_RATE), AfterValidator(lambda value: value if value >= MIN_RATE else 0.0)]
"""So many in a second; less than ``MIN_RATE`` was not measured, and is 0 as any rate that is not known."""
Measured = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    Field(json_schema_extra={"bound": "measured"}),
]
"""What training measured: NaN and the infinities are news of it. JSON's null, as older farms wrote them, is NaN."""


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    return text


Id = Annotated[str, _named("id", 1, 64), AfterValidator(_without_nul)]
Secret = Annotated[str, _named("secret", 16, 128)]
Word = Annotated[str, _named("word", 0, 100), AfterValidator(_without_nul)]
"""A tag, a codec, a client's name, an option."""
Title = Annotated[str, _named("title", 1, 200), AfterValidator(_without_nul)]
FilePath = Annotated[str, _named("path", 1, 1000), AfterValidator(_without_nul)]
TensorName = Annotated[str, _named("tensor name", 0, 4000)]


def writable(text: str) -> str:
    """Return the text with ``?`` for each lone surrogate, which no encoding can write."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _shown(name: str, most: int) -> tuple[AfterValidator, Any]:
    return AfterValidator(lambda text: writable(text[:most])), Field(json_schema_extra={"bound": name})


MAX_CODE_CHARS: Final = 64
MAX_LABEL_CHARS: Final = 100
MAX_TEXT_CHARS: Final = 2000
MAX_MESSAGE_CHARS: Final = 4000
MAX_TRACEBACK_CHARS: Final = 20_000

Code = Annotated[str, *_shown("code", MAX_CODE_CHARS)]
Label = Annotated[str, *_shown("label", MAX_LABEL_CHARS)]
"""A name for people: of a machine, a device, a metric."""
Text = Annotated[str, *_shown("text", MAX_TEXT_CHARS)]
"""A line or two: a log line, a reason."""
LongText = Annotated[str, *_shown("long text", MAX_MESSAGE_CHARS)]
Traceback = Annotated[
    str,
    AfterValidator(lambda text: writable(text[-MAX_TRACEBACK_CHARS:])),
    Field(json_schema_extra={"bound": "traceback"}),
]
"""Its end is kept: the error stands there."""


Metrics = Annotated[dict[Label, Measured], Field(max_length=MAX_METRICS, json_schema_extra={"bound": "metrics"})]
StageSeconds = Annotated[
    dict[Label, Seconds], Field(max_length=MAX_STAGES, json_schema_extra={"bound": "stage seconds"})
]
"""How long something took, by ``protocol.assignments.WorkStage``; a newer peer may know more of them."""


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Check that a config can be packed, written as JSON and read again. Raises: ValueError naming the place."""
    level: list[tuple[str, object]] = [("config", config)]
    for _ in range(MAX_CONFIG_DEPTH + 1):  # the last level holds no lists and maps
        level = [inner for where, value in level for inner in _inside(where, value)]
    if level:
        raise ValueError(f"over {MAX_CONFIG_DEPTH} lists and maps are inside each other")
    return config


def _inside(where: str, value: object) -> list[tuple[str, object]]:
    """Check one value, and return those inside it, each with where it is."""
    if isinstance(value, dict):
        for key in value:
            _check_text(f"a key of {where}", key)
        return [(f"{where}.{key}"[:100], inner) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [(f"{where}[{i}]"[:100], inner) for i, inner in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot say; write it as text")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{where} is a whole number of over 64 bits; write it as text")
    elif value is not None:
        _check_text(where, value)
    return []


def _check_text(where: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{where} is a {type(value).__name__}; use numbers, text, lists and maps")  # noqa: TRY004
    if writable(value) != value:
        raise ValueError(f"{where} holds a lone surrogate, which no encoding can write")


Config = Annotated[dict[str, Any], AfterValidator(_plain), Field(json_schema_extra={"bound": "config"})]
