"""What an installation brings, and the two commands that a newcomer types."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"
)


def names(requirements):
    return {re.split(r"[\[<>=;\s]", r, maxsplit=1)[0].lower() for r in requirements}


def test_a_volunteer_gets_no_database_driver_and_no_web_framework():
    volunteer = names(PROJECT["project"]["dependencies"]) | names(EXTRAS["client"])
    assert not volunteer & {
        "sqlmodel",
        "sqlalchemy",
        "aiosqlite",
        "alembic",
        "fastapi",
        "starlette",
        "uvicorn",
        "jinja2",
    }


def test_a_server_gets_no_gpu_library():
    assert "nvidia-ml-py" not in names(PROJECT["project"]["dependencies"]) | names(EXTRAS["server"])


def test_torch_is_pinned_for_development_and_a_range_for_others():
    assert PINS["torch"] == "2.13.0"
    assert "torch>=2.6" in EXTRAS["client"]
    assert "torch>=2.6" in EXTRAS["server"]


def test_everything_that_is_installed_directly_is_pinned():
    groups = [PROJECT["project"]["dependencies"], *EXTRAS.values(), PROJECT["dependency-groups"]["dev"]]
    direct = set().union(*map(names, groups)) - {"aifarm"}
    assert direct <= {re.sub(r"[._]", "-", name.lower()) for name in PINS}


def loaded_by(statement):
    """Return the top-level modules in a fresh interpreter after ``statement``."""
    code = f"{statement}\nimport sys; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["farm_client.cli.app", "farm_client.agent.cli"])
def test_the_volunteers_and_researchers_commands_load_neither_torch_nor_the_server_side(module):
    assert not loaded_by(f"import {module}") & {
        "torch",
        "coordinator",
        "storage",
        "farm_server",
        "sqlalchemy",
        "fastapi",
    }


@pytest.mark.parametrize("script", sorted(PROJECT["project"]["scripts"]))
def test_console_scripts_answer(script):
    done = subprocess.run([Path(sys.executable).parent / script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_make_has_the_readmes_targets():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = set(re.findall(r"^    make (\w+)", readme, re.MULTILINE))
    assert shown == {"demo", "test"}
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert shown <= targets
    helped = set(re.findall(r'@echo "make (\w+) ', makefile))
    assert targets == helped | {"help", "install"}


def test_ci_runs_the_linters_and_then_the_readmes_test_command():
    ci = ROOT / ".ci" / "run"
    assert os.access(ci, os.X_OK)
    assert "set -euo pipefail" in ci.read_text(encoding="utf-8")


ALL_OF_CI = ["install", "lint", "test", "faults", "benchmark-tests", "coverage-report"]


@pytest.mark.parametrize(
    ("failing", "asked", "passes"),
    [
        ("", ALL_OF_CI, True),
        ("lint", ALL_OF_CI[:2], False),
        ("test", [*ALL_OF_CI[:3], "again", *ALL_OF_CI[3:]], True),
        ("faults", [*ALL_OF_CI[:4], "again", *ALL_OF_CI[4:]], True),
        ("test again", [*ALL_OF_CI[:3], "again"], False),
        ("coverage-report", ALL_OF_CI, False),
    ],
)
def test_ci_asks_again_for_what_failed_and_goes_on_only_if_it_passes(tmp_path, failing, asked, passes):
    stub = tmp_path / "make"
    stub.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\ncase " {failing} " in *" $1 "*) exit 1;; esac\n')
    stub.chmod(0o755)
    clone = tmp_path / "clone" / ".ci"
    clone.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", clone)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([clone / "run"], env=environment, capture_output=True, text=True, check=False)
    assert (tmp_path / "asked").read_text().split() == asked
    assert (done.returncode == 0) == passes == ("All passed" in done.stdout)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments, cwd, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}  # make itself may run these tests
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def clone(tmp_path):
    """A folder with what make needs and no virtual environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@needs_make
def test_a_missing_python_is_named(clone):
    done = make("test", "PYTHON=python-that-is-not-there", cwd=clone)
    assert done.returncode != 0
    assert "Install Python 3.11 or newer" in done.stderr


@needs_make
def test_an_old_python_is_named(clone):
    old = clone / "python-old"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo "Python 3.9.2";; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = make("demo", f"PYTHON={old}", cwd=clone)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "3.9.2" in done.stderr


@needs_make
def test_an_installed_environment_is_not_installed_again(clone):
    stamp = clone / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "pip" not in make("--dry-run", "install", cwd=clone).stdout
    os.utime(clone / "constraints.txt", (stamp.stat().st_mtime + 10,) * 2)
    assert "pip" in make("--dry-run", "install", cwd=clone).stdout
