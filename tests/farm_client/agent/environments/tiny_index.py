"""Wheels of a few lines, and a package index on loopback that serves them."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from farm_client.agent.environments.installer import find_uv

HAS_UV = find_uv() is not None


def make_wheel(folder: Path, name: str, version: str = "1.0", files: dict[str, str] | None = None) -> Path:
    """Write a wheel with one module of that name, whose ``VERSION`` says which it is, and with these files."""
    about = f"{name}-{version}.dist-info"
    content = {
        f"{name}.py": f"VERSION = {version!r}\n",
        **(files or {}),
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text.encode())},{len(text.encode())}" for path, text in content.items()]
    content[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,"]) + "\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in content.items():
            archive.writestr(zipfile.ZipInfo(inner), text)  # without a time: the same files have the same hash
    return path


def make_sdist(folder: Path, name: str, version: str = "1.0") -> Path:
    """Write a source archive whose build would leave a mark; nobody may build it."""
    path = folder / f"{name}-{version}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}/setup.py", "raise SystemExit('it was built')")
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def pin_of(path: Path) -> str:
    """Return the line of a lock for a file of the index."""
    name, version = path.name.removesuffix(".zip").split("-")[:2]
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def names_in(folder: Path) -> list[str]:
    """List what is in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


class TinyIndex:
    """The simple repository API over a folder of files. ``gate`` holds every file back until it is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        """Whether a file was asked for."""
        self.paths: list[str] = []
        self.url = ""

    def answer(self, path: str) -> bytes | None:
        parts = [part for part in path.split("/") if part]
        if parts[:1] == ["simple"] and len(parts) == 2:
            files = [file for file in self.folder.iterdir() if file.name.split("-")[0] == parts[1]]
            links = [f'<a href="/files/{file.name}">{file.name}</a>' for file in files]
            return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode() if links else None
        file = self.folder / parts[-1] if parts[:1] == ["files"] else None
        return file.read_bytes() if file is not None and file.is_file() else None


@contextmanager
def serving(folder: Path) -> Iterator[TinyIndex]:
    """Serve a folder of wheels on a free port until the end of the block."""
    index = TinyIndex(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            index.paths.append(self.path)
            if self.path.startswith("/files/"):
                index.asked.set()
                index.gate.wait()
            found = index.answer(self.path)
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Type", "text/html" if self.path.startswith("/simple") else "application/zip")
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
