"""A model that can't be compiled here runs as it is written; an error of the model itself stays one."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._inductor.exc import InvalidCxxCompiler

from farm_client.executor.compiling import forgo, has_failed
from farm_client.executor.failures import CodeError


def caused_by(cause: BaseException, *, named: bool) -> BaseException:
    """Return an error as it is caught: raised while another was handled, or from it by name."""
    try:
        try:
            raise cause
        except type(cause):
            if named:
                raise CodeError("loss raised") from cause
            raise CodeError("loss raised")  # noqa: B904  what is tested
    except CodeError as error:
        return error


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("cause", [Unsupported("a graph break"), InvalidCxxCompiler()], ids=["dynamo", "inductor"])
def test_an_error_of_the_compilers_is_found_below_the_codes(cause: BaseException, named: bool) -> None:
    assert has_failed(caused_by(cause, named=named))
    assert has_failed(cause)


@pytest.mark.parametrize("named", [True, False])
def test_an_error_of_the_model_is_none_of_the_compilers(named: bool) -> None:
    assert not has_failed(caused_by(RuntimeError("shapes do not match"), named=named))
    assert not has_failed(torch.OutOfMemoryError("torch._dynamo is only in the text"))


@pytest.fixture
def stances(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record how compiled models are to run from now on; this process's own stay as they were."""
    stances: list[str] = []
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    return stances


def test_to_forgo_it_is_said_in_the_researchers_log(stances: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    forgo()
    assert stances == ["force_eager"]
    assert capsys.readouterr().err == "note: the model can't be compiled on this machine: it runs as it is written\n"
