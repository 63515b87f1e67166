"""How much of the machine its owner lends, as far as it may change while an agent runs; a part of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from protocol.wording import sized

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Bytes = Annotated[int, Field(gt=0, lt=2**63)]


class OwnerLimits(BaseModel):
    """Shares are from 0 to 1, sizes in bytes, rates in bytes a second. None is no limit but that of the join."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu_share: Share | None = None
    """Of all the processor's cores together."""
    duty: Annotated[Share, Field(ge=0.05)] = 1.0
    """Which part of the time executors work, on GPUs as on processors."""
    gpus: tuple[Annotated[int, Field(ge=0, le=1023)], ...] | None = None
    """Of which GPUs, by their numbers as NVML has them; empty: of none."""
    vram_share: Share | None = None
    """Of each GPU's memory, for each executor."""
    power_watts: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """For each GPU."""
    target_celsius: Annotated[float, Field(ge=30, le=110)] | None = None
    """Of the hottest GPU: above it executors work less of the time."""
    max_ram_bytes: Bytes | None = None
    max_cache_bytes: Bytes | None = None
    """Of the cache on the disk."""
    max_scratch_bytes: Bytes | None = None
    """Of what the task's code may write, for each executor."""
    upload_rate: Bytes | None = None
    download_rate: Bytes | None = None
    daily_quota_bytes: Bytes | None = None
    """Of what may move in a day, sent and received together."""

    def limits_in_words(self) -> Mapping[str, str]:
        """Return what is limited, by name, in words for a person."""
        named: dict[str, str | None] = {
            "processor": _share(self.cpu_share),
            "works": None if self.duty == 1.0 else f"{self.duty:.0%} of the time",
            "GPUs": None if self.gpus is None else ", ".join(map(str, self.gpus)) or "none",
            "GPU memory": _share(self.vram_share),
            "GPU power": None if self.power_watts is None else f"at most {self.power_watts:.0f} W each",
            "GPU temperature": None if self.target_celsius is None else f"at most {self.target_celsius:.0f} °C",
            "memory": _size(self.max_ram_bytes),
            "cache": _size(self.max_cache_bytes),
            "scratch files": _size(self.max_scratch_bytes),
            "sends": _size(self.upload_rate, "/s"),
            "fetches": _size(self.download_rate, "/s"),
            "moves": _size(self.daily_quota_bytes, " a day"),
        }
        return {name: words for name, words in named.items() if words is not None}


def _share(share: float | None) -> str | None:
    return None if share is None else f"at most {share:.0%}"


def _size(size_bytes: int | None, unit: str = "") -> str | None:
    return None if size_bytes is None else f"at most {sized(size_bytes)}{unit}"
