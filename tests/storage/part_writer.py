"""A process that writes the parts of one upload in four threads, and says which are kept, until it is killed."""

from __future__ import annotations

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from protocol.digests import digest_bytes
from protocol.ranges import ByteRange
from storage.blobs import FolderBlobStore
from storage.part_writer import write_part
from storage.uploads import UPLOADS, UploadFolder

DATA = random.Random(9).randbytes(8_000_000)


def main(root: Path) -> None:
    """Write in an order of its own, all but the last part; then wait for the end."""
    folder = UploadFolder(root / UPLOADS, FolderBlobStore(root))
    partial = folder.open(digest_bytes(DATA), len(DATA))
    *parts, _ = ByteRange(0, len(DATA)).parts(20_000)
    random.Random(7).shuffle(parts)
    saying = threading.Lock()

    def write(part: ByteRange) -> None:
        write_part(partial, part.start, [DATA[part.start : part.end]])
        with saying:
            print(f"{part.start}-{part.end}", flush=True)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, parts))
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
