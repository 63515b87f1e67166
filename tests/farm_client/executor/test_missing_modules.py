"""A module that a machine lacks is that machine's lack; one that the submitted code lacks is the code's fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from farm_client.executor.failures import CodeError, MissingModule, as_failed
from farm_client.sdk.check import CheckFailed, check_task
from protocol.messages import Scope
from tests.farm_client.executor.bench_task import LINEAR, Bench, write_code

LACKS = {
    "at import": ("    import notamodule\n" + LINEAR, r"task_\d+\.py:1: ModuleNotFoundError: No module named 'notam"),
    "inside loss": (
        LINEAR.replace("return nn.functional", "import notamodule.part; return nn.functional"),
        "in loss: ModuleNotFoundError",
    ),
    "a library of one": (
        LINEAR.replace("return nn.functional", "raise ImportError('libGL.so.1: cannot open shared object file'); nn.f"),
        "in loss: ImportError: libGL",
    ),
}


@pytest.mark.parametrize("lack", list(LACKS))
def test_a_module_that_is_not_installed_is_this_machines_lack(tmp_path: Path, lack: str) -> None:
    source, sentence = LACKS[lack]
    with pytest.raises(MissingModule, match=sentence + ".*submit the folder that holds it; one that is") as told:
        Bench(tmp_path, source).train()
    failed = as_failed(told.value, "a")
    assert (failed.code, failed.scope) == ("missing_module", Scope.ELSEWHERE)
    assert "Traceback" in (failed.traceback or "")


def test_a_part_of_the_submitted_code_that_is_missing_is_the_codes_fault(tmp_path: Path) -> None:
    for package, line in (("parts_one", "import parts_one.lost"), ("parts_two", "from parts_two import lost")):
        write_code(tmp_path / "code" / package, "", "__init__.py")
        with pytest.raises(CodeError) as failed:
            Bench(tmp_path, f"    {line}\n" + LINEAR)
        assert as_failed(failed.value, "a").scope is Scope.NOBODY
        shutil.rmtree(tmp_path / "shards")


def test_a_module_beside_the_submitted_file_is_pointed_out(tmp_path: Path) -> None:
    entry = write_code(tmp_path, "    import helper_beside_it\n" + LINEAR)
    write_code(tmp_path, "VALUE = 1", "helper_beside_it.py")
    with pytest.raises(CheckFailed, match="helper_beside_it is beside your file: submit the folder") as failed:
        check_task(tmp_path / entry, {}, [])
    assert str(tmp_path) in failed.value.message
