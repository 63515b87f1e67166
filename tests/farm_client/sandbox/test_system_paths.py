"""What of the machine is seen inside: enough for Python and torch, and nothing of a home."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from farm_client.sandbox import system_paths
from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.system_paths import interpreter_view


def test_the_interpreter_and_the_system_are_seen() -> None:
    view = interpreter_view()
    for needed in (Path(sys.prefix), Path(sys.executable).resolve(), Path("/usr"), Path(system_paths.__file__)):
        assert any(needed.is_relative_to(path) for path in view.read_only), needed


def test_no_folder_is_seen_twice_and_nothing_above_a_home() -> None:
    read_only = interpreter_view().read_only
    assert len(set(read_only)) == len(read_only)
    assert not [path for path in read_only if any(path != other and path.is_relative_to(other) for other in read_only)]
    assert not [path for path in read_only if Path.home().is_relative_to(path)]


def test_of_etc_only_what_loads_libraries_and_tells_the_time_is_seen() -> None:
    seen = [path for path in interpreter_view().read_only if path.is_relative_to("/etc")]
    assert Path("/etc") not in seen
    assert not {"passwd", "shadow", "ssl", "hostname", "hosts"} & {path.name for path in seen}


def test_a_secret_in_what_must_be_seen_is_refused_with_what_to_do() -> None:
    inside = Path(sys.prefix) / "home"
    with pytest.raises(SandboxUnavailable, match=r"--home"):
        interpreter_view(hidden=(inside,))


def test_packages_that_an_installer_linked_are_seen_where_they_lie(tmp_path: Path) -> None:
    store, packages = tmp_path / "store" / "abc", tmp_path / "site-packages"
    for name in ("one/__init__.py", "two/deep/module.py"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).touch()
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
    (packages / "one/__init__.py").symlink_to(store / "one/__init__.py")
    (packages / "single").symlink_to(store / "two")
    assert set(system_paths._linked_roots(packages)) == {store, store / "two"}


def test_the_folder_of_all_of_sys_is_seen_only_with_an_accelerator(tmp_path: Path) -> None:
    assert Path("/sys") not in interpreter_view().read_only
    device = tmp_path / "nvidia0"
    view = interpreter_view((device,))
    assert Path("/sys") in view.read_only
    assert view.devices == (device,)


def test_a_test_s_own_package_is_seen_when_its_module_is_run() -> None:
    tests = Path(__file__).parents[2]
    assert not any(tests.is_relative_to(path) for path in interpreter_view().read_only)
    assert any(tests.is_relative_to(path) for path in interpreter_view(package="tests.farm_client").read_only)
