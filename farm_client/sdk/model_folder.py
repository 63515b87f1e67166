"""A trained model as a folder for Hugging Face's libraries: `farm pull TASK --format hf`.

A `transformers` model becomes config, weights and the tokenizer's files of its base; a `peft` adapter its own config
and tensors. Beside them is a model card, of what the farm knows. Neither library is needed, but to merge the two.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from farm_client.executor.model_files import ADAPTER_CONFIG, CONFIG, MODEL_FILES, adapter_name, base_name
from farm_client.sdk.api import FarmApi
from farm_client.sdk.download import download_weights, make_ordinary, pull_model
from farm_client.sdk.errors import BadOutput
from farm_client.sdk.feeds import read_all
from farm_client.sdk.merging import merge_adapter
from protocol.errors import NotFound
from protocol.rest import MetricView, ModelView, TaskDetail
from protocol.tasks import BaseFile, Split, TaskSpec
from protocol.wording import counted

WEIGHTS: Final = "model.safetensors"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_WEIGHTS_OF_BASE: Final = (".safetensors", ".safetensors.index.json")

Advance = Callable[[int], None]


def pull_folder(
    api: FarmApi, model: ModelView, output: Path, advance: Advance = lambda _: None, *, merged: bool = False
) -> None:
    """Write a model to the folder ``output``, which must not be there yet; it appears whole or not at all.

    With ``merged`` an adapter is added to its base, which `transformers` then loads by itself.
    Raises: BadOutput if it is there; NotFound if the task's model is none of `transformers` or `peft`, or no adapter
        that can be merged; MissingLibrary; what ``pull_model`` raises.
    """
    if output.exists():
        raise BadOutput(f"{output} is there already: name a new folder with -o")
    detail = api.task(model.task_id)
    files = {name: document for name in MODEL_FILES if (document := detail.spec.model_files.get(name)) is not None}
    _check(files, model, merged=merged)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as made:
        folder = Path(made) / "model"
        is_adapter = ADAPTER_CONFIG in files and not merged
        if merged:
            _write_merged(api, model, files, Path(made), advance)
        elif is_adapter:
            _write_adapter(api, model, files, folder, advance)
        else:
            folder.mkdir()
            pull_model(api, model, folder / WEIGHTS, advance)
            _write_json(files, folder)
        for file in _beside_weights(detail.spec):
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            download_weights(api, file.blob, folder / file.path)
            make_ordinary(folder / file.path)
        measured = [value for value in read_all(api.metrics, model.task_id) if value.source == "eval"]
        card = model_card(detail, model, measured, is_adapter=is_adapter)
        (folder / "README.md").write_text(card, encoding="utf-8")
        folder.rename(output)


def _check(files: Mapping[str, object], model: ModelView, *, merged: bool) -> None:
    """Raises: NotFound if the task has recorded nothing of which such a folder can be made."""
    if not files.keys() & {CONFIG, ADAPTER_CONFIG}:
        raise NotFound(
            f"task {model.task_id} recorded no model of transformers, and no usual adapter of peft, when it "
            "was submitted (one is known where no class of the code's own wraps it): pull it without --format hf"
        )
    if merged and not files.keys() >= {CONFIG, ADAPTER_CONFIG}:
        what = "is no adapter" if CONFIG in files else "recorded no base that its adapter can be merged into"
        raise NotFound(f"task {model.task_id} {what}: pull it without --merged")


def _write_adapter(
    api: FarmApi, model: ModelView, files: Mapping[str, object], folder: Path, advance: Advance = lambda _: None
) -> None:
    """Write an adapter as `peft` loads it, to a new folder."""
    folder.mkdir()
    pull_model(api, model.model_copy(update={"frozen": None}), folder / ADAPTER_WEIGHTS, advance, adapter_name)
    _write_json({ADAPTER_CONFIG: files[ADAPTER_CONFIG]}, folder)


def _write_merged(api: FarmApi, model: ModelView, files: Mapping[str, object], made: Path, advance: Advance) -> None:
    """Write ``model`` under a folder, from an adapter and its base, which are made beside it."""
    base, adapter = made / "base", made / "adapter"
    base.mkdir()
    pull_model(api, model, base / WEIGHTS, advance, base_name)
    _write_json({name: document for name, document in files.items() if name != ADAPTER_CONFIG}, base)
    _write_adapter(api, model, files, adapter)
    merge_adapter(base, adapter, made / "model")
    for path in (made / "model").iterdir():
        make_ordinary(path)


def _write_json(documents: Mapping[str, object], folder: Path) -> None:
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(detail: TaskDetail, model: ModelView, measured: list[MetricView], *, is_adapter: bool) -> str:
    """Return the model card: recipe, data and base by digest, clients and the held-out metrics of each round."""
    spec = detail.spec
    clients = max((one.clients for one in detail.rounds), default=0)
    lines = [
        "---",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        "---",
        f"# {spec.name}",
        "",
        f"Trained by AI Farm as task {model.task_id}: {counted(model.round, 'round')}, with up to "
        f"{counted(clients, 'client')} in one of the newest rounds.",
        "",
        "## Held-out metrics",
        "",
        "| round | metric | value |",
        "| ---: | --- | ---: |",
        *(f"| {one.round} | {one.name} | {one.value:.6g} |" for one in measured if one.round <= model.round),
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(spec.recipe.model_dump(mode="json", exclude_defaults=True), indent=2),
        "```",
        "",
        "## Data",
        "",
        *_data_lines(spec),
    ]
    if spec.base:
        lines += ["", "## Base", "", "| file | BLAKE3 |", "| --- | --- |"]
        lines += [f"| {file.path} | {file.blob.digest} |" for file in spec.base]
    return "\n".join(lines) + "\n"


def _data_lines(spec: TaskSpec) -> Iterator[str]:
    train, held = (spec.dataset.samples(split) for split in (Split.TRAIN, Split.HOLDOUT))
    yield f"{counted(train, 'sample')} to train on, {counted(held, 'sample')} held out."
    if spec.dataset.kind == "files":
        yield from ("", "| shard | split | samples | BLAKE3 |", "| ---: | --- | ---: | --- |")
        for one in spec.dataset.shards:
            yield f"| {one.index} | {one.split} | {one.samples} | {one.blob.digest if one.blob else ''} |"


def _beside_weights(spec: TaskSpec) -> Iterator[BaseFile]:
    """Yield what of the base goes with the model: the tokenizer's files above all."""
    for file in spec.base:
        if file.path not in {*MODEL_FILES, "README.md"} and not file.path.endswith(_WEIGHTS_OF_BASE):
            yield file
