"""`farm pull --format onnx`: what is fetched for it, and what is left where it can't be done."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from farm_client import Farm
from farm_client.executor.messages import Failed
from farm_client.executor.rehearsal_records import ExportReport, ExportRequest
from farm_client.sdk import onnx_file
from farm_client.sdk.api import FarmApi
from farm_client.sdk.bundle import make_bundle
from farm_client.sdk.check import CheckFailed
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import BadOutput, MissingLibrary
from farm_client.sdk.farm import Task
from protocol.digests import digest_bytes
from protocol.rest import TaskDetail
from protocol.tasks import BaseFile, BlobRef, Dataset, Shard, Split
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm, answer, make_spec

W = torch.arange(3.0)


class Exporting:
    """A farm with a trained task whose data are files, and a stand-in for the process that exports."""

    def __init__(self, folder: Path) -> None:
        (folder / "train.py").write_text("x = 1\n")
        bundle = make_bundle(folder / "train.py")
        about = {"format": "aifarm-weights-1", "roles": json.dumps({"w": "parameter"}), "tied": "{}"}
        weights = safetensors.torch.save({"w": W}, about)
        self.blobs = {digest_bytes(data): data for data in (bundle.data, weights, b"shard", b"a larger shard", b"{}")}
        self.fake = FakeFarm(blobs=self.blobs, model_digest=digest_bytes(weights))
        shards = (
            self.shard(0, b"a larger shard", Split.TRAIN, 20),
            self.shard(1, b"shard", Split.TRAIN, 5),
            self.shard(2, b"{}", Split.HOLDOUT, 1),
        )
        base = (BaseFile(path="sub/config.json", blob=self.blob(b"{}")),)
        dataset = Dataset(kind="files", shards=shards)
        changes = {"code": bundle.blob, "entry": "train.py", "base": base, "dataset": dataset}
        self.spec = make_spec().model_copy(update=changes)
        self.report: ExportReport | None = ExportReport()
        self.asked: ExportRequest | None = None
        self.output = folder / "out" / "model.onnx"

    def blob(self, data: bytes) -> BlobRef:
        return BlobRef(digest=digest_bytes(data), size_bytes=len(data))

    def shard(self, index: int, data: bytes, split: Split, samples: int) -> Shard:
        return Shard(index=index, split=split, samples=samples, blob=self.blob(data))

    @property
    def task(self) -> Task:
        detail = TaskDetail(task=self.fake.tasks[0], spec=self.spec, rounds=())
        self.fake.overrides["GET", f"/v1/tasks/{detail.task.task_id}"] = lambda: answer(detail)
        return Farm.over(FarmApi(parse_address(ADDRESS, "test"), self.fake.transport())).task("digits")

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        asked, report = map(Path, command[-2:])
        self.asked = ExportRequest.model_validate_json(asked.read_bytes())
        self.found = {p.relative_to(asked.parent).as_posix() for p in asked.parent.rglob("*") if p.is_file()}
        self.weights = safetensors.torch.load_file(self.asked.model_path)
        if self.report is not None:
            report.write_text(self.report.model_dump_json())
            Path(self.asked.output).write_bytes(b"onnx")
        return subprocess.CompletedProcess(command, 3)


@pytest.fixture
def exporting(tmp_path: Path, monkeypatch) -> Exporting:
    made = Exporting(tmp_path)
    monkeypatch.setattr(subprocess, "run", made.run)
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: name)
    return made


def test_code_base_weights_and_the_smallest_shard_are_fetched(exporting: Exporting) -> None:
    assert exporting.task.pull(exporting.output, format="onnx") == exporting.output
    assert exporting.output.read_bytes() == b"onnx"
    assert {"code/train.py", "base/sub/config.json", "shard.safetensors", "model.safetensors"} <= exporting.found
    asked = exporting.asked
    assert asked is not None
    assert (asked.piece.shard, asked.piece.start, asked.piece.stop) == (1, 0, 5)
    assert Path(asked.piece.path or "").name == "shard.safetensors"
    assert Path(asked.order.settings["base"]).name == "base"
    assert torch.equal(exporting.weights["w"], W)
    assert [path.name for path in exporting.output.parent.iterdir()] == ["model.onnx"], "nothing else is left"


def test_a_data_set_that_code_makes_needs_no_file(exporting: Exporting) -> None:
    shards = tuple(Shard(index=i, split=Split.TRAIN, samples=20, start=20 * i) for i in (0, 1))
    exporting.spec = exporting.spec.model_copy(update={"dataset": Dataset(kind="code", shards=shards), "base": ()})
    exporting.task.pull(exporting.output, format="onnx")
    asked = exporting.asked
    assert asked is not None
    assert (asked.piece.shard, asked.piece.stop, asked.piece.path) == (0, 8, None)
    assert asked.order.base_dir is None
    assert asked.order.dataset_kind == "code"


def test_what_the_code_does_wrong_is_raised_with_its_traceback(exporting: Exporting) -> None:
    exporting.report = ExportReport(
        failed=Failed(assignment_id=None, code="task_code", message="it can't be", scope="nobody", traceback="line 3")
    )
    with pytest.raises(CheckFailed, match="it can't be") as raised:
        exporting.task.pull(exporting.output, format="onnx")
    assert raised.value.trace == "line 3"
    assert list(exporting.output.parent.iterdir()) == []


def test_a_process_that_ends_without_a_word_is_told_of(exporting: Exporting) -> None:
    exporting.report = None
    with pytest.raises(CheckFailed, match="ended with code 3"):
        exporting.task.pull(exporting.output, format="onnx")
    assert list(exporting.output.parent.iterdir()) == []


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_what_must_be_installed_is_said_before_anything_is_fetched(exporting, library: str, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == library else name)
    with pytest.raises(MissingLibrary, match=rf"needs {library}: pip install 'aifarm\[onnx\]'"):
        exporting.task.pull(exporting.output, format="onnx")
    assert not exporting.output.parent.exists()


def test_a_folder_is_no_place_for_it(exporting: Exporting, tmp_path: Path) -> None:
    with pytest.raises(BadOutput):
        exporting.task.pull(tmp_path, format="onnx")
