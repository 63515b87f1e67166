"""Real installations by uv, from wheels made here and an index on loopback."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from farm_client.agent.environments import installer
from farm_client.agent.environments.installer import InstallBounds, command, find_uv, install
from farm_client.agent.errors import NoEnvironment
from protocol.locks import read_lock
from tests.farm_client.agent.environments.tiny_index import (
    HAS_UV,
    TinyIndex,
    make_sdist,
    make_wheel,
    names_in,
    pin_of,
    serving,
)

pytestmark = pytest.mark.skipif(not HAS_UV, reason="uv is not installed (the group dev has it)")
BOUNDS = InstallBounds(60.0, 50 * 1024**2)


@pytest.fixture
def index(tmp_path: Path):
    (tmp_path / "wheels").mkdir()
    with serving(tmp_path / "wheels") as index:
        yield index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "building/packages").mkdir(parents=True)
    return tmp_path / "building"


async def install_lines(index: TinyIndex, folder: Path, *lines: str, bounds: InstallBounds = BOUNDS) -> None:
    await install(read_lock("\n".join(lines).encode()), folder, bounds, index.url)


async def test_wheels_are_installed_with_their_bytecode_and_without_their_dependencies(
    index: TinyIndex, folder: Path
) -> None:
    one, two = make_wheel(index.folder, "tinyone"), make_wheel(index.folder, "tinytwo", "2.0")
    make_wheel(index.folder, "tinytwo", "3.0")
    sizes: list[int] = []
    await install(read_lock(f"{pin_of(one)}\n{pin_of(two)}".encode()), folder, BOUNDS, index.url, sizes.append)
    packages = folder / "packages"
    assert (packages / "tinyone.py").read_text() == "VERSION = '1.0'\n"
    assert (packages / "tinytwo.py").read_text() == "VERSION = '2.0'\n"
    assert (packages / "tinytwo-2.0.dist-info").is_dir()
    assert list((packages / "__pycache__").glob("tinyone.*.pyc"))
    assert sizes[-1] > 0
    assert ".lock" not in names_in(packages)


async def test_a_file_of_another_hash_is_refused(index: TinyIndex, folder: Path) -> None:
    wheel = make_wheel(index.folder, "tinyone")
    line = pin_of(wheel)
    make_wheel(index.folder, "tinyone", files={"extra.py": "changed = True"})
    with pytest.raises(NoEnvironment, match=r"(?i)hash mismatch"):
        await install_lines(index, folder, line)
    assert names_in(folder / "packages") == [".lock"], "uv's own"


async def test_a_source_archive_is_refused_and_not_built(index: TinyIndex, folder: Path) -> None:
    with pytest.raises(NoEnvironment, match=r"(?i)wheel|binary") as told:
        await install_lines(index, folder, pin_of(make_sdist(index.folder, "tinysource")))
    assert "it was built" not in told.value.message
    assert names_in(folder / "packages") == [".lock"], "uv's own"


async def test_what_the_index_has_not_is_said_without_the_index(index: TinyIndex, folder: Path) -> None:
    with pytest.raises(NoEnvironment, match="tinynone") as told:
        await install_lines(index, folder, "tinynone==1.0 --hash=sha256:" + "0" * 64)
    assert told.value.message.startswith("uv could not install it: ")
    assert "127.0.0.1" not in told.value.message


async def test_an_installation_that_is_cancelled_ends_with_uv(index: TinyIndex, folder: Path) -> None:
    index.gate.clear()
    doing = asyncio.create_task(install_lines(index, folder, pin_of(make_wheel(index.folder, "tinyone"))))
    await asyncio.to_thread(index.asked.wait)
    assert uvs()
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    assert not uvs()


def uvs() -> list[psutil.Process]:
    """List the children of this process that are uv, or are to become it."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "pip" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE]


async def test_an_installation_has_an_end(index: TinyIndex, folder: Path) -> None:
    index.gate.clear()
    lines = pin_of(make_wheel(index.folder, "tinyone"))
    with pytest.raises(NoEnvironment, match="the installation took over 1 s"):
        await install_lines(index, folder, lines, bounds=InstallBounds(1.0, 50 * 1024**2))
    assert not uvs()


async def test_an_installation_may_fill_only_so_much(
    index: TinyIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "_MEASURE_SECONDS", 0.02)
    index.gate.clear()
    (folder / "cache").mkdir()
    (folder / "cache/large").write_bytes(b"0" * 5000)
    with pytest.raises(NoEnvironment, match=r"it takes over 4\.9 KiB, the most that this machine keeps"):
        await install_lines(
            index, folder, pin_of(make_wheel(index.folder, "tinyone")), bounds=InstallBounds(60.0, 4999)
        )
    assert not uvs()


async def test_nothing_to_install_asks_nobody(index: TinyIndex, folder: Path) -> None:
    await install((), folder, BOUNDS, index.url)
    assert not index.paths


async def test_without_uv_the_way_to_it_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "find_uv", lambda: None)
    with pytest.raises(NoEnvironment, match=r"pip install 'aifarm\[installs\]'"):
        await install((), folder, BOUNDS)


def test_uv_is_the_wheels_or_that_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_uv() is None
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o700)
    assert find_uv() == tmp_path / "uv"


@pytest.mark.parametrize(
    ("setting", "variable", "told"),
    [("http://a", "http://b", "http://a"), (None, "http://b", "http://b"), (None, None, None)],
)
def test_the_index_is_the_settings_then_pips_then_uvs_own(
    setting: str | None, variable: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    if variable is not None:
        monkeypatch.setenv("PIP_INDEX_URL", variable)
    said = command(Path("uv"), Path("folder"), setting)
    assert (said[said.index("--default-index") + 1] if "--default-index" in said else None) == told
    assert {"--require-hashes", "--no-deps", "--no-config", "--only-binary"} <= set(said)


def test_uv_gets_no_secret_of_the_agents() -> None:
    given = {"PATH": "/bin", "HTTPS_PROXY": "http://proxy", "FARM_TOKEN": "secret", "UV_PUBLISH_TOKEN": "secret"}
    assert installer._environment(given) == {"PATH": "/bin", "HTTPS_PROXY": "http://proxy"}
