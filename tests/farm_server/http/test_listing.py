from __future__ import annotations

import json
import math
from typing import Any

from farm_server.http.listing import listing, written
from protocol.rest import EventView

FINE = EventView(seq=1, at=1.0, task_id="t", kind="k", message="fine")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [{"a": value}]
    return value


def test_views_are_written_as_they_are():
    assert json.loads(listing([FINE, FINE]).body) == [FINE.model_dump(), FINE.model_dump()]


def test_one_record_that_cannot_be_written_hides_no_other():
    odd = [
        EventView.model_construct(
            seq=2, at=math.nan, task_id="\udc00", kind="k", message="m\udc00", data={"\udc00": 1}
        ),
        EventView.model_construct(seq=3, at=0.0, task_id=None, kind="k", message="", data={"d": deep(300)}),
        EventView.model_construct(seq=4, at=0.0, task_id=None, kind="k", message="", data={"o": object(), "i": 10**30}),
    ]
    answer = json.loads(listing([FINE, *odd, FINE]).body)
    assert [view["seq"] for view in answer] == [1, 2, 3, 4, 1]
    assert answer[0] == answer[-1] == FINE.model_dump()
    assert (answer[1]["message"], answer[1]["data"]) == ("m?", {"?": 1})
    assert json.loads(written(odd[0]).body)["seq"] == 2
