"""A task's split as it is submitted: its shards hold what its parts say, and `farm show` tells of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from farm_client.data.columns import DataError
from farm_client.data.readers import open_data
from farm_client.data.sharding import write_shards
from farm_client.data.shards import read_shard
from farm_client.sdk.data_split import split_of
from farm_client.sdk.task_file import Given, merge_settings
from farm_client.sdk.watching.split_lines import split_lines
from protocol.contradictions import contradiction
from protocol.errors import InvalidTask
from protocol.recipe import PartSizes, Recipe
from protocol.tasks import BlobRef, Dataset, Split, TaskSpec

ROWS = 240


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    files = [tmp_path / "north.npz", tmp_path / "south.npz"]
    for number, file in enumerate(files):
        rows = np.arange(ROWS // 3 * (number + 1)) + 1000 * number
        np.savez(file, row=rows, y=rng.integers(0, 4, len(rows)), writer=np.array([f"w{n % 7}" for n in rows]))
    return files


def recipe_of(**fields: object) -> Recipe:
    return Recipe.model_validate({"rounds": 1, "mode": "weights", **fields})


def dataset_of(recipe: Recipe, files: list[Path], folder: Path, holdout: float = 0.2):
    """Return the data set that is submitted, and each shard's rows."""
    source = open_data(files)
    split = split_of(recipe, source, holdout)
    folder.mkdir()
    shards, written = write_shards(source, split.shards(), folder, recipe.seed, shard_of=split.shard_of)
    rows = []
    for shard in shards:
        table = read_shard(written[shard.blob.digest])
        rows.append(table.take(torch.arange(table.samples)))
    return Dataset(kind="files", shards=tuple(shards), parts=split.parts), rows


SPLITS = [
    {"split": "iid", "split_parts": 5},
    {"split": "dirichlet", "split_parts": 5, "split_alpha": 0.3, "split_by": "y"},
    {"split": "by_source", "split_by": "writer"},
    {"split": "by_source"},
]


@pytest.mark.parametrize("fields", SPLITS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_each_row_is_in_one_shard_and_parts_are_what_they_say(data, tmp_path, fields):
    recipe = recipe_of(**fields)
    dataset, rows = dataset_of(recipe, data, tmp_path / "one")
    assert sorted(row for shard in rows for row in shard["row"].tolist()) == [*range(80), *range(1000, 1160)]
    assert dataset.samples(Split.HOLDOUT) == 48
    assert contradiction(recipe.model_copy(update={"round_samples": 192}), dataset) is None
    for number, part in enumerate(dataset.parts):
        mine = [rows[i] for i, of_part in enumerate(dataset.part_of_shard) if of_part == number]
        assert sum(len(shard["row"]) for shard in mine) == part.samples
        if fields["split"] == "dirichlet":
            assert part.labels == Counter(str(label) for shard in mine for label in shard["y"].tolist())
        if fields.get("split_by") == "writer":
            assert {writer for shard in mine for writer in shard["writer"]} == {part.source}
    if fields == {"split": "by_source"}:
        assert [part.source for part in dataset.parts] == ["north.npz", "south.npz"]
    again, _ = dataset_of(recipe, data, tmp_path / "two")
    other, _ = dataset_of(recipe_of(**fields, seed=1), data, tmp_path / "three")
    assert again == dataset
    assert other != dataset


def test_the_split_is_shown_and_bounded(data, tmp_path):
    recipe = recipe_of(split="dirichlet", split_parts=20, split_alpha=0.3, split_by="y")
    dataset, _ = dataset_of(recipe, data, tmp_path / "one")
    blob = BlobRef(digest="0" * 64, size_bytes=1)
    spec = TaskSpec(name="t", code=blob, entry="train.py", dataset=dataset, initial_weights=blob, recipe=recipe)
    lines = split_lines(spec)
    assert lines[0] == "dirichlet, alpha 0.3, by y: 20 virtual clients of 9 to 10 samples"
    assert len(lines) == 14
    assert lines[-1] == "and 8 more"
    label, count = max(dataset.parts[0].labels.items(), key=lambda item: item[1])
    assert lines[1].startswith("  0: ")
    assert f"({label}:{count}" in lines[1] or list(dataset.parts[0].labels.values()).count(count) > 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"split": "dirichlet", "split_parts": 2, "split_by": "y"}, "split_alpha"),
        ({"split": "iid", "split_parts": 2, "split_alpha": 1.0}, "need each other"),
        ({"split": "iid"}, "needs split_parts"),
        ({"split": "by_source", "split_parts": 3}, "leave split_parts out"),
        ({"split": "dirichlet", "split_parts": 2, "split_alpha": 1.0}, "needs split_by"),
        ({"split": "iid", "split_parts": 2, "split_by": "y"}, "looks at no column"),
        ({"split_parts": 2}, "split_parts is for a split"),
        ({"split": "iid", "split_parts": 2, "mode": "gradients"}, "for weights mode"),
        ({"split": "iid", "split_parts": 2, "order": "sequential"}, "leave one out"),
        ({"split": "iid", "split_parts": 2, "parts": "speed"}, "leave parts"),
        ({"split": "iid", "split_parts": 2, "part_samples": 8}, "part_samples out"),
        ({"split": "iid", "split_parts": 2, "scaffold_clients": 3}, "SCAFFOLD"),
        ({"split": "iid", "split_parts": 2, "max_staleness": 1}, "max_staleness"),
    ],
)
def test_what_contradicts_a_split_is_refused_by_name(fields, said):
    with pytest.raises(InvalidTask, match=said):
        merge_settings(None, Given(recipe={"mode": "weights", **fields}))


def test_a_split_has_fixed_parts_by_itself():
    assert recipe_of(split="iid", split_parts=2).parts is PartSizes.FIXED


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"split": "by_source", "split_by": "z"}, "the columns are row, y, writer"),
        ({"split": "dirichlet", "split_parts": 2, "split_alpha": 1.0, "split_by": "x"}, "one whole number or string"),
        ({"split": "iid", "split_parts": 241}, "each part needs a row"),
    ],
)
def test_data_that_cannot_be_split_so_is_refused(data, tmp_path, fields, said):
    if fields.get("split_by") == "x":
        data = [tmp_path / "x.npz"]
        np.savez(data[0], x=np.zeros((8, 2)))
    with pytest.raises(DataError, match=said):
        split_of(recipe_of(**fields), open_data(data), 0.0)


def test_one_file_has_no_sources_and_code_no_files(data):
    with pytest.raises(DataError, match="several data files"):
        split_of(recipe_of(split="by_source"), open_data(data[:1]), 0.0)
    with pytest.raises(InvalidTask, match="give --data"):
        split_of(recipe_of(split="iid", split_parts=2), None, 0.0)


def test_a_split_and_its_data_go_together(data, tmp_path):
    recipe = recipe_of(split="iid", split_parts=2)
    dataset, _ = dataset_of(recipe, data, tmp_path / "one")
    assert "dealt to virtual clients" in contradiction(recipe_of(), dataset)
    assert "not dealt" in contradiction(recipe, dataset.model_copy(update={"parts": ()}))
    with pytest.raises(ValueError, match="with their samples"):
        Dataset(kind="files", shards=dataset.shards, parts=dataset.parts[:1])
