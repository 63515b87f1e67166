"""The blob routes of a farm that a test plays: real HTTP, resumable both ways, and a script of what goes wrong."""

import asyncio
import math
from contextlib import asynccontextmanager

import uvicorn
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protocol.digests import digest_bytes
from protocol.ranges import ByteRanges, ContentRange
from protocol.rest_uploads import UploadReply, UploadRequest, UploadState
from protocol.tasks import BlobRef


class ScriptedBlobs:
    """``requests`` lists what was asked for, with the range; each entry of a list below spoils one request."""

    def __init__(self):
        self.blobs = {}
        self.arrived = {}
        """Of blobs that are on their way in: their bytes, and which of them are there."""
        self.requests = []
        self.received_bytes = 0
        """Of upload bodies, all together."""
        self.cut_after_bytes = []
        """Downloads are cut after so many bytes."""
        self.ignore_ranges = False
        self.break_uploads_after = []
        """Uploads break after so many bytes, which are kept."""
        self.forget_uploads = 0
        """So many parts are answered as if nobody had asked before."""
        self.waits = []
        """Uploads are told to wait, for these reasons."""
        self.fail_uploads = 0
        self.answers = []
        """What is answered, word by word, before an upload."""
        self.pretend = []
        """So many requests with HEAD or PUT are answered with these statuses, and nothing is done."""
        self.refuse_with = None
        """A status for all that is asked before an upload."""
        self.part_bytes = 1024 * 1024
        self.parallel = 3
        self.clients = set()
        self.gate = asyncio.Event()
        """Downloads wait for it."""
        self.gate.set()
        self.upload_gate = asyncio.Event()
        """Uploads wait for it."""
        self.upload_gate.set()
        self.asked = asyncio.Event()
        """A download was asked for."""

    def routes(self):
        return [
            Route("/v1/blobs/{digest}", self._get, methods=["GET", "HEAD"]),
            Route("/v1/blobs/{digest}", self._put, methods=["PUT"]),
            Route("/v1/blobs/{digest}", self._patch, methods=["PATCH"]),
            Route("/v1/blobs/{digest}/upload", self._post, methods=["POST"]),
        ]

    def store(self, data):
        digest = digest_bytes(data)
        self.blobs[digest] = data
        return BlobRef(digest=digest, size_bytes=len(data))

    def methods(self):
        return [method for method, _ in self.requests]

    def _note(self, request, header):
        self.requests.append((request.method, request.headers.get(header)))
        self.clients.add(request.headers.get("x-farm-client"))

    async def _get(self, request):
        self._note(request, "range")
        self.asked.set()
        await self.gate.wait()
        if self.pretend and request.method == "HEAD":
            return Response("a page", status_code=self.pretend.pop(0))
        data = self.blobs.get(request.path_params["digest"])
        if data is None:
            return refusal(404)
        wanted, headers = None if self.ignore_ranges else request.headers.get("range"), {}
        start, end = 0, len(data)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
            if start >= end:
                return Response(status_code=416, headers={"content-range": f"bytes */{len(data)}"})
            headers["content-range"] = str(ContentRange(start, end, len(data)))
        part = data[start:end]
        headers["content-length"] = str(len(part))
        if request.method == "GET" and self.cut_after_bytes:
            part = part[: self.cut_after_bytes.pop(0)]
        return Response(part, status_code=206 if wanted else 200, headers=headers)

    async def _put(self, request):
        self._note(request, "range")
        await self.upload_gate.wait()
        body = await request.body()
        self.received_bytes += len(body)
        if self.pretend:
            return Response(status_code=self.pretend.pop(0))
        if self.fail_uploads:
            self.fail_uploads -= 1
            return refusal(503)
        if digest_bytes(body) != request.path_params["digest"]:
            return JSONResponse({"code": "digest_mismatch", "message": "hashes to another name"}, 422)
        self.blobs[request.path_params["digest"]] = body
        return Response(status_code=201)

    async def _post(self, request):
        self._note(request, "range")
        await self.upload_gate.wait()
        digest, asked = request.path_params["digest"], UploadRequest.model_validate_json(await request.body())
        if self.answers:
            return Response(self.answers.pop(0))
        if self.refuse_with:
            return refusal(self.refuse_with)
        if digest in self.blobs:
            return _answer(state=UploadState.STORED)
        if self.waits:
            return _answer(state=UploadState.WAIT, ahead=3, reason=self.waits.pop(0), retry_seconds=0.01)
        data, here = self.arrived.setdefault(digest, (bytearray(asked.size_bytes), ByteRanges()))
        missing = tuple(here.missing(len(data)))
        return _answer(state=UploadState.GO, missing=missing, part_bytes=self.part_bytes, parallel=self.parallel)

    async def _patch(self, request):
        self._note(request, "content-range")
        place = ContentRange.parse(request.headers["content-range"])
        if self.fail_uploads:
            self.fail_uploads -= 1
            await request.body()
            return refusal(503)
        digest = request.path_params["digest"]
        if self.forget_uploads:
            self.forget_uploads -= 1
            self.arrived.pop(digest, None)
        if digest not in self.arrived:
            await request.body()
            return refusal(409)
        whole = await self._take(request, place, *self.arrived[digest])
        if whole is None:
            return refusal(500)
        return self._complete(digest) if whole else Response(status_code=204)

    async def _take(self, request, place, data, here):
        """Keep what comes; return whether the blob is whole, and None if this part breaks."""
        breaks_after = self.break_uploads_after.pop(0) if self.break_uploads_after else math.inf
        at, broken = place.start, False
        try:
            async for chunk in request.stream():
                self.received_bytes += len(chunk)
                kept = b"" if broken else chunk[: int(min(len(chunk), breaks_after - (at - place.start)))]
                data[at : at + len(kept)] = kept
                here.add(at, at + len(kept))
                at += len(kept)
                broken = broken or len(kept) < len(chunk)
        except ClientDisconnect:
            return None
        return None if broken else here.prefix_bytes == len(data)

    def _complete(self, digest):
        data, _ = self.arrived.pop(digest)
        if digest_bytes(data) != digest:
            return JSONResponse({"code": "digest_mismatch", "message": "hashes to another name"}, 422)
        self.blobs[digest] = bytes(data)
        return Response(status_code=201)


def refusal(status):
    """An error in a farm's words."""
    return JSONResponse({"code": "refused", "message": f"the farm refuses with {status}"}, status)


def _answer(**fields):
    return JSONResponse(UploadReply(**fields).model_dump(mode="json"))


@asynccontextmanager
async def serving(app):
    """Serve an app on a free port of loopback for the length of a block; gives the port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="websockets-sansio")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    sockets = [config.bind_socket()]
    running = asyncio.create_task(server._serve(sockets))
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        server.force_exit = True
        await running
