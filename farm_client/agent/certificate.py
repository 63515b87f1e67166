"""The certificate of this machine's contribution, fetched from the farm of the last join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from farm_client.agent.cli_parts import HomeOption, JsonOption, print_envelope
from farm_client.agent.connection.address import JoinAddress
from farm_client.agent.connection.farm_choice import choose_farm
from farm_client.agent.errors import NoCertificate
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.home.identity import load_identity
from farm_client.agent.settings import load_settings
from protocol.certificate import SignedCertificate, from_file, to_file
from protocol.terminal_text import one_line
from protocol.wording import counted, flops_text

_TIMEOUT_SECONDS: Final = 30.0


def certificate(
    home: HomeOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")] = Path(
        "certificate.json"
    ),
    as_json: JsonOption = False,
) -> None:
    """Fetch what the farm has counted of this machine's work, signed; `farm certificate verify FILE` checks it."""
    settings = load_settings(home=home)
    where = HomeFolder(settings.home)
    address = choose_farm(None, settings.token_file, where.farm_file)
    signed = fetch(address, load_identity(where.identity_file).client_id)
    output.write_bytes(to_file(signed))
    if as_json:
        print_envelope("certificate", {**signed.model_dump(), "path": str(output)})
        return
    about = signed.certificate
    gave = f"{counted(about.samples, 'sample')}, {flops_text(about.flops)}"
    typer.echo(one_line(f"{about.name or about.subject} gave {about.farm} {gave}: {output}"))


def fetch(address: JoinAddress, client_id: str) -> SignedCertificate:
    """Return a client's certificate. Raises: NoCertificate with the farm's reason, or why there was no answer."""
    import httpx  # noqa: PLC0415 - the agent itself stays small

    try:
        answer = httpx.get(
            f"{address.http_url}/v1/certificates/clients/{client_id}", headers=address.headers, timeout=_TIMEOUT_SECONDS
        )
    except httpx.HTTPError as error:
        raise NoCertificate(f"the farm at {address.shown} does not answer: {error}") from error
    if answer.is_success:
        return from_file(answer.content)
    try:
        reason = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        reason = f"it answers {answer.status_code}"
    raise NoCertificate(f"the farm at {address.shown} has no certificate: {reason}")
