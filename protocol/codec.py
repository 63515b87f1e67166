"""Messages to bytes and back. A frame is one WebSocket binary message: a msgpack map, or a list of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from protocol.errors import MalformedFrame, UnknownMessage
from protocol.limits import MAX_BATCH_MESSAGES, MAX_FRAME_BYTES
from protocol.messages import MESSAGE, Message
from protocol.packing import as_map, join_packed, pack_map, unpack, unpack_map


def encode(message: Message) -> bytes:
    """Return the message as one frame. Fields that are None are left out: absent and None mean the same.

    Raises: MalformedFrame if a free-form value (``config``) has no msgpack form.
    """
    try:
        fields = message.model_dump(exclude_none=True)
    except ValueError as error:
        raise MalformedFrame(f"this {message.type} cannot be sent: {error}") from error
    return pack_map(fields)


def join(frames: Sequence[bytes]) -> bytes:
    """Return one frame that says what ``frames`` (each of one message, at least one) say, in their order."""
    return frames[0] if len(frames) == 1 else join_packed(frames)


def decode(data: bytes | bytearray | memoryview, max_bytes: int = MAX_FRAME_BYTES) -> Message:
    """Return the message that the frame holds; fields it has beyond ours are ignored.

    Raises: OversizedFrame over ``max_bytes``; MalformedFrame naming the field that is missing or wrong;
        UnknownMessage if it is well formed and of a type that this side does not know.
    """
    return decode_entry(unpack_map(data, max_bytes))


def split(data: bytes, max_bytes: int = MAX_FRAME_BYTES, *, batches: bool = True) -> list[object]:
    """Return what a frame holds: the entries of a batch, or the frame itself. ``decode_entry`` judges each.

    Raises: OversizedFrame over ``max_bytes``; MalformedFrame if it is not msgpack, or a batch without an entry or
        with too many: then nothing of it counts.
    """
    frame = unpack(data, max_bytes)
    if not isinstance(frame, list) or not batches:
        return [frame]
    if not 1 <= len(frame) <= MAX_BATCH_MESSAGES:
        raise MalformedFrame(f"the batch has {len(frame)} messages; at least 1 and at most {MAX_BATCH_MESSAGES} may be")
    return frame


def decode_entry(entry: object) -> Message:
    """Return the message that an unpacked map stands for.

    Raises: MalformedFrame if it is no such map; UnknownMessage as in ``decode``.
    """
    fields = as_map(entry)
    if not isinstance(fields.get("type"), str):
        raise MalformedFrame("the frame has no text field 'type'")
    try:
        return MESSAGE.validate_python(fields)
    except ValidationError as error:
        raise _explained(fields, error) from error


def _explained(fields: dict[str, Any], error: ValidationError) -> MalformedFrame | UnknownMessage:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind = fields["type"][:64]
    if first["type"] == "union_tag_invalid":
        return UnknownMessage(f"message type {kind!r} is not known here; the sender may be newer")
    path = ".".join(str(step) for step in first["loc"][1:])
    return MalformedFrame(f"{kind}: field {path}: {first['msg']}")
