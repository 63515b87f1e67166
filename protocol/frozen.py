"""The base of all records that cross the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, and unknown fields are ignored, so that a newer peer can add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")
