"""Messages to bytes and back: one WebSocket binary message is one msgpack map."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from protocol.errors import MalformedFrame, UnknownMessage
from protocol.limits import MAX_FRAME_BYTES
from protocol.messages import MESSAGE, Message
from protocol.packing import pack_map, unpack_map


def encode(message: Message) -> bytes:
    """Return the message as one frame. Fields that are None are left out: absent and None mean the same.

    Raises: MalformedFrame if a free-form value (``config``) has no msgpack form.
    """
    try:
        fields = message.model_dump(exclude_none=True)
    except ValueError as error:
        raise MalformedFrame(f"this {message.type} cannot be sent: {error}") from error
    return pack_map(fields)


def decode(data: bytes | bytearray | memoryview, max_bytes: int = MAX_FRAME_BYTES) -> Message:
    """Return the message that the frame holds; fields it has beyond ours are ignored.

    Raises: OversizedFrame over ``max_bytes``; MalformedFrame naming the field that is missing or wrong;
        UnknownMessage if it is well formed and of a type that this side does not know.
    """
    fields = unpack_map(data, max_bytes)
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
