"""``on_epoch_end`` in the executor: what the function is given, and what becomes of what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from farm_client.executor.epoch_end import files_left
from farm_client.executor.failures import CodeError
from farm_client.executor.messages import Done
from protocol.assignments import Kind
from tests.farm_client.executor.bench_task import LINEAR, Bench
from tests.farm_client.executor.test_schedules import rehearsed

WRITES = (
    LINEAR
    + """
    def on_epoch_end(model, epoch, out):
        assert not model.training and not torch.is_grad_enabled()
        assert list(out.iterdir()) == []
        (out / "in").mkdir()
        (out / "in" / "told.txt").write_text(f"{epoch}: {model.weight.sum().item():.6f}")
        (out / "empty").touch()
        with torch.no_grad():
            model.weight.zero_()
"""
)
FAILS = LINEAR + "\n    def on_epoch_end(model, epoch, out):\n        raise KeyError(epoch)\n"


def end(bench: Bench, epoch: int = 3) -> Done:
    return bench.runner.run(bench.run_order(Kind.EPOCH_END, epoch=epoch, pieces=()), bench._progress())


def test_it_sees_the_versions_weights_and_leaves_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path, WRITES)
    done = end(bench)
    assert [file.name for file in done.left] == ["empty", "in/told.txt"]
    told = f"3: {bench.whole()['weight'].sum().item():.6f}"
    assert [Path(file.path).read_text() for file in done.left] == ["", told]
    assert (done.update, done.update_path, done.metrics, done.samples) == (None, None, {}, 1)
    again = end(bench, 4)
    assert Path(again.left[1].path).read_text() == told.replace("3:", "4:"), "what it changed of the model is gone"


def test_training_after_it_is_the_same_to_the_bit(tmp_path: Path) -> None:
    with_end, without = Bench(tmp_path / "with", WRITES), Bench(tmp_path / "without", LINEAR)
    end(with_end)
    updates = [bench.train().update for bench in (with_end, without)]
    assert updates[0] == updates[1]
    assert with_end.runner.tensors.model.training


def test_a_failure_names_the_line(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FAILS)
    with pytest.raises(CodeError, match=r"task_\d+\.py:\d+, in on_epoch_end: KeyError: 3"):
        end(bench)
    assert bench.train().samples


def test_links_and_what_is_over_the_bounds_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()

    def refused(leave: object) -> str:
        with pytest.raises(CodeError) as caught:
            files_left(leave, tmp_path)  # type: ignore[arg-type]  # a function of one path
        return caught.value.message

    assert "left a, which is no plain file" in refused(lambda out: (out / "a").symlink_to("/etc/passwd"))
    assert "left a, which is no plain file" in refused(lambda out: (out / "a").symlink_to(secret))
    assert "'.hidden' is no name" in refused(lambda out: (out / ".hidden").touch())
    assert "65 files" in refused(lambda out: [(out / str(n)).touch() for n in range(80)])
    deep = "/".join("d" * 9)
    assert "no plain file" in refused(lambda out: (out / deep).mkdir(parents=True))


def test_a_folder_that_is_made_anew_for_each_call(tmp_path: Path) -> None:
    assert [file.name for file in files_left(lambda out: (out / "a").touch(), tmp_path)] == ["a"]
    assert files_left(lambda out: None, tmp_path) == ()


def test_submitting_tries_it_and_says_so(tmp_path: Path) -> None:
    assert rehearsed(tmp_path / "with", WRITES).epoch_end
    assert not rehearsed(tmp_path / "without", LINEAR).epoch_end
    failed = rehearsed(tmp_path / "fails", FAILS).failed
    assert failed is not None
    assert "in on_epoch_end: KeyError: 0" in failed.message


COMPUTES = (
    LINEAR
    + """
    def on_epoch_end(model, epoch, out):
        torch.save(model(torch.ones(1, 3)), out / "y.pt")
"""
)


def test_it_may_compute_on_the_model(tmp_path: Path) -> None:
    bench = Bench(tmp_path, COMPUTES)
    (file,) = end(bench).left
    weights = bench.whole()
    expected = torch.ones(1, 3) @ weights["weight"].T + weights["bias"]
    assert torch.allclose(torch.load(file.path), expected)
