"""examples/lora over a 4-bit and an 8-bit base (QLoRA): the adapter alone changes and travels, whoever evaluates."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from farm_client.executor.failures import CodeError
from farm_client.executor.frozen import FrozenTensors
from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import update_of
from tests.farm_client.executor.lora_task import (
    EXAMPLE,
    MOST_OVERHEAD,
    adapter_bytes,
    benched,
    in_memory,
    loaded,
    logits,
    made,
    pulled,
    submitted,
    trained_plainly,
)


@pytest.fixture(scope="module", params=[4, 8], ids=["4bit", "8bit"])
def quantized(request, tmp_path_factory) -> Path:
    """Return a folder with the example's data and its base, of so many bits; ``whole`` is the base before that."""
    pytest.importorskip("bitsandbytes")
    folder = made(tmp_path_factory.mktemp(f"qlora{request.param}"))
    shutil.copytree(folder / "base", folder / "whole")
    loaded(EXAMPLE / "make.py").quantize(folder / "base", request.param)
    return folder


def test_a_round_is_the_plain_loop_before_and_after_an_evaluation(quantized: Path, tmp_path: Path) -> None:
    bench = benched(quantized, tmp_path, Mode.WEIGHTS)
    first, expected = update_of(bench.train()), trained_plainly(bench)
    assert first.keys() == expected.keys()
    assert all(torch.equal(first[name], expected[name]) for name in expected)
    measured = bench.evaluate().metrics["loss"]
    assert bench.runner.changed_by_code() == [], "an evaluation leaves the base as it is"
    again = update_of(bench.train())
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert bench.evaluate().metrics["loss"] == measured


def test_a_round_is_as_large_as_the_adapter_and_the_base_as_its_file(quantized: Path, tmp_path: Path) -> None:
    bench = benched(quantized, tmp_path, Mode.WEIGHTS)
    most_bytes = MOST_OVERHEAD * adapter_bytes(bench, tmp_path)
    assert len(bench.train().update) <= most_bytes
    assert len(bench.weights) <= most_bytes
    base_bytes = (quantized / "base/model.safetensors").stat().st_size
    assert 0.9 * base_bytes <= len(bench.frozen) <= 1.2 * base_bytes
    assert len(bench.frozen) < (quantized / "whole/model.safetensors").stat().st_size


def test_each_client_builds_the_frozen_tensors_of_the_submission(quantized: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (benched(quantized, tmp_path / name, Mode.WEIGHTS).runner.tensors for name in ("one", "two"))
    assert one.frozen_digest() == two.frozen_digest()
    assert one.beside


def test_the_scales_come_with_the_file_of_the_frozen_tensors(quantized: Path, tmp_path: Path) -> None:
    tensors = benched(quantized, tmp_path, Mode.WEIGHTS).runner.tensors
    (tmp_path / "frozen").write_bytes(tensors.frozen_file() or b"")
    expected = logits(tensors.model)
    scales = [tensor for name, tensor in tensors.beside.items() if name.endswith(("absmax", "SCB"))]
    for tensor in scales:
        tensor.zero_()
    assert scales
    assert not torch.equal(logits(tensors.model), expected)
    FrozenTensors(tmp_path / "frozen", tensors)
    assert torch.equal(logits(tensors.model), expected)


def test_a_base_of_another_form_is_refused_by_name(quantized: Path, tmp_path: Path) -> None:
    tensors = benched(quantized, tmp_path, Mode.WEIGHTS).runner.tensors
    form = next(name for name in tensors.beside if ".quant_state." in name or name.endswith("weight_format"))
    tensors.beside[form].bitwise_not_()  # as a client would hold it whose library writes another one
    (tmp_path / "frozen").write_bytes(tensors.frozen_file() or b"")
    with pytest.raises(CodeError, match="quantized otherwise here than where it was submitted"):
        FrozenTensors(tmp_path / "frozen", tensors)


def test_it_is_submitted_and_pulled_merged(quantized: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "prepared").mkdir()
    prepared = submitted(quantized, tmp_path / "prepared")
    assert prepared.spec.is_quantized
    assert "quantized_base" in prepared.spec.needs
    assert [note for note in prepared.notes if "mode weights" not in note] == []
    bench = benched(quantized, tmp_path, Mode.WEIGHTS)
    bench.train()
    tensors = bench.runner.tensors
    folder = pulled(tmp_path, prepared.spec, in_memory(prepared), tensors.weights_file(), merged=True)
    with torch.no_grad():  # in eval mode 8-bit layers round what comes in as well
        after = tensors.model.train()(input_ids=torch.arange(64)[None]).logits
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert all(parameter.is_floating_point() for parameter in merged.parameters())
    torch.testing.assert_close(logits(merged), after, rtol=0, atol=1e-5)
