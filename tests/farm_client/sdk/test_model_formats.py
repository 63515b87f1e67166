"""The forms in which a model is pulled, from Python and by their names; no library of a format's own is needed here."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from farm_client import AsyncFarm, Farm
from farm_client.executor.model_files import ADAPTER_CONFIG, CONFIG, adapter_name, base_name
from farm_client.sdk.api import FarmApi
from farm_client.sdk.async_farm import AsyncTask
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import BadFormat, BadOutput, MissingLibrary
from farm_client.sdk.farm import Task
from farm_client.sdk.merging import merge_adapter
from farm_client.sdk.model_folder import pull_folder
from farm_client.sdk.model_formats import MODEL_FILE, WrittenAs
from protocol.digests import digest_bytes
from protocol.errors import NotFound
from protocol.rest import TaskDetail
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm, answer, make_spec

W = torch.arange(3.0)


@pytest.fixture
def task() -> Task:
    """A task of a farm, whose model has one tensor, and which recorded an adapter but no base for it."""
    return task_with({ADAPTER_CONFIG: {"r": 8}})


def task_with(model_files: dict[str, object]) -> Task:
    about = {"format": "aifarm-weights-1", "roles": json.dumps({"w": "parameter"}), "tied": "{}"}
    weights = safetensors.torch.save({"w": W}, about)
    fake = FakeFarm(blobs={digest_bytes(weights): weights}, model_digest=digest_bytes(weights))
    detail = TaskDetail(task=fake.tasks[0], spec=make_spec().model_copy(update={"model_files": model_files}), rounds=())
    fake.overrides["GET", f"/v1/tasks/{detail.task.task_id}"] = lambda: answer(detail)
    return Farm.over(FarmApi(parse_address(ADDRESS, "test"), fake.transport())).task("digits")


def test_without_a_format_a_model_is_a_file_of_safetensors(task: Task, tmp_path: Path) -> None:
    path = task.pull(tmp_path / "w")
    assert torch.equal(safetensors.torch.load_file(path)["w"], W)


def test_a_file_for_torch_is_loaded_without_unpickling_code(task: Task, tmp_path: Path) -> None:
    path = task.pull(tmp_path / "w.pt", format="torch")
    assert torch.equal(torch.load(path, weights_only=True)["w"], W)
    assert [one.name for one in tmp_path.iterdir()] == ["w.pt"]


@pytest.mark.parametrize(
    ("name", "written"), [("safetensors", MODEL_FILE), ("torch", "model.pt"), ("hf", "model"), ("onnx", "model.onnx")]
)
def test_a_format_has_a_suffix_where_nobody_gave_a_name(name: str, written: str) -> None:
    form = WrittenAs.named(name)
    assert form.place(MODEL_FILE) == Path(written)
    assert form.place(Path("a/own.bin")) == Path("a/own.bin")


def test_python_writes_where_the_command_line_would(task: Task, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert task.pull(format="torch") == Path("model.pt")
    assert Path("model.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"format": "pickle"}, "no format 'pickle': a model is written as safetensors, torch, hf, onnx"),
        ({"format": "torch", "merged": True}, "in the format hf alone"),
        ({"merged": True}, "in the format hf alone"),
    ],
)
def test_a_form_that_is_none_is_refused_before_the_farm_is_asked(task: Task, arguments, said: str) -> None:
    task._api.close()
    with pytest.raises(BadFormat, match=said):
        task.pull("x", **arguments)


def test_an_event_loop_gets_the_same_forms(task: Task, tmp_path: Path) -> None:
    path = asyncio.run(AsyncTask(task).pull(tmp_path / "w.pt", format="torch"))
    assert torch.equal(torch.load(path, weights_only=True)["w"], W)
    with pytest.raises(BadFormat):
        asyncio.run(AsyncTask(task).pull(tmp_path / "x", format="torch", merged=True))
    assert AsyncFarm.submit is not Farm.submit


@pytest.mark.parametrize(
    ("model_files", "said"),
    [
        ({}, "recorded no model of transformers"),
        ({CONFIG: {}}, "is no adapter: pull it without --merged"),
        ({ADAPTER_CONFIG: {}}, "recorded no base that its adapter can be merged into: pull it without --merged"),
    ],
)
def test_what_can_not_be_merged_is_said_before_anything_is_fetched(model_files, said: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=said):
        task_with(model_files).pull(tmp_path / "out", format="hf", merged=True)
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_written_over(task: Task, tmp_path: Path) -> None:
    with pytest.raises(BadOutput, match="is there already"):
        pull_folder(task._api, task.found(), tmp_path, merged=True)


@pytest.mark.parametrize(
    ("own", "adapters", "bases"),
    [
        ("base_model.model.lm.q.base_layer.weight", None, "lm.q.weight"),
        ("base_model.model.lm.q.base_layer.weight.absmax", None, "lm.q.weight.absmax"),
        ("base_model.model.lm.norm.weight", None, "lm.norm.weight"),
        ("base_model.model.lm.q.lora_A.default.weight", "base_model.model.lm.q.lora_A.weight", None),
        ("base_model.model.head.original_module.bias", None, "head.bias"),
        ("base_model.model.head.modules_to_save.default.bias", "base_model.model.head.bias", None),
        ("base_model.model.e.lora_embedding_A.default", "base_model.model.e.lora_embedding_A", None),
    ],
)
def test_a_tensor_is_the_adapters_or_the_bases(own: str, adapters: str | None, bases: str | None) -> None:
    assert (adapter_name(own), base_name(own)) == (adapters, bases)


@pytest.mark.parametrize("library", ["peft", "transformers"])
def test_merging_names_the_library_that_is_not_here(library: str, tmp_path: Path, monkeypatch) -> None:
    for name in ("peft", "transformers"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibrary, match=rf"{library}: pip install 'aifarm\[hf\]'"):
        merge_adapter(tmp_path, tmp_path, tmp_path / "out")


def stand_in(monkeypatch, missing: list[str]) -> list[str]:
    """Put libraries in the place of the real ones, which take seconds; return what their calls note."""
    calls: list[str] = []

    class Base:
        @classmethod
        def from_pretrained(cls, folder, *, dtype, output_loading_info):
            calls.append("load")
            return cls(), {"missing_keys": missing}

        def dequantize(self):
            calls.append("dequantize")
            return self

    class Adapted:
        @classmethod
        def from_pretrained(cls, base, folder):
            return cls()

        def merge_and_unload(self):
            calls.append("merge")
            return self

        def save_pretrained(self, folder):
            calls.append(f"save {folder.name}")

    transformers, peft = type(sys)("transformers"), type(sys)("peft")
    transformers.Base, transformers.__version__ = Base, "5"
    peft.PeftModel = Adapted
    peft.get_peft_model_state_dict = lambda _: {"base_model.model.head.bias": W}
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setitem(sys.modules, "peft", peft)
    return calls


def base_folder(folder: Path, **config: object) -> Path:
    (folder / CONFIG).write_text(json.dumps({"architectures": ["Base"], **config}))
    return folder


def test_what_the_adapter_brings_may_be_missing_of_the_base(tmp_path: Path, monkeypatch) -> None:
    calls = stand_in(monkeypatch, ["head.bias"])
    merge_adapter(base_folder(tmp_path), tmp_path, tmp_path / "out")
    assert calls == ["load", "merge", "save out"]


def test_a_quantized_base_is_merged_in_floating_point(tmp_path: Path, monkeypatch) -> None:
    calls = stand_in(monkeypatch, [])
    merge_adapter(base_folder(tmp_path, quantization_config={"load_in_4bit": True}), tmp_path, tmp_path / "out")
    assert calls == ["load", "dequantize", "merge", "save out"]


def test_a_tensor_that_is_nowhere_is_named(tmp_path: Path, monkeypatch) -> None:
    calls = stand_in(monkeypatch, ["head.bias", "norm.weight"])
    with pytest.raises(NotFound, match=r"no tensor norm\.weight of the base \(1 are missing\): pull the adapter"):
        merge_adapter(base_folder(tmp_path), tmp_path, tmp_path / "out")
    assert calls == ["load"]


def test_a_class_of_ones_own_is_merged_by_hand(tmp_path: Path, monkeypatch) -> None:
    stand_in(monkeypatch, [])
    with pytest.raises(NotFound, match=r"the base is a Mine, which is no model of transformers 5: pull the adapter"):
        merge_adapter(base_folder(tmp_path, architectures=["Mine"]), tmp_path, tmp_path / "out")
