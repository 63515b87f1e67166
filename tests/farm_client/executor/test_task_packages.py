"""A task's packages on an executor's path: before what is installed, behind Python's own, and never the farm's own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from farm_client.executor.task_packages import OWN_MODULES, ShadowsOwn, shadowed, use_packages

PROGRAM = """
    import sys
    from pathlib import Path
    from farm_client.executor.task_packages import use_packages
    use_packages(Path(sys.argv[1]))
    import tinyone, json, typer
    print(tinyone.__file__, json.__file__, typer.__file__)
"""


def test_its_packages_come_before_the_installed_and_after_pythons(tmp_path: Path) -> None:
    for name in ("tinyone", "json", "typer"):
        (tmp_path / f"{name}.py").write_text("")
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [Path(file).parent == tmp_path for file in said] == [True, False, True]


@pytest.mark.parametrize("name", OWN_MODULES)
@pytest.mark.parametrize("form", ["{}.py", "{}", "{}.cpython-311-x86_64-linux-gnu.so"])
def test_what_would_be_the_farms_own_is_named(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / "einops.py").write_text("")
    assert shadowed(tmp_path) is None
    (tmp_path / form.format(name)).write_text("")
    assert shadowed(tmp_path) == name
    before = list(sys.path)
    with pytest.raises(ShadowsOwn, match=f"this machine's own {name}"):
        use_packages(tmp_path)
    assert sys.path == before


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        use_packages(tmp_path / "none")
