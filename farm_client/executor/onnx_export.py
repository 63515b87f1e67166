"""A trained model as an ONNX file, by torch's own exporter: what `farm pull TASK --format onnx` runs.

    python -m farm_client.executor.onnx_export REQUEST.json REPORT.json

The model is built by the task's code, and what its ``forward`` is given is seen while the code evaluates a batch.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import nn
from torch.export import Dim

from farm_client.executor.contract import load_contract
from farm_client.executor.failures import CodeError, as_failed, blaming, text_of
from farm_client.executor.layout import ModelTensors
from farm_client.executor.output import print_anything
from farm_client.executor.rehearsal_records import ExportReport, ExportRequest
from farm_client.executor.samples import SampleSource
from farm_client.executor.script import is_script
from farm_client.executor.training import evaluate
from protocol.wording import sized

MOST_BYTES: Final = (2 << 30) - (16 << 20)
"""Of the weights in one file, which is a protobuf message: of less than 2 GiB, with the graph."""


def export(request: ExportRequest) -> None:
    """Write the model. Raises: CodeError for what of the task can't be exported."""
    order = request.order
    code_dir = Path(order.code_dir).resolve()
    if is_script(code_dir / order.entry):
        raise CodeError(
            "a script with farm.parts has no build_model that the farm could call: pull a file of safetensors, load it "
            "into the script's model, and call torch.onnx.export there"
        )
    contract = load_contract(code_dir, order.entry, order.settings)
    with blaming(code_dir):
        tensors = ModelTensors.of(contract.build_model())
        if tensors.beside:
            raise CodeError("the base is quantized, which torch.onnx can't export: pull --format hf --merged")
        if (size := sum(tensor.nbytes for tensor in tensors.all().values())) > MOST_BYTES:
            raise CodeError(f"the model has {sized(size)}, and an ONNX file has less than 2 GiB")
        tensors.load(safetensors.torch.load_file(request.model_path), tensors.pulled())
        batches = SampleSource(contract, order, torch.device("cpu")).batches([request.piece], 0)
        args, named = seen_by_forward(tensors.model, lambda: evaluate(contract, tensors, batches, lambda _: None))
        write_onnx(tensors.model, args, named, batches.samples, Path(request.output))


def seen_by_forward(model: nn.Module, run: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments, and those by name, of the first call of ``model`` while ``run`` runs.

    Labels that ``forward`` can do without are left out, and so is the cache of a language model: they are no inputs of
    a trained model. Raises: CodeError if it is never called.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, named: calls.append((args, dict(named))),
        with_kwargs=True,
    )
    try:
        run()
    finally:
        hook.remove()
    if not calls:
        raise CodeError("the code evaluates without calling model(...), so that its inputs are not known to the farm")
    args, named = calls[0]
    labels = inspect.signature(model.forward).parameters.get("labels")
    if labels is not None and labels.default is None:
        named.pop("labels", None)
    if hasattr(getattr(model, "config", None), "use_cache"):
        named["use_cache"] = False
    return args, named


def write_onnx(model: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], samples: int, output: Path) -> None:
    """Write the model in evaluation mode; the first dimension of what has so many ``samples`` may have any other size.

    Raises: CodeError with what torch says.
    """
    shapes: Any = tuple(_shape(value, samples) for value in args)
    if named:
        bound = inspect.signature(model.forward).bind(*args, **named)
        shapes = {name: _shape(value, samples) for name, value in bound.arguments.items()}
    try:
        torch.onnx.export(
            model.eval(),
            args,
            output,
            kwargs=dict(named),
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = text_of(error.__cause__ or error).splitlines()[0]
        raise CodeError(f"torch.onnx.export can't take this model: {reason}") from error


def _shape(value: Any, samples: int) -> Any:
    """Return which dimensions of an argument are those of the batch, in the argument's own structure."""
    match value:
        case torch.Tensor():
            return {0: Dim.AUTO} if value.dim() and len(value) == samples else None
        case Mapping():
            return {name: _shape(one, samples) for name, one in value.items()}
        case list() | tuple():
            return type(value)(_shape(one, samples) for one in value)
    return None


def main(arguments: Sequence[str]) -> int:
    """Read the request, export, write the report; the process's own outcome is always 0."""
    request_path, report_path = map(Path, arguments)
    print_anything()
    sys.argv[1:] = []  # the task's code may parse it when it is imported
    try:
        export(ExportRequest.model_validate_json(request_path.read_bytes()))
        report = ExportReport()
    except BaseException as error:
        report = ExportReport(failed=as_failed(error, None))
    report_path.write_text(report.model_dump_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
