"""The limits among the options of `farm-client set`, and how their words are read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from farm_client.agent.errors import BadSettings
from farm_client.agent.machine.accelerators import Accelerators
from farm_client.agent.owner.limits import OwnerLimits

_NONE: Final = "none"
"""What takes a limit back."""
_ALL: Final = "all"
_SIZE: Final = TypeAdapter(ByteSize)
_SHARES: Final = frozenset({"cpu_share", "duty", "vram_share"})
_NUMBERS: Final = {"power_watts": "W", "target_celsius": "C"}
_OPTIONS: Final = {
    "idle_seconds": "--idle-after",
    "work_for": "--for",
    "kinds": "--kind",
    "topics": "--topic",
    "not_topics": "--not-topic",
    "cpu_share": "--cpu",
    "duty": "--duty",
    "gpus": "--gpus",
    "vram_share": "--vram",
    "power_watts": "--gpu-power",
    "target_celsius": "--gpu-temperature",
    "max_ram_bytes": "--max-ram",
    "max_cache_bytes": "--cache-bytes",
    "max_scratch_bytes": "--scratch-bytes",
    "upload_rate": "--upload-rate",
    "download_rate": "--download-rate",
    "daily_quota_bytes": "--daily-quota",
}

CpuOption = Annotated[
    str | None, typer.Option(metavar="PERCENT", help="Most of the processor, all cores together, like 50%; or none.")
]
DutyOption = Annotated[
    str | None, typer.Option(metavar="PERCENT", help="How much of the time to compute, on GPUs as well, like 60%.")
]
GpusOption = Annotated[str | None, typer.Option(metavar="NUMBERS", help="Which GPUs, like 0,2; all, or none.")]
VramOption = Annotated[
    str | None, typer.Option(metavar="PERCENT", help="Most of each GPU's memory for an executor, like 50%; or none.")
]
PowerOption = Annotated[
    str | None, typer.Option(metavar="WATTS", help="Most power of each GPU, like 200W, where permitted; or none.")
]
CelsiusOption = Annotated[
    str | None, typer.Option(metavar="DEGREES", help="GPU temperature to slow down above, like 70C; or none.")
]
MaxRamOption = Annotated[str | None, typer.Option(metavar="SIZE", help="Most memory, like 8GB; or none.")]
CacheOption = Annotated[str | None, typer.Option(metavar="SIZE", help="Largest cache, like 5GiB; or none.")]
ScratchOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most that a task's code may write, like 2GiB; or none.")
]
UploadOption = Annotated[str | None, typer.Option(metavar="SIZE", help="Most to send in a second, like 2MB; or none.")]
DownloadOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most to fetch in a second, like 10MB; or none.")
]
QuotaOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most to send and fetch in a day, like 5GB; or none.")
]


def limits_given(words: Mapping[str, str | None]) -> dict[str, Any]:
    """Read the limits that were given, by the fields of ``OwnerLimits``; ``none`` takes one back.

    Raises: BadSettings naming the option.
    """
    return {name: _read(name, text) for name, text in words.items() if text is not None}


def option_of(field: str) -> str:
    """Return the option that sets a field of the policy."""
    return _OPTIONS.get(field, f"--{field.replace('_', '-')}")


def refuse_unknown_gpus(numbers: Collection[int]) -> None:
    """See that this machine has GPUs of these numbers. Raises: BadSettings that lists those that it has."""
    accelerators = Accelerators()
    try:
        present = {gpu.index: gpu.name for gpu in accelerators.sample()}
    finally:
        accelerators.close()
    if unknown := sorted(set(numbers) - present.keys()):
        listed = ", ".join(f"{index} ({name})" for index, name in present.items())
        has = f"it has {listed}" if listed else "NVIDIA's driver shows none at all"
        raise BadSettings(f"--gpus: this machine has no GPU {unknown[0]}: {has}")


def share_of(text: str, option: str) -> float:
    """Read a share such as ``25%`` (0.25). Raises: BadSettings naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if found is None:
        raise BadSettings(f"{option}: write a share as 25%, not {text!r}")
    share = float(found[1]) / 100
    if not 0 < share <= 1:
        raise BadSettings(f"{option}: a share is more than 0% and at most 100%, not {text!r}")
    return share


def _read(name: str, text: str) -> Any:
    if name == "gpus":
        return _gpus(text)
    if text.strip().lower() == _NONE:
        return OwnerLimits.model_fields[name].default
    if name in _SHARES:
        return share_of(text, _OPTIONS[name])
    if (unit := _NUMBERS.get(name)) is not None:
        return _number(text, unit, _OPTIONS[name])
    try:
        return int(_SIZE.validate_python(text))
    except ValidationError:
        raise BadSettings(f"{_OPTIONS[name]}: write a size as 8GB or 512MiB, not {text!r}") from None


def _gpus(text: str) -> tuple[int, ...] | None:
    words = text.strip().lower()
    if words in (_ALL, _NONE):
        return None if words == _ALL else ()
    if not all(part.strip().isdecimal() for part in words.split(",")):
        raise BadSettings(f"--gpus: write the GPUs' numbers as 0,2, or all, or none, not {text!r}")
    return tuple(sorted({int(part) for part in words.split(",")}))


def _number(text: str, unit: str, option: str) -> float:
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*{unit}?", text.strip(), re.IGNORECASE)
    if found is None:
        raise BadSettings(f"{option}: write it as 70{unit}, not {text!r}")
    return float(found[1])
