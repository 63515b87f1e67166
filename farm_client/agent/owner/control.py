"""The control socket of a running agent, ``HOME/control.sock``: one JSON line asks, one answers.

    {"do": "pause", "seconds": 7200}  ->  {"ok": true, "data": {...}}
                                      or  {"ok": false, "code": "bad_settings", "message": "..."}

Only the owner may open the socket: its mode is 600, it lies in the agent's own folder, and where the system tells who
connects (Linux), another user is refused. A line that is no request is answered with an error, and harms nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from farm_client.agent.errors import BadControlRequest, ControlRefused, NoControlSocket
from farm_client.agent.home.local_socket import is_of_this_user, listening_socket, socket_address, socket_family
from protocol.errors import FarmError

MAX_LINE_BYTES: Final = 64 * 1024
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_MOST_CONNECTIONS: Final = 16
_SILENT_SECONDS: Final = 30.0
_PARTING_SECONDS: Final = 1.0

Verb = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]] | Mapping[str, Any]]
"""Does what a request asks, and returns the answer's data. May raise a FarmError, or an OSError."""


class ControlSocket:
    """Serves ``verbs`` by their names while it is open; more may be added meanwhile."""

    def __init__(self, path: Path, verbs: Mapping[str, Verb], trace: Callable[[str, BaseException], None]) -> None:
        """``trace`` gets a mistake of a verb's own."""
        self._path = path
        self._verbs = verbs
        self._trace = trace
        self._server: asyncio.AbstractServer | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen, in the place of what a killed agent left. Raises: NoControlSocket."""
        listening = listening_socket(self._path, _MOST_CONNECTIONS)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """Stop listening, end what is connected, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for task in tuple(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  asyncio runs this in one
        self._serving.add(task)
        try:
            refusal = self._refusal(writer)
            if refusal is not None:
                await _part(reader, writer, refusal)
                return
            await self._answer_all(reader, writer)
        except (OSError, TimeoutError):
            return  # it went away, or says nothing
        finally:
            self._serving.discard(task)
            writer.close()

    def _refusal(self, writer: asyncio.StreamWriter) -> dict[str, Any] | None:
        if not is_of_this_user(writer.get_extra_info("socket")):
            return _failure(BadControlRequest("only the user who runs this agent may control it"))
        if len(self._serving) > _MOST_CONNECTIONS:
            return _failure(BadControlRequest(f"more than {_MOST_CONNECTIONS} programs control this agent already"))
        return None

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(_SILENT_SECONDS):
                    line = await reader.readline()
            except ValueError:  # what is left of so long a line cannot be told from a request
                await _write(
                    writer, _failure(BadControlRequest(f"a request is one line of at most {MAX_LINE_BYTES} bytes"))
                )
                return
            if not line:
                return
            await _write(writer, await self._answer(line))

    def _verb(self, request: Mapping[str, Any]) -> Verb:
        verb = self._verbs.get(str(request.get("do")))
        if verb is None:
            raise BadControlRequest(f"a request's `do` is one of: {', '.join(sorted(self._verbs))}")
        return verb

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = _request(line)
            answer = self._verb(request)(request)
            data = answer if isinstance(answer, Mapping) else await answer
        except FarmError as error:
            return _failure(error)
        except OSError as error:
            return {"ok": False, "code": "machine", "message": f"this machine could not do it: {error}"}
        except Exception as error:
            self._trace("a mistake in farm-client ended a request of its owner", error)
            return {"ok": False, "code": "agent_error", "message": f"a mistake in farm-client: {error!r}"}
        return {"ok": True, "data": dict(data)}


def ask(path: Path, request: Mapping[str, Any], seconds: float = 10.0) -> dict[str, Any]:
    """Ask the agent behind a control socket, and return the answer's data. Blocks for ``seconds`` at most.

    Raises: NoControlSocket if nobody listens there or answers; ControlRefused with the agent's own sentence.
    """
    try:
        with socket.socket(socket_family(), socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            with socket_address(path) as address:
                connection.connect(address)
            connection.sendall(json.dumps(dict(request)).encode() + b"\n")
            answer = _read_answer(connection)
    except (OSError, ValueError) as error:
        raise NoControlSocket(f"the agent does not answer at {path} ({error}); restart it") from None
    if answer.get("ok") is not True:
        raise ControlRefused(str(answer.get("message", "the agent did not say why")))
    data = answer.get("data")
    return data if isinstance(data, dict) else {}


def _read_answer(connection: socket.socket) -> dict[str, Any]:
    with connection.makefile("rb") as lines:
        line = lines.readline(MAX_ANSWER_BYTES)
    return dict(json.loads(line))


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise BadControlRequest("a request is one line of JSON") from None
    if not isinstance(request, dict):
        raise BadControlRequest("a request is a JSON object")
    return request


def _failure(error: FarmError) -> dict[str, Any]:
    return {"ok": False, "code": error.code, "message": error.message}


async def _write(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    async with asyncio.timeout(_SILENT_SECONDS):
        await writer.drain()


async def _part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    """Say a last word. What still comes is read first, for a while: to close before it would take the word back."""
    await _write(writer, answer)
    writer.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(_PARTING_SECONDS):
            while await reader.read(MAX_LINE_BYTES):
                pass
