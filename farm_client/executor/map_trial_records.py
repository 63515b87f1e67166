"""The request and the report of a map's trial. Free of torch: `farm` reads them."""

from __future__ import annotations

from farm_client.executor.messages import Failed, LoadTask, Run
from protocol.frozen import Frozen


class MapTrialRequest(Frozen):
    """What is tried: the code is set up and run on the items of ``part``; or only imported, if there is none."""

    load: LoadTask
    part: Run | None


class MapTrialReport(Frozen):
    """What was found: either ``failed``, or the rest."""

    failed: Failed | None = None
    takes_batches: bool = False
    peak_rss_bytes: int = 0
