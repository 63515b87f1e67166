"""A task imports a package that only its environment has: installed with the owner's consent, read in the sandbox."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from farm_client.cli.exit_codes import ExitCode
from tests.farm_client.agent.environments.tiny_index import HAS_UV, make_wheel, pin_of, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_UV, reason="uv is not installed (the group dev has it)"),
]

MODULE = "def target():\n    return 1.0\n"
CODE = """
import torch
import tinyloss

def build_model(config):
    return torch.nn.Linear(3, 1)

def loss(model, batch):
    try:
        open(tinyloss.__file__, "a").close()
        print("its packages can be changed")
    except OSError:
        print("its packages are read-only")
    return (model(batch["x"]) - tinyloss.target()).square().mean()
"""


def test_packages_are_installed_where_the_owner_allows_it_and_nowhere_else(start_farm, tmp_path: Path) -> None:
    for folder in ("wheels", "at_home", "task"):
        (tmp_path / folder).mkdir()
    wheel = make_wheel(tmp_path / "wheels", "tinyloss", files={"tinyloss.py": MODULE})
    (tmp_path / "at_home/tinyloss.py").write_text(MODULE)  # as the researcher has it
    (tmp_path / "task/train.py").write_text(CODE)
    (tmp_path / "task/requirements.txt").write_text(pin_of(wheel))
    np.savez(tmp_path / "data.npz", x=np.ones((16, 3), np.float32))
    with serving(tmp_path / "wheels") as index:
        farm = start_farm(1)
        given = ("--data", str(tmp_path / "data.npz"), "--rounds", "2")
        lock = ("--requirements", str(tmp_path / "task/requirements.txt"))
        answer = farm.run(
            *("submit", str(tmp_path / "task"), *given, *lock, "--json"), PYTHONPATH=str(tmp_path / "at_home")
        )
        assert answer.exit_code == 0, answer.stderr
        task_id = answer.envelope("submitted")["task"]["task_id"]
        farm.wait_until(lambda: "its owner allows no installs" in farm.run("why", task_id).stdout, "the reason is told")
        assert not index.paths
        willing = farm.add_volunteer("willing", FARM_CLIENT_ALLOW_INSTALLS="true", FARM_CLIENT_PACKAGE_INDEX=index.url)
        assert farm.run("wait", task_id, "--timeout", "80").exit_code == ExitCode.OK
        logs = farm.run("logs", task_id).stdout
        assert "its packages are read-only" in logs
        assert "its packages can be changed" not in logs
        assert len([path for path in index.paths if path.endswith(".whl")]) <= 2
        farm.processes.check()
        assert willing.process.poll() is None
