"""ONNX files: what a model's inputs are, and that the file computes what the model does."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim

from farm_client.executor import onnx_export
from farm_client.executor.failures import CodeError
from farm_client.executor.messages import LoadTask, Piece
from farm_client.executor.onnx_export import export, seen_by_forward, write_onnx
from farm_client.executor.rehearsal_records import ExportReport, ExportRequest
from protocol.recipe import Mode
from protocol.tasks import Split

CODE = """
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.again = self.first  # tied
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x, *, scale=None):
            return self.norm(self.again(self.first(x)).relu()) * scale

    def build_model(config):
        return Model()

    def loss(model, batch):
        return model(batch["x"], scale=batch["y"]).sum()

    def make_dataset(config):
        return [{"x": torch.full((3,), float(row)), "y": torch.ones(1)} for row in range(9)]
"""


def request(folder: Path, code: str, model: nn.Module | None = None) -> ExportRequest:
    """Return the request to export a model's weights, with a task's code."""
    (folder / "train.py").write_text(textwrap.dedent(code))
    if model is not None:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
    order = LoadTask(
        task_id="t",
        code_dir=str(folder),
        entry="train.py",
        config={},
        mode=Mode.WEIGHTS,
        seed=0,
        batch_samples=8,
        dataset_kind="code",
        scratch_dir=str(folder),
    )
    piece = Piece(shard=0, split=Split.TRAIN, shard_samples=9, first_row=0, path=None, start=0, stop=8)
    return ExportRequest(
        order=order, model_path=str(folder / "model.safetensors"), piece=piece, output=str(folder / "model.onnx")
    )


def trained_model() -> nn.Module:
    """Return the code's model, as some training might have left it."""
    names: dict[str, object] = {}
    exec(textwrap.dedent(CODE), names)
    model = names["Model"]()  # type: ignore[operator]
    model.norm.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    return model.eval()


def test_the_file_computes_what_the_model_does_for_any_number_of_samples(tmp_path: Path) -> None:
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    model = trained_model()
    export(request(tmp_path, CODE, model))
    evaluator = reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    assert evaluator.input_names == ["x", "scale"]
    for samples in (8, 5, 1):
        x, scale = torch.randn(samples, 3), torch.randn(samples, 1)
        (found,) = evaluator.run(None, {"x": x.numpy(), "scale": scale.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x, scale=scale))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (CODE.replace("model(batch", "model.forward(batch"), r"without calling model\(\.\.\.\)"),
        (
            "import farm_client as farm\nfor part in farm.parts(None):\n    part.done()\n",
            "call torch.onnx.export there",
        ),
        (CODE.replace("nn.BatchNorm1d(3)", "nn.LayerNorm(3)"), "build_model does not build the submitted model"),
        (CODE.replace("    return Model()", "    raise KeyError('lr')"), "build_model"),
    ],
    ids=["no call", "script", "another model", "its own mistake"],
)
def test_what_can_not_be_exported_is_said(tmp_path: Path, code: str, said: str) -> None:
    with pytest.raises(CodeError, match=said):
        export(request(tmp_path, textwrap.dedent(code), trained_model()))
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_over_two_gibibytes_is_no_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 10)
    with pytest.raises(CodeError, match="an ONNX file has less than 2 GiB"):
        export(request(tmp_path, CODE, trained_model()))


def test_a_process_reports_a_mistake_and_ends_well(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["export"])
    asked, answer = tmp_path / "asked", tmp_path / "answer"
    asked.write_text(request(tmp_path, "def build_model(config):\n    return 3\n").model_dump_json())
    assert onnx_export.main([str(asked), str(answer)]) == 0
    failed = ExportReport.model_validate_json(answer.read_bytes()).failed
    assert failed is not None
    assert "build_model must return a torch.nn.Module" in failed.message


class Labelled(nn.Module):
    """A model as those of transformers: labels are optional, and there is a cache to switch off."""

    class config:
        use_cache = True

    def forward(self, input_ids, labels=None, use_cache=None):
        return input_ids


def test_labels_and_caches_are_no_inputs_of_a_trained_model() -> None:
    model, x = Labelled(), torch.ones(2, 3)
    args, named = seen_by_forward(model, lambda: model(x, labels=x))
    assert args == (x,)
    assert named == {"use_cache": False}


def test_the_first_call_counts_and_the_model_is_left_without_a_hook() -> None:
    model = nn.Identity()
    args, named = seen_by_forward(model, lambda: [model(1), model(2)])
    assert (args, named) == ((1,), {})
    assert not model._forward_pre_hooks


def test_labels_that_a_model_needs_stay() -> None:
    class Needs(nn.Module):
        def forward(self, x, labels):
            return x

    model = Needs()
    assert seen_by_forward(model, lambda: model(1, labels=2)) == ((1,), {"labels": 2})


def test_a_hook_goes_where_the_code_raises() -> None:
    model = nn.Identity()
    with pytest.raises(ZeroDivisionError):
        seen_by_forward(model, lambda: 1 / 0)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (torch.ones(4, 2), {0: Dim.AUTO}),
        (torch.ones(3, 4), None),
        (torch.tensor(4.0), None),
        ("text", None),
        ([torch.ones(4), torch.ones(2)], [{0: Dim.AUTO}, None]),
        ((torch.ones(4),), ({0: Dim.AUTO},)),
        ({"x": torch.ones(4), "n": 4}, {"x": {0: Dim.AUTO}, "n": None}),
    ],
)
def test_the_first_dimension_of_the_batch_alone_may_change(value: object, shape: object) -> None:
    assert onnx_export._shape(value, 4) == shape


def test_what_torch_says_of_a_model_is_passed_on(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("many lines") from ValueError("no branch by data\nand more")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(CodeError, match=r"torch\.onnx\.export can't take this model: .*no branch by data$"):
        write_onnx(nn.Identity(), (torch.ones(2),), {}, 2, tmp_path / "m.onnx")
