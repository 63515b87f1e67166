"""`farm certificate`: what somebody's machines gave a farm, as a file that anybody can check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from farm_client.cli.certificate_picture import picture
from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.references import find_client
from protocol.certificate import MAX_FILE_BYTES, BadCertificate, SignedCertificate, from_file, verify
from protocol.errors import NotFound
from protocol.rest import ClientView
from protocol.terminal_text import one_line
from protocol.wording import counted, flops_text

_VERIFY: Final = "verify"


def certificate(
    invocation: Invocation,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[CLIENT]", help="Whose: a client's id, a unique beginning of it, or its name. Or `verify`."
        ),
    ] = None,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="With `verify`: the file to check.")] = None,
    *,
    team: Annotated[str | None, typer.Option("--team", metavar="TEAM", help="Of a team, by its name.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")] = Path(
        "certificate.json"
    ),
    drawn: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw it as well, as one SVG file.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="With `verify`: the farm's public key (GET /v1/keys/certificate)."),
    ] = None,
) -> None:
    """Fetch a signed certificate of what a client or a team gave the farm; `verify FILE` checks one, without a farm.

    Without --key, `verify` finds any change, but not who signed: anybody can sign.
    """
    if subject == _VERIFY and file is not None:
        _verify(invocation, file, key, drawn)
        return
    if (subject is None) == (team is None) or subject == _VERIFY or file is not None or key is not None:
        raise BadUsage(
            "say whose certificate: `farm certificate CLIENT`, or `--team TEAM`; or `farm certificate verify FILE`"
        )
    with invocation.api() as api:
        if team is not None:
            data = api.certificate("team", team)
        else:
            data = api.certificate("client", _client_id(api.clients(), subject or ""))
    signed = from_file(data)
    output.write_bytes(data)
    _draw(signed, drawn)
    invocation.out.emit(
        OutputKind.CERTIFICATE,
        {**signed.model_dump(), "path": str(output)},
        lambda: Text(f"{_in_words(signed)}\n{output}"),
    )


def _client_id(known: list[ClientView], reference: str) -> str:
    """Return whose id is meant; of a client that was removed it is the whole id."""
    try:
        return find_client(known, reference).client_id
    except NotFound:
        return reference


def _verify(invocation: Invocation, path: Path, key: str | None, drawn: Path | None) -> None:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadCertificate("this is no certificate of a farm: it is too large")
    signed = from_file(data)
    verify(signed, key)
    _draw(signed, drawn)
    by = "by the farm with that key" if key else f"by whoever has key {signed.public_key}: compare it with the farm's"
    invocation.out.emit(
        OutputKind.CERTIFICATE_CHECK,
        {**signed.model_dump(), "key_given": key is not None},
        lambda: Text(f"{_in_words(signed)}\nsigned {by}; nothing was changed since"),
    )


def _draw(signed: SignedCertificate, path: Path | None) -> None:
    if path is not None:
        path.write_text(picture(signed), encoding="utf-8")


def _in_words(signed: SignedCertificate) -> str:
    about = signed.certificate
    whom = about.name or about.subject
    gave = (
        f"{counted(about.samples, 'sample')}, {flops_text(about.flops)}"
        if about.flops
        else counted(about.samples, "sample")
    )
    return one_line(f"{about.kind} {whom} gave {about.farm} {gave}, from {about.first_day} to {about.last_day}")
