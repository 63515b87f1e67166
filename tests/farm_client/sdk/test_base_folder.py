"""The folder of a pretrained model: what of it is named, and what is refused with which words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from farm_client.sdk.base_folder import base_blobs, read_base
from protocol.digests import digest_bytes
from protocol.errors import InvalidTask
from protocol.tasks import MAX_BASE_FILES, base_path_fault


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "hub/snapshots/main"
    (folder / "tokens").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokens/vocab.json").write_text("{}")
    save_file({"w": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


def test_each_file_is_named_by_its_path_and_its_bytes(base: Path) -> None:
    (base / ".gitattributes").write_text("hidden")
    (base / "empty.txt").touch()  # no blob is empty
    named, files = base_blobs(read_base(base))
    assert [file.path for file in named] == ["config.json", "model.safetensors", "tokens/vocab.json"]
    for file in named:
        data = (base / file.path).read_bytes()
        assert (file.blob.digest, file.blob.size_bytes) == (digest_bytes(data), len(data))
        assert files[file.blob.digest] == base / file.path


def test_a_snapshot_of_the_hubs_cache_is_links(base: Path) -> None:
    blobs = base.parent.parent / "blobs"
    blobs.mkdir()
    (base / "config.json").rename(blobs / "abc")
    (base / "config.json").symlink_to("../../blobs/abc")
    assert "config.json" in read_base(base)


def shard(base: Path, *names: str) -> None:
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_may_be_in_shards(base: Path) -> None:
    shard(base, "model-00001-of-00002.safetensors")
    assert "model.safetensors.index.json" in read_base(base)


SPOILED = {
    "no folder": lambda base: base.rename(base.parent / "moved"),
    "no config": lambda base: (base / "config.json").unlink(),
    "empty config": lambda base: (base / "config.json").write_bytes(b""),
    "config is a list": lambda base: (base / "config.json").write_text("[]"),
    "no weights": lambda base: (base / "model.safetensors").unlink(),
    "empty weights": lambda base: (base / "model.safetensors").write_bytes(b""),
    "cut weights": lambda base: os.truncate(base / "model.safetensors", 70),
    "missing shard": lambda base: shard(base, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "index of nothing": shard,
    "pickle": lambda base: (base / "pytorch_model.bin").write_bytes(b"x"),
    "link elsewhere": lambda base: (base / "secret.txt").symlink_to("/etc/hostname"),
    "dangling link": lambda base: (base / "gone.txt").symlink_to("nowhere"),
    "too many": lambda base: [(base / f"{n}.txt").touch() for n in range(MAX_BASE_FILES)],
}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no folder", "is no folder: give the one that save_pretrained wrote"),
        ("no config", "has no config.json"),
        ("empty config", "config.json is not JSON"),
        ("config is a list", "config.json holds no table"),
        ("no weights", "has neither model.safetensors nor model.safetensors.index.json"),
        ("empty weights", "model.safetensors is no whole safetensors file"),
        ("cut weights", "model.safetensors is no whole safetensors file"),
        ("missing shard", "names model-00002-of-00002.safetensors, which is not there"),
        ("index of nothing", "names no file"),
        (
            "pickle",
            "pytorch_model.bin is a pickle, which may run code on every volunteer: write the model as safetensors",
        ),
        ("link elsewhere", "secret.txt is a link to a file elsewhere"),
        ("dangling link", "gone.txt leads to no file"),
        ("too many", f"files, more than {MAX_BASE_FILES}"),
    ],
)
def test_what_is_no_models_folder_is_refused(base: Path, how: str, said: str) -> None:
    SPOILED[how](base)
    with pytest.raises(InvalidTask) as refused:
        read_base(base)
    assert said in refused.value.message


@pytest.mark.parametrize(
    "path", ["../x", "a/../x", "/etc/x", "a//b", "", "./x", "a\\b", "C:x", "w.BIN", "a/w.pt", "x.pkl"]
)
def test_no_path_leaves_the_folder_and_none_is_a_pickle(path: str) -> None:
    assert base_path_fault(path)


@pytest.mark.parametrize("path", ["config.json", "tokens/a b.txt", "model-00001-of-00002.safetensors", "a..b"])
def test_ordinary_paths_are_taken(path: str) -> None:
    assert base_path_fault(path) is None


@pytest.mark.parametrize(("method", "named"), [("gptq", "GPTQ"), ("awq", "AWQ"), ("AWQ", "AWQ")])
def test_a_base_that_came_quantized_in_a_form_nobody_tried_is_refused_by_name(
    base: Path, method: str, named: str
) -> None:
    (base / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method, "bits": 4}}))
    with pytest.raises(InvalidTask, match=rf"quantized by {named}, and.*before it was quantized.*load_in_4bit=True"):
        read_base(base)


@pytest.mark.parametrize("about", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {}, None, "gptq"])
def test_other_bases_are_taken(base: Path, about: object) -> None:
    (base / "config.json").write_text(json.dumps({"quantization_config": about}))
    assert "config.json" in read_base(base)
