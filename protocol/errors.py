"""The error tree that both sides share.

    FarmError                      every error this project raises on purpose
    ├── ProtocolError              something on the wire broke the rules
    │   ├── MalformedFrame         not msgpack, not a map, or a field of the wrong type
    │   ├── UnknownMessage         a well-formed message of a type we do not know
    │   ├── OversizedFrame         larger than the negotiated limit
    │   ├── OutOfOrder             a message that is illegal in the session's state
    │   ├── TooMany                more messages than a connection may send
    │   └── VersionMismatch        no protocol version in common
    ├── TensorError                a tensor payload that cannot be used
    │   ├── MalformedTensors       not a safetensors layout
    │   ├── LayoutMismatch         names, shapes or dtypes differ from the task's layout
    │   └── NotFinite              NaN, an infinity or a value too large to be encoded
    ├── DigestMismatch             bytes that do not hash to their name
    ├── InvalidTask                a submission that can never run
    ├── NotFound                   no such task, client or blob
    ├── Conflict                   the record is in a state that forbids the request
    ├── Unauthorized               a missing or wrong token
    ├── IdentityInUse              another machine works under this client's identity
    └── Unavailable                try again later: busy, draining, out of space

Each class has a stable ``code`` that crosses the wire and an exit-worthy sentence as its message.
"""

from __future__ import annotations

from typing import ClassVar


class FarmError(Exception):
    """Something went wrong and the message says what to do next."""

    code: ClassVar[str] = "farm_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self.args[0])


class ProtocolError(FarmError):
    """The peer broke the protocol."""

    code = "protocol_error"


class MalformedFrame(ProtocolError):
    """The frame is not a msgpack map with the fields that its type needs."""

    code = "malformed_frame"


class UnknownMessage(ProtocolError):
    """The message type is not known; the peer may be newer than this side."""

    code = "unknown_message"


class OversizedFrame(ProtocolError):
    """The frame is larger than the limit given in welcome; send bulk bytes over HTTP."""

    code = "oversized_frame"


class OutOfOrder(ProtocolError):
    """The message is not legal in the session's present state."""

    code = "out_of_order"


class TooMany(ProtocolError):
    """More messages or bytes than a connection may send; send less, and join again later."""

    code = "too_many"


class VersionMismatch(ProtocolError):
    """Client and server have no protocol version in common; upgrade the older one."""

    code = "version_mismatch"


class TensorError(FarmError):
    """The tensor payload cannot be used."""

    code = "tensor_error"


class MalformedTensors(TensorError):
    """The bytes are not named tensors in safetensors layout."""

    code = "malformed_tensors"


class LayoutMismatch(TensorError):
    """The tensors' names, shapes or dtypes differ from the task's layout."""

    code = "layout_mismatch"


class NotFinite(TensorError):
    """A tensor has NaN, an infinity or a value too large to be encoded."""

    code = "not_finite"


class DigestMismatch(FarmError):
    """The bytes do not hash to their digest: they were damaged on the way or on disk."""

    code = "digest_mismatch"


class InvalidTask(FarmError):
    """The submission can never run as it is."""

    code = "invalid_task"


class NotFound(FarmError):
    """There is no such record; `farm ls` lists the tasks."""

    code = "not_found"


class Conflict(FarmError):
    """The record's state does not allow this request."""

    code = "conflict"


class Unauthorized(FarmError):
    """The token is missing or wrong; copy the address that `farm-server up` printed."""

    code = "unauthorized"


class IdentityInUse(FarmError):
    """Another machine works under this client's identity; give one of them a new one: farm-client --new-identity."""

    code = "identity_in_use"


class Unavailable(FarmError):
    """The farm cannot take this now; try again later."""

    code = "unavailable"
