"""Measured values as a pandas data frame."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from protocol.rest import MetricView


def frame_of(values: Sequence[MetricView]) -> pd.DataFrame:
    """Return a row for each value, with the fields of ``MetricView`` as columns; ``at`` as a time in UTC."""
    frame = pd.DataFrame([value.model_dump() for value in values], columns=list(MetricView.model_fields))
    frame["at"] = pd.to_datetime(frame["at"], unit="s", utc=True)
    return frame.set_index("seq")
