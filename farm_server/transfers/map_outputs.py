"""The outputs of a part of a map, as they arrive: one for each item, stored before they are said to count."""

from __future__ import annotations

from protocol.assignments import Result
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch
from protocol.maps import MAX_PART_BYTES
from protocol.outputs import MalformedOutputs, check_head, head_bytes
from protocol.tasks import BlobRef
from storage.ports.blob_store import BlobStore


class MapOutputs:
    """What comes inside of a result becomes a blob; what was uploaded before it is one."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def keep(self, result: Result, items: int) -> BlobRef:
        """Return the outputs of a part of so many items, durable and whole. Call it on a worker thread: it syncs.

        Raises: MalformedOutputs; DigestMismatch; NotFound if they were never uploaded; Unavailable.
        """
        output = result.update
        if output is None:
            raise MalformedOutputs("the result has no outputs")
        if output.size_bytes > MAX_PART_BYTES + head_bytes(items):
            raise MalformedOutputs(f"the outputs of a part take {output.size_bytes} bytes, over {MAX_PART_BYTES}")
        data = output.carried
        if data is None:
            return self._stored(output, items)
        if len(data) != output.size_bytes or digest_bytes(data) != output.digest:
            raise DigestMismatch(f"the outputs of {len(data)} bytes are not {output.digest[:12]}…; send them again")
        check_head(data, len(data), items)
        return self._blobs.put_bytes(data)

    def _stored(self, output: BlobRef, items: int) -> BlobRef:
        path = self._blobs.path(output.digest)
        self._blobs.renew(output.digest)
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            check_head(file.read(head_bytes(items)), size_bytes, items)
        return BlobRef(digest=output.digest, size_bytes=size_bytes)
