"""A certificate of contribution: what of somebody's work a farm has counted, signed by the farm.

What is signed is the certificate's JSON in one encoding: keys sorted, ASCII, no blanks, and no numbers but whole ones,
after a line that names the format. The signature is Ed25519 (RFC 8032). Whoever has the farm's public key can check it
without the farm; the key in the file alone shows that nothing was changed since somebody signed it.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import FarmError

FORMAT: Final = "aifarm-certificate-1"
MAX_TASKS: Final = 1000
"""Tasks that a certificate names, those with the most FLOPs first."""
MAX_FILE_BYTES: Final = 1024 * 1024
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64


class BadCertificate(FarmError):
    """The certificate can't be trusted: it was changed, or is none."""

    code = "bad_certificate"


class _Exact(BaseModel):
    """A record of which nothing is left out, cut or converted: another file is another certificate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TaskContribution(_Exact):
    """What of one task's work counts. ``name`` is empty where the farm has forgotten the task."""

    task_id: str
    name: str
    assignments: int
    samples: int
    flops: int


class Certificate(_Exact):
    """What is signed. Days are UTC, such as 2026-11-27; the FLOPs are those of ``measured_samples``."""

    format: Literal["aifarm-certificate-1"] = FORMAT
    farm: str
    issued_at: str
    """UTC, such as 2026-11-27T20:00:00Z."""
    kind: Literal["client", "team"]
    subject: str
    """The client's id, or the team's name."""
    name: str
    """What the farm calls the client, or the team's name."""
    first_day: str
    last_day: str
    assignments: int
    samples: int
    measured_samples: int
    flops: int
    tasks: list[TaskContribution] = Field(max_length=MAX_TASKS)
    more_tasks: int
    """How many others are in the sums above."""


class SignedCertificate(_Exact):
    """The file. ``public_key`` and ``signature`` are base64 of 32 and 64 bytes."""

    certificate: Certificate
    public_key: str
    signature: str


def canonical(certificate: Certificate) -> bytes:
    """Return the bytes that are signed."""
    text = json.dumps(certificate.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{FORMAT}\n{text}".encode("ascii")


def to_file(signed: SignedCertificate) -> bytes:
    """Return the file of a certificate: JSON for people and programs."""
    return (json.dumps(signed.model_dump(), indent=2, ensure_ascii=True) + "\n").encode("ascii")


def from_file(data: bytes) -> SignedCertificate:
    """Read a certificate's file, unchecked. Raises: BadCertificate if it is none, or has anything else in it."""
    try:
        return SignedCertificate.model_validate(json.loads(data, object_pairs_hook=_once, parse_constant=_no_number))
    except (ValueError, ValidationError, RecursionError) as error:
        raise BadCertificate(f"this is no certificate of a farm: {_first_line(error)}") from None


def sign(certificate: Certificate, seed: bytes) -> SignedCertificate:
    """Sign a certificate with the private key of a seed of 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - few need it

    key = Ed25519PrivateKey.from_private_bytes(seed)
    return SignedCertificate(
        certificate=certificate,
        public_key=base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        signature=base64.b64encode(key.sign(canonical(certificate))).decode(),
    )


def public_key_of(seed: bytes) -> str:
    """Return the public key of a seed, as certificates have it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - few need it

    return base64.b64encode(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()).decode()


def verify(signed: SignedCertificate, public_key: str | None = None) -> None:
    """Check a certificate against the farm's public key; without one, against the key that it names itself.

    Raises: BadCertificate saying what does not fit.
    """
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - few need it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    named = _decoded(signed.public_key, _KEY_BYTES, "public key")
    if public_key is not None and _decoded(public_key.strip(), _KEY_BYTES, "given public key") != named:
        raise BadCertificate("another farm signed it: its public key is not the one that was given")
    signature = _decoded(signed.signature, _SIGNATURE_BYTES, "signature")
    try:
        Ed25519PublicKey.from_public_bytes(named).verify(signature, canonical(signed.certificate))
    except (InvalidSignature, ValueError):
        raise BadCertificate("it was changed after it was signed: the signature is not of what it says") from None


def _decoded(text: str, size: int, what: str) -> bytes:
    """Return the bytes of base64 that has one form only. Raises: BadCertificate."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != size or base64.b64encode(data).decode() != text:
        raise BadCertificate(f"its {what} is not base64 of {size} bytes")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0][:200]
