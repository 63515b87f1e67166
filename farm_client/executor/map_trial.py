"""A map's first items on the researcher's machine, through the code that volunteers run.

python -m farm_client.executor.map_trial REQUEST.json REPORT.json
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

from farm_client.executor.devices import choose_device
from farm_client.executor.environment import work_beside
from farm_client.executor.failures import as_failed
from farm_client.executor.map_function import MapFunction
from farm_client.executor.map_runner import MapRunner
from farm_client.executor.map_trial_records import MapTrialReport, MapTrialRequest
from farm_client.executor.messages import Advance, Saved
from farm_client.executor.output import print_anything
from farm_client.executor.progress import ProgressReporter

_RSS_UNIT_BYTES: Final = 1 if sys.platform == "darwin" else 1024


def try_map(request: MapTrialRequest) -> MapTrialReport:
    """Try a map and say what happened; a mistake in its code is reported, not raised."""
    try:
        work_beside(request.load.code_dir, request.load.entry)
        if request.part is None:  # what setup needs may be at the farm alone
            function = MapFunction(request.load, choose_device(), sets_up=False)
        else:
            runner = MapRunner(request.load, choose_device())
            runner.run(request.part, ProgressReporter(_hear_nothing))
            function = runner.function
    except BaseException as error:
        return MapTrialReport(failed=as_failed(error, None))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES
    return MapTrialReport(takes_batches=function.takes_batches, peak_rss_bytes=peak)


def _hear_nothing(_report: Advance | Saved) -> None:
    """Nobody watches a trial's progress."""


def main() -> None:
    """Try what the first argument's file says, and write what was found to the second's."""
    print_anything()
    request = MapTrialRequest.model_validate_json(Path(sys.argv[1]).read_bytes())
    Path(sys.argv[2]).write_text(try_map(request).model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
