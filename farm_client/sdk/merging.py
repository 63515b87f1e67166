"""An adapter merged into its base, by the libraries that know both: `farm pull TASK --format hf --merged`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from farm_client.executor.model_files import BASE_PREFIX, CONFIG
from farm_client.sdk.errors import MissingLibrary
from protocol.errors import NotFound

_BY_HAND: Final = "pull the adapter without --merged, and merge it with PeftModel.from_pretrained(…).merge_and_unload()"


def merge_adapter(base: Path, adapter: Path, output: Path) -> None:
    """Write the model of a folder ``base`` with the adapter of another one added to it, as ``save_pretrained`` does.

    ``base`` may lack the tensors that the adapter's file has. Of a quantized base the merged model has the weights as
    they are computed with, in floating point: what the adapter adds is finer than the base's steps.
    Raises: MissingLibrary; NotFound if its class is not one of `transformers`, or a tensor is nowhere.
    """
    try:
        import peft  # noqa: PLC0415 - optional, and it takes seconds
        import transformers  # noqa: PLC0415
    except ImportError as error:
        raise MissingLibrary(f"merging needs {error.name}: pip install 'aifarm[hf]'") from error
    config = json.loads((base / CONFIG).read_bytes())
    name = (config.get("architectures") or ["?"])[0]
    kind: Any = getattr(transformers, name, None)
    if kind is None:
        raise NotFound(
            f"the base is a {name}, which is no model of transformers {transformers.__version__}: {_BY_HAND}"
        )
    try:
        model, loading = kind.from_pretrained(base, dtype="auto", output_loading_info=True)
    except ImportError as error:  # of the library that the base is quantized by
        raise MissingLibrary(f"the base can't be loaded here: {error}") from error
    if config.get("quantization_config"):
        model = model.dequantize()
    merged = peft.PeftModel.from_pretrained(model, adapter)
    own = {n.removeprefix(BASE_PREFIX) for n in peft.get_peft_model_state_dict(merged)}
    if lacking := sorted(set(loading["missing_keys"]) - own):
        raise NotFound(f"the farm has no tensor {lacking[0]} of the base ({len(lacking)} are missing): {_BY_HAND}")
    merged.merge_and_unload().save_pretrained(output)
