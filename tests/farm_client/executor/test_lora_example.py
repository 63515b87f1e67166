"""examples/lora on the farm's executor: its own plain loop to the bit, and no more than the adapter on the wire."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pydantic import ValidationError

from farm_client.executor.layout import ModelTensors
from farm_client.executor.model_files import adapter_name, model_files
from farm_client.sdk.submission import Prepared
from protocol.errors import NotFound
from protocol.recipe import Mode
from protocol.tasks import TaskSpec
from tests.farm_client.executor.bench_task import update_of
from tests.farm_client.executor.lora_task import (
    MOST_OVERHEAD,
    adapter_bytes,
    benched,
    in_memory,
    logits,
    made,
    plain,
    pulled,
    submitted,
    trained_plainly,
)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("lora"))


def test_a_round_in_weights_mode_is_the_plain_loop(lora: Path, tmp_path: Path) -> None:
    bench = benched(lora, tmp_path, Mode.WEIGHTS)
    update, expected = update_of(bench.train()), trained_plainly(bench)
    assert update.keys() == expected.keys()
    for name, difference in expected.items():
        assert torch.equal(update[name], difference), name
    held_out = bench.evaluate().metrics["loss"]
    assert math.isfinite(held_out)


def test_a_round_in_gradients_mode_is_the_plain_loops_gradient(lora: Path, tmp_path: Path) -> None:
    bench = benched(lora, tmp_path, Mode.GRADIENTS)
    update = update_of(bench.train())
    module, model, batches = plain(bench)
    rows = torch.cat([batch["input_ids"] for batch in batches])
    module.loss(model, {"input_ids": rows}).backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert update.keys() == named.keys()
    for name, gradient in named.items():
        torch.testing.assert_close(update[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_round_is_as_large_as_the_adapter(lora: Path, tmp_path: Path) -> None:
    bench = benched(lora, tmp_path, Mode.WEIGHTS)
    most_bytes = MOST_OVERHEAD * adapter_bytes(bench, tmp_path)
    base_bytes = (lora / "base/model.safetensors").stat().st_size
    update_bytes = len(bench.train().update)
    assert update_bytes <= most_bytes  # up
    assert len(bench.weights) <= most_bytes  # down, and in each checkpoint
    assert len(bench.frozen) >= 0.95 * base_bytes > 5 * len(bench.weights)  # once


@pytest.fixture(scope="module")
def prepared(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return submitted(lora, tmp_path_factory.mktemp("prepared"))


def test_the_example_is_submitted_with_its_base(lora: Path, prepared: Prepared) -> None:
    spec = prepared.spec
    assert {file.path for file in spec.base} == {path.name for path in (lora / "base").iterdir()}
    assert {file.blob.digest for file in spec.base} <= prepared.blobs.keys()
    assert spec.config == {"rank": 8, "lr": 0.003}, "where a base lies is each machine's own"
    with pytest.raises(ValidationError, match="config has a value base"):
        TaskSpec.model_validate(spec.model_dump() | {"config": {"base": "x"}})
    with pytest.raises(ValidationError, match=r"the base has two files config\.json"):
        TaskSpec.model_validate(spec.model_dump() | {"base": [spec.base[0].model_dump()] * 2})


def test_an_adapter_is_pulled_as_peft_loads_it(lora: Path, tmp_path: Path, prepared: Prepared) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bench = benched(lora, tmp_path, Mode.WEIGHTS)
    bench.train()
    trained = bench.runner.tensors  # as its steps left it
    folder = pulled(tmp_path, prepared.spec, in_memory(prepared), trained.weights_file())
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "whoever reads the weights reads the tokenizer"
    assert "config.json" not in {path.name for path in folder.iterdir()}, "an adapter is no model of its own"
    base = AutoModelForCausalLM.from_pretrained(lora / "base", dtype=torch.float32)
    before = logits(base)
    after = logits(PeftModel.from_pretrained(base, folder))
    assert torch.equal(after, logits(trained.model))
    assert not torch.equal(after, before)
    assert AutoTokenizer.from_pretrained(folder)("farm")["input_ids"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n---\n# lora\n") or "library_name: peft" in card
    assert "| 1 | loss | 2.5 |" in card
    for file in prepared.spec.base:
        assert f"| {file.path} | {file.blob.digest} |" in card


def test_a_merged_adapter_is_a_model_of_its_own(lora: Path, tmp_path: Path, prepared: Prepared) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bench = benched(lora, tmp_path, Mode.WEIGHTS)
    bench.train()
    trained = bench.runner.tensors
    folder = pulled(tmp_path, prepared.spec, in_memory(prepared), trained.weights_file(), merged=True)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in folder.iterdir()}
    assert not list(folder.glob("adapter*"))
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    after = logits(trained.model)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), after, rtol=0, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(lora / "base", dtype=torch.float32)
    assert (logits(base) - after).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(folder)("farm")["input_ids"]
    assert "library_name: transformers" in (folder / "README.md").read_text()


def test_a_whole_model_is_pulled_as_transformers_loads_it(lora: Path, tmp_path: Path, prepared: Prepared) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(lora / "base", dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    spec = prepared.spec.model_copy(update={"model_files": model_files(model), "frozen": None})
    folder = pulled(tmp_path, spec, in_memory(prepared), ModelTensors.of(model).weights_file())
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in folder.iterdir()}
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(model))


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_a_library_that_lacks_something_is_not_asked_about_models_of_others(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise ModuleNotFoundError(f"could not import {name}")

    monkeypatch.setitem(sys.modules, library, Broken(library))
    assert model_files(torch.nn.Linear(2, 2)) == {}


def test_another_model_has_no_folder(tmp_path: Path, prepared: Prepared) -> None:
    assert model_files(torch.nn.Linear(2, 2)) == {}
    spec = prepared.spec.model_copy(update={"model_files": {}})
    with pytest.raises(NotFound, match="pull it without --format hf"):
        pulled(tmp_path, spec, {}, b"")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base_model.model.q.lora_A.default.weight", "base_model.model.q.lora_A.weight"),
        ("base_model.model.e.lora_embedding_A.default", "base_model.model.e.lora_embedding_A"),
        ("base_model.model.head.modules_to_save.default.weight", "base_model.model.head.weight"),
        ("base_model.model.q.base_layer.weight", None),
    ],
)
def test_tensors_of_an_adapter_have_shorter_names_in_its_file(name: str, expected: str | None) -> None:
    assert adapter_name(name) == expected
