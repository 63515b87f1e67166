"""Reads ``uv.lock``: the packages that a project needs, and for each on which machines it needs it.

The file is a graph: each package names those that it depends on, with a marker at the edge. A package is needed where
all markers of some way from the project to it hold. Source: https://docs.astral.sh/uv/concepts/projects/layout/, and
files that uv 0.13 wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from farm_client.sdk.lock_files.toml_lines import EntryLines, read_toml, tables
from protocol.errors import InvalidTask
from protocol.locks import Pin

_VERSION: Final = 1
_MOST_WAYS: Final = 64
"""Conditions that differ, on the ways to one package. More are written by nobody."""
_OF_A_PROJECT: Final = ("virtual", "editable")
_EXPORT: Final = "write `uv export --format requirements-txt --no-emit-project > requirements.txt`, and submit that"

Way = frozenset[str]
"""The markers that must all hold; empty: always."""
Node = tuple[int, str]
"""A package's index, and one of its extras, or none."""


def read_uv_lock(text: str) -> list[Pin]:
    """Return the pins of what the project of a ``uv.lock`` depends on, without its groups and extras.

    Raises: InvalidTask naming the line of the first package that volunteers could not install.
    """
    document = read_toml(text)
    if document.get("version") != _VERSION:
        raise InvalidTask(
            f"it is version {document.get('version')!r} of uv's lock, and {_VERSION} is known here; {_EXPORT}"
        )
    graph = _Graph(tables(document, "package"), EntryLines(text, "package"))
    return [graph.pin(index, ways) for index, ways in sorted(graph.needed().items())]


@dataclass(slots=True)
class _Graph:
    packages: list[dict[str, Any]]
    lines: EntryLines
    ways: dict[Node, set[Way]] = field(default_factory=dict)

    def needed(self) -> dict[int, set[Way]]:
        """Return the packages that are needed, by index, each with the ways that lead to it."""
        roots = [index for index, package in enumerate(self.packages) if _source(package) in _OF_A_PROJECT]
        depended = {edge.get("name") for package in self.packages for edge in _all_edges(package)}
        roots = [index for index in roots if self.packages[index].get("name") not in depended]
        if not roots:
            raise InvalidTask(f"it has no project at its root; {_EXPORT}")
        pending: list[tuple[Node, Way]] = [((root, ""), Way()) for root in roots]
        while pending:
            node, way = pending.pop()
            if self._take(node, way):
                pending += self._follow(node, way)
        return {index: ways for (index, extra), ways in self.ways.items() if not extra and index not in roots}

    def _take(self, node: Node, way: Way) -> bool:
        """Note a way to a package; return whether it adds anything to those that are known."""
        known = self.ways.setdefault(node, set())
        if any(other <= way for other in known):
            return False
        known -= {other for other in known if way <= other}
        known.add(way)
        if len(known) > _MOST_WAYS:
            raise self.lines.error(node[0], f"its markers are too many to be followed; {_EXPORT}")
        return True

    def _follow(self, node: Node, way: Way) -> Iterator[tuple[Node, Way]]:
        index, extra = node
        package = self.packages[index]
        edges = tables(package.get("optional-dependencies", {}), extra) if extra else tables(package, "dependencies")
        for edge in edges:
            target = self._target(index, edge)
            longer = way | {str(edge["marker"])} if edge.get("marker") else way
            yield (target, ""), longer
            for wanted in edge.get("extra", ()):
                yield (target, str(wanted)), longer

    def _target(self, index: int, edge: Mapping[str, Any]) -> int:
        """Return the index of the package that an edge leads to: of several versions the edge names one."""
        named = [key for key in ("name", "version", "source") if key in edge]
        for number, package in enumerate(self.packages):
            if all(package.get(key) == edge[key] for key in named):
                return number
        raise self.lines.error(index, f"it depends on {edge.get('name')!r}, which the file does not have")

    def pin(self, index: int, ways: set[Way]) -> Pin:
        package = self.packages[index]
        name, source = str(package.get("name", "")), _source(package)
        if source != "registry":
            raise self.lines.error(index, f"{name} is of source {source!r}: volunteers install from an index alone")
        wheels = tables(package, "wheels")
        if not wheels:
            raise self.lines.error(
                index, f"{name} has no wheel, and volunteers build nothing: take a version that has one"
            )
        hashes = [str(wheel["hash"]) for wheel in wheels if "hash" in wheel]
        try:
            return Pin.checked(name, str(package.get("version", "")), _as_marker(ways), hashes)
        except ValueError as error:
            raise self.lines.error(index, error) from error


def _source(package: Mapping[str, Any]) -> str:
    """Return the kind of a package's source: registry, git, url, path, directory, editable or virtual."""
    source = package.get("source")
    return next(iter(source), "") if isinstance(source, dict) else ""


def _all_edges(package: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from tables(package, "dependencies")
    for extra in package.get("optional-dependencies", {}):
        yield from tables(package["optional-dependencies"], extra)


def _as_marker(ways: set[Way]) -> str:
    """Return the marker that holds where one of the ways does."""
    if Way() in ways:
        return ""
    return " or ".join(sorted(" and ".join(f"({marker})" for marker in sorted(way)) for way in ways))
