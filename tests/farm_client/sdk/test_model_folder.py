"""A pulled folder for Hugging Face's libraries: what is in it, and what its card says. None of them is needed here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from farm_client.executor.model_files import ADAPTER_CONFIG, CONFIG
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from farm_client.sdk.model_folder import model_card, pull_folder
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch
from protocol.recipe import Mode, Recipe
from protocol.rest import MetricView, TaskDetail
from protocol.tasks import BaseFile, BlobRef, TaskSpec
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm, answer, make_spec

TENSOR = np.arange(3, dtype=np.float32)
ADAPTED = "base_model.model.q.lora_A.default.weight"


def weights_of(name: str) -> bytes:
    roles = json.dumps({name: "parameter"})
    return safetensors.numpy.save({name: TENSOR}, {"format": "aifarm-weights-1", "roles": roles, "tied": "{}"})


def base_file(path: str, data: bytes) -> tuple[BaseFile, bytes]:
    return BaseFile(path=path, blob=BlobRef(digest=digest_bytes(data), size_bytes=len(data))), data


BASE = [
    base_file("tokenizer.json", b"{}"),
    base_file("model.safetensors", b"the base's own"),
    base_file("a/b.txt", b"b"),
]


def spec_with(model_files: dict[str, Any], **changes: Any) -> TaskSpec:
    base = tuple(file for file, _ in BASE)
    return make_spec().model_copy(update={"model_files": model_files, "base": base, **changes})


class Pulling:
    """A farm with one trained task, and the folder that is pulled of it."""

    def __init__(self, folder: Path, spec: TaskSpec, weights: bytes) -> None:
        blobs = {file.blob.digest: data for file, data in BASE} | {digest_bytes(weights): weights}
        self.fake = FakeFarm(blobs=blobs, model_digest=digest_bytes(weights))
        self.detail = TaskDetail(task=self.fake.tasks[0], spec=spec, rounds=())
        self.fake.overrides["GET", f"/v1/tasks/{self.detail.task.task_id}"] = lambda: answer(self.detail)
        self.output = folder / "pulled"

    def pull(self) -> set[str]:
        """Pull it; return the paths of its files."""
        with FarmApi(parse_address(ADDRESS, "test"), self.fake.transport()) as api:
            pull_folder(api, api.model(self.detail.task.task_id), self.output)
        return {path.relative_to(self.output).as_posix() for path in self.output.rglob("*") if path.is_file()}


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Pulling]:
    return Pulling(tmp_path, spec_with({CONFIG: {"model_type": "tiny"}}), weights_of("q.weight"))


@pytest.fixture
def adapter(tmp_path: Path) -> Pulling:
    return Pulling(tmp_path, spec_with({ADAPTER_CONFIG: {"r": 8}}), weights_of(ADAPTED))


def test_a_whole_model_has_its_config_its_weights_and_what_its_base_has_beside_them(whole: Pulling) -> None:
    assert whole.pull() == {CONFIG, "model.safetensors", "tokenizer.json", "a/b.txt", "README.md"}
    assert json.loads((whole.output / CONFIG).read_text()) == {"model_type": "tiny"}
    tensors = safetensors.numpy.load_file(whole.output / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"q.weight": [0.0, 1.0, 2.0]}


def test_an_adapter_has_its_own_config_and_names(adapter: Pulling) -> None:
    assert adapter.pull() == {ADAPTER_CONFIG, "adapter_model.safetensors", "tokenizer.json", "a/b.txt", "README.md"}
    assert set(safetensors.numpy.load_file(adapter.output / "adapter_model.safetensors")) == {
        "base_model.model.q.lora_A.weight"
    }
    assert "library_name: peft" in (adapter.output / "README.md").read_text()


def test_of_a_download_that_breaks_no_folder_is_left(whole: Pulling, tmp_path: Path) -> None:
    whole.fake.blobs[BASE[0][0].blob.digest] = b"[]"
    with pytest.raises(DigestMismatch):
        whole.pull()
    assert list(tmp_path.iterdir()) == []


def test_a_card_says_what_is_known_and_nothing_of_later_rounds(whole: Pulling) -> None:
    recipe = Recipe(mode=Mode.GRADIENTS, rounds=9, round_samples=32)
    detail = whole.detail.model_copy(update={"spec": spec_with({CONFIG: {}}, recipe=recipe)})
    with FarmApi(parse_address(ADDRESS, "test"), whole.fake.transport()) as api:
        model = api.model(detail.task.task_id)
    measured = [
        MetricView(seq=number, at=0, round=number, step=0, name="loss", value=1 / number, source="eval")
        for number in range(1, model.round + 3)
    ]
    card = model_card(detail, model, measured, is_adapter=False)
    assert "library_name: transformers" in card
    assert f"as task {detail.task.task_id}: {model.round} rounds" in card
    assert f"| {model.round} | loss |" in card
    assert f"| {model.round + 1} | loss |" not in card
    assert json.loads(card.partition("```json\n")[2].partition("\n```")[0]) == {
        "mode": "gradients",
        "rounds": 9,
        "round_samples": 32,
    }
    for file, _ in BASE:
        assert f"| {file.path} | {file.blob.digest} |" in card
