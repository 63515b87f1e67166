"""A reference names bytes; those of a small blob may come along, and nothing that is kept has them."""

import pytest
from pydantic import ValidationError

from protocol.digests import digest_bytes
from protocol.limits import INLINE_BYTES
from protocol.tasks import BlobRef

DATA = b"weights"


def test_one_that_carries_its_bytes_is_named_by_them_or_as_its_maker_says() -> None:
    ref = BlobRef.carrying(DATA)
    assert (ref.digest, ref.size_bytes, ref.carried) == (digest_bytes(DATA), len(DATA), DATA)
    assert BlobRef.carrying(DATA, "a" * 64).digest == "a" * 64  # whoever checks it will see
    with pytest.raises(ValidationError):
        BlobRef.carrying(DATA, "no digest")


def test_what_is_kept_of_it_has_no_bytes() -> None:
    ref = BlobRef.carrying(DATA)
    bare = ref.bare()
    assert (bare.digest, bare.size_bytes, bare.carried) == (ref.digest, ref.size_bytes, None)
    assert bare.bare() is bare
    assert ref.model_dump(exclude=BlobRef.CARRIED) == {"digest": ref.digest, "size_bytes": len(DATA)}


@pytest.mark.parametrize(("size_bytes", "is_small"), [(0, True), (INLINE_BYTES, True), (INLINE_BYTES + 1, False)])
def test_a_small_one_is_one_that_a_message_can_carry(size_bytes: int, is_small: bool) -> None:
    assert BlobRef(digest="0" * 64, size_bytes=size_bytes).is_small is is_small
