"""Every form of data file gives the same rows, whatever the block size; unusable ones are refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from farm_client.data.columns import Column, DataError
from farm_client.data.guarded import RowSource
from farm_client.data.readers import open_data
from farm_client.data.shard_file import write_shard_file
from farm_client.data.shards import read_shard

ROWS = 11
X = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
Y = np.arange(ROWS, dtype=np.int64)
WORDS = [f"wörd-{i}" * (i % 3) for i in range(ROWS)]


def whole(source: RowSource, folder: Path, block_rows: int) -> dict[str, torch.Tensor | list[str]]:
    """Read a source in blocks, write each as a shard, and join them again."""
    parts = []
    for i, block in enumerate(source.blocks(block_rows)):
        assert block.rows <= block_rows
        path = folder / f"part-{block_rows}-{i}"
        write_shard_file(path, source.columns, block.values)
        rows = read_shard(path)
        assert rows.samples == block.rows
        parts.append((rows, rows.take(torch.arange(rows.samples))))
    return parts[0][0].join([part for _, part in parts])


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("block_rows", [1, 4, 11, 50])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz_rows_of_every_kind(tmp_path: Path, block_rows: int, compressed: bool) -> None:
    path = tmp_path / "d.npz"
    arrays = {
        "x": X,
        "y": Y.astype(np.uint16),
        "flag": Y % 2 == 0,
        "big": Y.astype(">f8"),
        "fortran": np.asfortranarray(X[:, 0]),
        "words": np.array(WORDS),
    }
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    source = open_data([path])
    assert source.rows == ROWS
    got = whole(source, tmp_path, block_rows)
    assert torch.equal(got["x"], torch.from_numpy(X))
    assert got["y"].tolist() == Y.tolist()
    assert got["y"].dtype is torch.int32
    assert got["flag"].dtype is torch.bool
    assert got["big"].dtype is torch.float64
    assert got["big"].tolist() == Y.tolist()
    assert torch.equal(got["fortran"], torch.from_numpy(X[:, 0]))
    assert got["words"] == WORDS


def test_safetensors_keep_bfloat16(tmp_path: Path) -> None:
    x = torch.randn(ROWS, 3).to(torch.bfloat16)
    safetensors.torch.save_file({"x": x, "y": torch.from_numpy(Y)}, tmp_path / "d.safetensors")
    got = whole(open_data([tmp_path / "d.safetensors"]), tmp_path, 4)
    assert torch.equal(got["x"], x)
    assert got["x"].dtype is torch.bfloat16


@pytest.mark.parametrize("block_rows", [3, 50])
def test_parquet_numbers_lists_and_strings(tmp_path: Path, block_rows: int) -> None:
    table = pa.table(
        {
            "y": pa.array(Y),
            "flag": pa.array((Y % 2 == 0).tolist()),
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 6),
            "lists": pa.array(X[:, 0].tolist(), pa.list_(pa.float32())),
            "nested": pa.array(X.tolist(), pa.list_(pa.list_(pa.float32()))),
            "words": pa.array(WORDS),
            "labels": pa.array(WORDS).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=4)
    got = whole(open_data([tmp_path / "d.parquet"]), tmp_path, block_rows)
    assert torch.equal(got["fixed"], torch.from_numpy(X.reshape(ROWS, 6)))
    assert torch.equal(got["lists"], torch.from_numpy(X[:, 0]))
    assert torch.equal(got["nested"], torch.from_numpy(X))
    assert got["flag"].dtype is torch.bool
    assert got["words"] == got["labels"] == WORDS
    assert got["y"].tolist() == Y.tolist()


def test_jsonl_learns_types_from_the_whole_file(tmp_path: Path) -> None:
    lines = [{"y": i, "z": i or 0.5, "x": X[i].tolist(), "ok": True, "w": WORDS[i]} for i in range(ROWS)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    source = open_data([tmp_path / "d.jsonl"])
    assert Column("z", "F32") in source.columns
    got = whole(source, tmp_path, 4)
    assert got["z"].tolist() == [0.5, *range(1, ROWS)]
    assert got["y"].dtype is torch.int64
    assert torch.equal(got["x"], torch.from_numpy(X))
    assert got["w"] == WORDS


def test_text_rows_drop_the_tail_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes(bytes(range(23)))
    source = open_data([tmp_path / "d.txt"], row_bytes=5)
    assert source.rows == 4
    assert "last 3 bytes" in source.notes[0]
    assert whole(source, tmp_path, 3)["text"].flatten().tolist() == list(range(20))


def test_a_folder_is_read_as_one_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    npz(folder / "a.npz", x=X[:4])
    npz(folder / "b.npz", x=X[4:])
    (folder / "README").write_text("not data")
    source = open_data([folder])
    assert source.rows == ROWS
    assert torch.equal(whole(source, tmp_path, 3)["x"], torch.from_numpy(X))


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"a": 1}\n{"a": \n')
    (folder / "fields.jsonl").write_text('{"a": 1}\n{"b": 1}\n')
    (folder / "ragged.jsonl").write_text('{"a": [1, 2]}\n{"a": [1]}\n')
    (folder / "null.jsonl").write_text('{"a": null}\n')
    (folder / "kinds.jsonl").write_text('{"a": 1}\n{"a": "one"}\n')
    (folder / "notes.docx").write_text("?")
    (folder / "short.txt").write_text("abc")
    (folder / "fake.npz").write_text("no archive")
    (folder / "fake.parquet").write_text("no table")
    (folder / "fake.safetensors").write_text("no tensors")
    pq.write_table(pa.table({"a": [1, None]}), folder / "null.parquet")
    pq.write_table(pa.table({"a": [[1], [1, 2]]}), folder / "ragged.parquet")
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.timestamp("s"))}), folder / "dates.parquet")
    np.savez(folder / "objects.npz", a=np.array([{}], dtype=object))
    return {
        "missing": (folder / "nothing.npz", "no data file"),
        "empty": (folder / "empty.jsonl", "empty"),
        "not json": (folder / "broken.jsonl", "line 2 is not JSON"),
        "fields": (folder / "fields.jsonl", "line 2: every line needs the same fields"),
        "ragged": (folder / "ragged.jsonl", "line 2: field 'a'"),
        "null": (folder / "null.jsonl", "line 1: field 'a' must be"),
        "kinds": (folder / "kinds.jsonl", "line 2: field 'a'"),
        "suffix": (folder / "notes.docx", "data files end in .npz"),
        "short text": (folder / "short.txt", "less than a row"),
        "no archive": (folder / "fake.npz", "not a NumPy archive"),
        "no table": (folder / "fake.parquet", "not a Parquet file"),
        "no tensors": (folder / "fake.safetensors", "cannot be used as data"),
        "parquet nulls": (folder / "null.parquet", "missing values"),
        "parquet ragged": (folder / "ragged.parquet", "several"),
        "dates": (folder / "dates.parquet", "save it as numbers"),
        "pickle": (folder / "objects.npz", "Python objects"),
        "lengths": (npz(folder / "lengths.npz", a=X, b=Y[:3]), "a has 11, b has 3"),
        "scalar": (npz(folder / "scalar.npz", a=np.array(3.0)), "single number"),
        "no rows": (npz(folder / "norows.npz", a=X[:0]), "empty"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing",
        "empty",
        "not json",
        "fields",
        "ragged",
        "null",
        "kinds",
        "suffix",
        "short text",
        "no archive",
        "no table",
        "no tensors",
        "parquet nulls",
        "parquet ragged",
        "dates",
        "pickle",
        "lengths",
        "scalar",
        "no rows",
    ],
)
def test_unusable_data_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    path, sentence = bad_files(tmp_path)[case]
    with pytest.raises(DataError, match=sentence) as refused:
        for _ in open_data([path]).blocks(10):
            pass
    assert "\n" not in refused.value.message
