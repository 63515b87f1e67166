"""The lock of a task's environment: which packages, each pinned to a version and to the digests of its files.

A lock is text in the form of pip's requirements, one package a line, in which nothing is left to choose:

    einops==0.8.1 --hash=sha256:…
    colorama==0.4.6 ; sys_platform == "win32" --hash=sha256:… --hash=sha256:…

The digest of that text is the environment's name. What a researcher has (``uv.lock``, ``pylock.toml``) is brought into
this form where it is submitted; whoever gets it reads it again, for it is what a stranger sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from packaging.markers import InvalidMarker, Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from protocol.errors import InvalidTask
from protocol.wording import sized

MAX_LOCK_BYTES: Final = 2 * 1024**2
MAX_PINS: Final = 1000
MAX_HASHES: Final = 1000
"""Of one package: it has a file for each system and Python."""
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}", re.ASCII)
_HASH_OPTION: Final = re.compile(r"\s+--hash[= ]\s*(\S+)")
_COMMENT: Final = re.compile(r"(^|\s)#.*$")
_PATHS: Final = ("./", "../", "/", "file:", "~")
_OPTIONS: Final = {
    "-e": "an editable installation is a folder of yours",
    "--editable": "an editable installation is a folder of yours",
    "-r": "another file does not travel along",
    "--requirement": "another file does not travel along",
    "-c": "another file does not travel along",
    "--constraint": "another file does not travel along",
}
_FOREIGN_OPTION: Final = "volunteers take packages from the index that their own machine is set to"
_UNPINNED: Final = "is not pinned to one version: write {name}==VERSION (`uv pip compile --generate-hashes` does)"
_UNHASHED: Final = "has no --hash=sha256:…, so nobody could tell whether the right file came"


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    """One package at one version. ``name`` is normalized; ``hashes`` are of any of its files, as ``sha256:HEX``.

    ``marker`` says in PEP 508's words on which machines it is needed; empty: on all.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @classmethod
    def checked(cls, name: str, version: str, marker: str, hashes: Iterable[str]) -> Pin:
        """Return the pin, each part in its normal form. Raises: ValueError in the words of a person."""
        try:
            exact = str(Version(version))
        except InvalidVersion as error:
            raise ValueError(f"{name}: {version!r} is no version") from error
        try:
            condition = str(Marker(marker)) if marker else ""
        except InvalidMarker as error:
            raise ValueError(f"{name}: the marker {marker!r} can't be read") from error
        if "extra" in re.findall(r"\w+", re.sub(r"'[^']*'|\"[^\"]*\"", "", condition)):
            raise ValueError(f"{name}: the marker {marker!r} asks for an extra, which nobody has chosen")
        kept = tuple(sorted(set(hashes)))
        if not kept:
            raise ValueError(f"{name} {_UNHASHED}")
        if len(kept) > MAX_HASHES:
            raise ValueError(f"{name} has over {MAX_HASHES} hashes")
        if (bad := next((one for one in kept if not _HASH.fullmatch(one)), None)) is not None:
            raise ValueError(f"{name}: {bad[:80]!r} is no hash that counts; give sha256, sha384 or sha512")
        return cls(canonicalize_name(name), exact, condition, kept)

    @property
    def line(self) -> str:
        """The pin as a line of a lock."""
        condition = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}=={self.version}{condition}" + "".join(f" --hash={one}" for one in self.hashes)


def write_lock(pins: Iterable[Pin]) -> bytes:
    """Return the lock of these pins, the same for the same pins in any order. Raises: InvalidTask as ``check_pins``."""
    ordered = sorted(set(pins))
    check_pins(ordered)
    data = "".join(f"{pin.line}\n" for pin in ordered).encode()
    if len(data) > MAX_LOCK_BYTES:
        raise InvalidTask(f"the lock has {sized(len(data))}, at most {sized(MAX_LOCK_BYTES)} are allowed")
    return data


def check_pins(pins: list[Pin]) -> None:
    """See that pins make one environment. Raises: InvalidTask if there are none, too many, or two of one package."""
    if not pins:
        raise InvalidTask("the lock names no package: leave --requirements out")
    if len(pins) > MAX_PINS:
        raise InvalidTask(f"the lock names {len(pins)} packages, at most {MAX_PINS} are allowed")
    for name in {pin.name for pin in pins}:
        alike = [pin for pin in pins if pin.name == name]
        if len(alike) > 1 and not all(pin.marker for pin in alike):
            raise InvalidTask(f"the lock names {name} twice, and no marker says when each of them is meant")


def read_lock(data: bytes) -> tuple[Pin, ...]:
    """Return the pins of pinned requirements with hashes, as pip and uv write them, and as a lock is kept.

    Raises: InvalidTask naming the first line that is not pinned, has no hash, or names a file instead of a package.
    """
    if len(data) > MAX_LOCK_BYTES:
        raise InvalidTask(f"the lock has {sized(len(data))}, at most {sized(MAX_LOCK_BYTES)} are allowed")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidTask("the lock is no text") from error
    pins = []
    for number, line in _logical_lines(text):
        try:
            pins.append(_pin_of(line))
        except ValueError as error:
            raise InvalidTask(f"line {number}: {error}") from error
    check_pins(pins)
    return tuple(pins)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Iterate over what is written on one line, or on several that end with a backslash; with the first one's number.

    Comments go, and so do empty lines.
    """
    begun, first = "", 0
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = _COMMENT.sub("", raw)
        first = first if begun else number
        if line.rstrip().endswith("\\"):
            begun += line.rstrip()[:-1] + " "
            continue
        whole, begun = (begun + line).strip(), ""
        if whole:
            yield first, whole
    if begun.strip():
        yield first, begun.strip()


def _pin_of(line: str) -> Pin:
    """Return the pin of a line. Raises: ValueError in the words of a person."""
    if line.startswith("-"):
        option = re.split(r"[= ]", line, maxsplit=1)[0]
        why = _OPTIONS.get(option, _FOREIGN_OPTION)
        hint = "; export with --no-emit-project" if option in {"-e", "--editable"} else "; remove the line"
        raise ValueError(f"{option} can't be taken: {why}{hint}")
    hashes = _HASH_OPTION.findall(line)
    told = _HASH_OPTION.sub("", line).strip()
    if told.startswith(_PATHS) or re.match(r"[\w.+-]+://|(git|hg|svn|bzr)\+", told):
        raise ValueError(f"{told[:80]!r} is a file or an address: name a package of the index, NAME==VERSION")
    try:
        asked = Requirement(told)
    except InvalidRequirement as error:
        raise ValueError(f"{told[:80]!r} is no requirement: write NAME==VERSION --hash=sha256:…") from error
    if asked.url is not None:
        raise ValueError(f"{asked.name} is taken from an address: name a version of the index, {asked.name}==VERSION")
    clauses = list(asked.specifier)
    if len(clauses) != 1 or clauses[0].operator != "==" or clauses[0].version.endswith(".*"):
        raise ValueError(f"{asked.name} {_UNPINNED.format(name=asked.name)}")
    return Pin.checked(asked.name, clauses[0].version, str(asked.marker or ""), hashes)
