"""What of a map's outputs is there without a gap: parts that have outputs, and the items between them that failed."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.records import FailedItemRecord, OutputRecord
from protocol.maps import FailedItemView, OutputView


def without_gap(
    start: int, parts: Iterable[OutputRecord], failed: Iterable[FailedItemRecord]
) -> tuple[tuple[OutputView, ...], tuple[FailedItemView, ...]]:
    """Return the parts and the failed items that follow each other from the item ``start`` on; each comes in order."""
    outputs: list[OutputView] = []
    missed: list[FailedItemView] = []
    records: list[OutputRecord | FailedItemRecord] = [*parts, *failed]
    for record in sorted(records, key=lambda record: record.position):
        if record.position > start:
            break
        if isinstance(record, FailedItemRecord):
            missed.append(FailedItemView(position=record.position, error=record.error, clients=record.clients))
            start = record.position + 1
            continue
        start = record.position + record.samples
        outputs.append(
            OutputView(
                position=record.position, items=record.samples, digest=record.digest, size_bytes=record.size_bytes
            )
        )
    return tuple(outputs), tuple(missed)
