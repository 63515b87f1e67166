"""What may be an artefact: names that any file system can write, inside of their folder, and bounded sizes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from protocol.artefacts import MAX_EPOCH_BYTES, MAX_FILE_BYTES, MAX_FILES, Artefact, bounds_fault, name_fault


@pytest.mark.parametrize("name", ["a.png", "in/b c.txt", "Bild_ä (1).png", "a/b/c", "x" * 200, "a..b"])
def test_names_that_are_sane(name: str) -> None:
    assert name_fault(name) is None
    assert Artefact(name=name, digest="f" * 64, size_bytes=0).name == name


@pytest.mark.parametrize(
    "name",
    [
        "", "/etc/passwd", "../up", "a/../../up", "a//b", ".hidden", "in/.hidden", "a/", "C:\\x", "a:b", "a*", "a?.png",
        "nul\0", "line\nbreak", "\x1b[2J", "\u202egnp.a", "x" * 201, " a", "a ", "a.",
    ],
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValidationError):
        Artefact(name=name, digest="f" * 64, size_bytes=0)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([("a", MAX_FILE_BYTES), ("b", 0)], None),
        ([], None),
        ([(f"{n}", 1) for n in range(MAX_FILES)], None),
        ([(f"{n}", 1) for n in range(MAX_FILES + 1)], "65 files, and 64 are the most"),
        ([("a", MAX_FILE_BYTES + 1)], "a has 64.0 MiB"),
        ([(f"{n}", MAX_FILE_BYTES) for n in range(MAX_EPOCH_BYTES // MAX_FILE_BYTES)], None),
        ([(f"{n}", MAX_FILE_BYTES) for n in range(5)], "the most of an epoch"),
        ([("A", 1), ("a", 1)], "upper and lower case"),
        ([("a", 1), ("../b", 1)], "'../b' is no name"),
    ],
)
def test_the_bounds_of_an_epoch(files: list[tuple[str, int]], told: str | None) -> None:
    fault = bounds_fault(files)
    assert fault is None if told is None else told in str(fault)
