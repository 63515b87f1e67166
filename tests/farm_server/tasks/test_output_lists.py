"""A list of outputs has no gap: an item that failed fills its place, and an item that is not done ends the list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.records import FailedItemRecord, OutputRecord
from farm_server.tasks.output_lists import without_gap
from protocol.maps import OutputList

PLACES = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["output", "failed", "missing"])), max_size=12)


@given(PLACES, st.integers(0, 40))
def test_what_is_listed_follows_without_a_gap(places: list[tuple[int, str]], start: int) -> None:
    parts, failed, state = [], [], {}
    position = 0
    for samples, kind in places:
        stretch = range(position, position + samples)
        state |= dict.fromkeys(stretch, kind)
        parts += [OutputRecord("t1", position, samples, "a" * 64, 9)] if kind == "output" else []
        failed += [FailedItemRecord("t1", item, "killed", ("ada",)) for item in stretch if kind == "failed"]
        position += samples
    wanted = []
    for item in range(start, position + 1):
        if state.get(item, "missing") == "missing":
            break
        wanted.append((item, state[item]))
    # as the ledger reads: from the part on that has the item
    found = without_gap(
        start, [p for p in parts if p.position + p.samples > start], [f for f in failed if f.position >= start]
    )
    listed = OutputList(task_id="t1", outputs=found[0], failed=found[1], items=position, is_over=False)
    items: list[tuple[int, str]] = []
    for entry in listed.entries:
        count = getattr(entry, "items", None)
        kind = "output" if count else "failed"
        items += [(entry.position + n, kind) for n in range(count or 1)]
    assert [one for one in items if one[0] >= start] == wanted
    assert listed.end == (items[-1][0] + 1 if items else None)
