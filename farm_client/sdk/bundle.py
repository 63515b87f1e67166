"""A task's code as one zip: the same bytes for the same files, without caches, and refused if data slipped in."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.digests import digest_bytes
from protocol.errors import InvalidTask
from protocol.tasks import BlobRef
from protocol.wording import sized

MAX_FILE_BYTES: Final = 16 << 20
MAX_BUNDLE_BYTES: Final = 64 << 20
MAX_BUNDLE_FILES: Final = 5000
_EXCLUDED_FOLDERS: Final = frozenset({"__pycache__", "node_modules", "venv"})
_EXCLUDED_SUFFIXES: Final = (".pyc", ".pyo", ".egg-info")
_ENTRIES: Final = ("train.py", "main.py", "task.py")
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can say: file times must not change the digest."""
_MODE: Final = 0o100644 << 16


@dataclass(frozen=True, slots=True)
class Bundle:
    """Code, zipped. ``entry`` is the Python file to import, by its path in the zip."""

    data: bytes
    entry: str

    @property
    def blob(self) -> BlobRef:
        """Return the reference to the zip's bytes."""
        return BlobRef(digest=digest_bytes(self.data), size_bytes=len(self.data))

    def unpack(self, folder: Path) -> None:
        """Write the files into a folder."""
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            archive.extractall(folder)


def make_bundle(code: Path, entry: str | None = None, without: Iterable[Path] = ()) -> Bundle:
    """Zip a Python file, or a folder whose ``entry`` is train.py, main.py, task.py or its only Python file.

    Hidden files, caches, virtual environments and the files in ``without`` (the data) stay out.
    Raises: InvalidTask if there is no code, no entry, or a file is too large to be code.
    """
    if not code.exists():
        raise InvalidTask(f"there is no {code}: give the path of your Python file or of its folder")
    if not code.is_dir():
        if not code.is_file():
            raise InvalidTask(f"{code} is no regular file: give your Python file, or its folder")
        if code.suffix != ".py":
            raise InvalidTask(f"{code.name} is not a Python file; give one that ends in .py, or a folder")
        return Bundle(_zipped({_text_name(code, code.name): code}), code.name)
    left_out = {path.resolve() for path in without}
    kept = (path for path in _files(code) if path.resolve() not in left_out)
    files = {_text_name(path, path.relative_to(code).as_posix()): path for path in kept}
    return Bundle(_zipped(files), _entry(code, files, entry))


def _text_name(path: Path, name: str) -> str:
    """Return the name if other machines can have it. Raises: InvalidTask if it is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidTask(f"the name of {str(path)!a} is not UTF-8: rename the file, or move it away") from error
    return name


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in _EXCLUDED_FOLDERS or path.name.endswith(_EXCLUDED_SUFFIXES):
            continue
        if path.is_dir():
            if not path.is_symlink() and not (path / "pyvenv.cfg").exists():
                yield from _files(path)
        elif path.is_file():
            yield path


def _entry(code: Path, files: Iterable[str], wanted: str | None) -> str:
    names = set(files)
    if wanted is not None:
        if wanted not in names:
            raise InvalidTask(f"there is no {wanted} in {code}: give the entry file's path inside the folder")
        return wanted
    found = next((name for name in _ENTRIES if name in names), None)
    scripts = [name for name in names if name.endswith(".py")]
    if found is None and len(scripts) != 1:
        what = "several Python files" if scripts else "no Python file"
        raise InvalidTask(f"{code} has {what} and none is called train.py: rename yours, or name it as the entry")
    return found or scripts[0]


def _zipped(files: dict[str, Path]) -> bytes:
    if len(files) > MAX_BUNDLE_FILES:
        raise InvalidTask(f"the code has {len(files)} files, more than {MAX_BUNDLE_FILES}: submit a smaller folder")
    total = 0
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            size = path.stat().st_size
            total += size
            if size > MAX_FILE_BYTES or total > MAX_BUNDLE_BYTES:
                raise InvalidTask(f"{name} has {sized(size)}, too large for code: give data with --data")
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = _MODE
            archive.writestr(info, path.read_bytes())
    return output.getvalue()
