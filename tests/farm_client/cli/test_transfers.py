"""`farm pull` and the upload: whole files, checked, or none."""

from __future__ import annotations

import os
import signal

import httpx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from farm_client.sdk import blocking_transfers
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from farm_client.sdk.download import download_weights
from farm_client.sdk.errors import FarmUnreachable
from farm_client.sdk.upload import upload
from farm_client.transfer import download
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, NotFound
from protocol.recipe import Recipe
from protocol.retry import RetryPolicy
from protocol.tasks import BlobRef
from protocol.tensors import Role, weights_metadata
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm, make_checkpoint


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("scale", torch.tensor([2.0], dtype=torch.float64))


def publish(fake: FakeFarm, tensors: dict[str, torch.Tensor], tied: dict[str, str]) -> None:
    roles = {name: Role.BUFFER for name in ("mask", "scale") if name in tensors}
    data = save(tensors, metadata=weights_metadata(roles, tied))
    fake.model_digest = digest_bytes(data)
    fake.blobs[fake.model_digest] = data


def test_a_model_with_tied_weights_loads_as_it_is(farm, fake, tmp_path):
    model = Tied()
    state = {name: value for name, value in model.state_dict().items() if name != "head.weight"}
    publish(fake, state, {"head.weight": "embed.weight"})
    output = tmp_path / "out" / "model.safetensors"
    outcome = farm("pull", "digits", "-o", str(output), "--round", "2", "--json")
    assert outcome.envelope("model")["path"] == str(output)
    other = Tied()
    other.load_state_dict(load_file(output))
    assert torch.equal(other.head.weight, model.embed.weight)
    assert torch.equal(other.mask, model.mask)
    with safe_open(output, framework="pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "task": "abcd2345",
            "round": "2",
            "weights_digest": fake.model_digest,
        }


def test_a_model_for_torch_is_loaded_without_unpickling(farm, fake, tmp_path):
    model = Tied()
    state = {name: value for name, value in model.state_dict().items() if name != "head.weight"}
    publish(fake, state, {"head.weight": "embed.weight"})
    output = tmp_path / "out" / "model.pt"
    assert farm("pull", "digits", "--format", "torch", "-o", str(output), "--json").envelope("model")["path"] == str(
        output
    )
    other = Tied()
    other.load_state_dict(torch.load(output, weights_only=True))
    assert torch.equal(other.head.weight, model.embed.weight)
    assert torch.equal(other.mask, model.mask)
    assert [path.name for path in output.parent.iterdir()] == ["model.pt"]


def test_a_model_for_torch_that_came_damaged_leaves_the_old_one_in_place(farm, fake, tmp_path):
    publish(fake, {"a": torch.ones(2)}, {})
    fake.blobs[fake.model_digest] = fake.blobs[fake.model_digest][:-1] + b"x"
    output = tmp_path / "model.pt"
    output.write_bytes(b"the old one")
    assert farm("pull", "digits", "--format", "torch", "-o", str(output)).exit_code == 1
    assert output.read_bytes() == b"the old one"


def test_each_format_has_a_name_of_its_own(farm, fake, tmp_path, monkeypatch):
    publish(fake, {"a": torch.ones(2)}, {})
    monkeypatch.chdir(tmp_path)
    names = [
        farm("pull", "digits", "--format", kind, "--json").envelope("model")["path"]
        for kind in ("torch", "safetensors")
    ]
    assert names == ["model.pt", "model.safetensors"]
    assert "onnx" in farm("pull", "digits", "--format", "pickle").stderr


def test_a_pulled_model_is_an_ordinary_file_and_nothing_is_left_beside_it(farm, fake, tmp_path):
    publish(fake, {"a": torch.ones(2)}, {})
    before = os.umask(0o022)
    try:
        assert farm("pull", "digits", "-o", str(tmp_path / "m.safetensors")).exit_code == 0
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o644


def test_damaged_bytes_leave_the_old_model_in_place(farm, fake, tmp_path):
    publish(fake, {"a": torch.ones(2)}, {})
    fake.blobs[fake.model_digest] = fake.blobs[fake.model_digest][:-1] + b"x"
    output = tmp_path / "m.safetensors"
    output.write_text("old")
    outcome = farm("pull", "digits", "-o", str(output), "--json")
    assert outcome.exit_code == 1
    assert outcome.envelope("error")["code"] == "digest_mismatch"
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_a_round_that_is_not_kept_is_told_in_the_farms_words(farm, fake, tmp_path):
    fake.checkpoints = [make_checkpoint(5)]
    outcome = farm("pull", "digits", "--round", "3", "-o", str(tmp_path / "m.safetensors"))
    assert outcome.exit_code == 1
    assert outcome.stderr == "farm: there is no such checkpoint\n"


def test_checkpoints_are_listed_with_the_newest_and_the_best(farm, fake):
    fake.recipe = Recipe(rounds=3, keep_best="max:accuracy")
    best = make_checkpoint(2, metrics={"accuracy": 0.95})
    fake.checkpoints = [make_checkpoint(1), best, make_checkpoint(3, newest=True)]
    lines = farm("checkpoints", "digits").stdout.splitlines()
    assert [("best" in line, "newest" in line) for line in lines[1:]] == [(False, False), (True, False), (False, True)]
    assert "accuracy 0.95" in lines[2]
    assert [c["round"] for c in farm("checkpoints", "digits", "--json").envelope("checkpoints")] == [1, 2, 3]


def test_a_dropped_checkpoint_is_said_to_be_gone(farm, tmp_path):
    outcome = farm("pull", "digits", "-o", str(tmp_path / "m.safetensors"), "--json")
    assert outcome.envelope("error")["code"] == "not_found"


@pytest.fixture
def api(fake):
    with FarmApi(parse_address(ADDRESS, "test"), fake.transport()) as api:
        yield api


def test_only_what_the_farm_lacks_is_sent(api, fake, tmp_path):
    contents = [b"", b"small", os.urandom(3 * 1024 * 1024 + 7)]
    file = tmp_path / "shard"
    file.write_bytes(contents[2])
    blobs = {digest_bytes(data): data for data in contents[:2]} | {digest_bytes(contents[2]): file}
    fake.blobs[digest_bytes(b"small")] = b"small"
    done: list[int] = []
    uploaded = upload(api, blobs, done.append)
    assert (uploaded.blobs, uploaded.sent_blobs, uploaded.sent_bytes) == (3, 2, len(contents[2]))
    assert sum(done) == sum(len(data) for data in contents)
    assert {digest: fake.blobs[digest] for digest in blobs} == {digest_bytes(data): data for data in contents}
    assert upload(api, blobs).sent_blobs == 0


def test_a_large_blob_goes_in_parts_when_its_turn_has_come(api, fake):
    data, heard = os.urandom(3 * 1024 * 1024), []
    fake.upload_waits = ["1 upload is before it"]
    upload(api, {digest_bytes(data): data}, waits=heard.append)
    assert fake.blobs[digest_bytes(data)] == data
    assert heard == ["1 upload is before it", None]
    assert [request.method for request in fake.requests] == ["POST", "POST", "PATCH", "PATCH", "PATCH"]
    assert {request.headers["x-farm-client"] for request in fake.requests} == {
        fake.requests[0].headers["x-farm-client"]
    }


def test_an_upload_ended_by_ctrl_c_goes_on_from_there(api, fake):
    data = os.urandom(3 * 1024 * 1024)
    blobs = {digest_bytes(data): data}
    with pytest.raises(KeyboardInterrupt):
        upload(api, blobs, CtrlC(1024 * 1024))
    done = []
    uploaded = upload(api, blobs, done.append)
    assert uploaded.sent_bytes < len(data)
    assert sum(done) == len(data)
    assert fake.blobs == blobs


def test_a_download_ended_by_ctrl_c_goes_on_from_there(api, fake, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PART_BYTES", 1024 * 1024)
    monkeypatch.setattr(download, "PARALLEL", 1)
    data = os.urandom(3 * 1024 * 1024)
    blob = BlobRef(digest=digest_bytes(data), size_bytes=len(data))
    fake.blobs[blob.digest] = data
    with pytest.raises(KeyboardInterrupt):
        download_weights(api, blob, tmp_path / "weights", CtrlC(1024 * 1024))
    before, done = len(fake.requests), []
    download_weights(api, blob, tmp_path / "weights", done.append)
    assert (tmp_path / "weights").read_bytes() == data
    assert list(tmp_path.iterdir()) == [tmp_path / "weights"]
    assert sum(done) == len(data)
    assert "bytes=0-1048575" not in {request.headers.get("range") for request in fake.requests[before:]}


def test_a_farm_that_is_gone_is_unreachable_and_not_merely_unavailable(fake, monkeypatch):
    monkeypatch.setattr(blocking_transfers, "RETRY", RetryPolicy(first_seconds=0.0, longest_seconds=0.0, tries=2))

    def refuse(request):
        raise httpx.ConnectError("refused", request=request)

    with (
        FarmApi(parse_address(ADDRESS, "test"), httpx.MockTransport(refuse)) as api,
        pytest.raises(FarmUnreachable, match="farm-server up"),
    ):
        upload(api, {digest_bytes(b"x"): b"x"})


class CtrlC:
    """Somebody presses it when so many bytes are done."""

    def __init__(self, after_bytes):
        self._left_bytes = after_bytes

    def __call__(self, count):
        before, self._left_bytes = self._left_bytes, self._left_bytes - count
        if before > 0 >= self._left_bytes:
            signal.raise_signal(signal.SIGINT)


def test_a_file_that_changed_meanwhile_is_refused(api, tmp_path):
    file = tmp_path / "shard"
    file.write_bytes(b"new")
    with pytest.raises(DigestMismatch):
        upload(api, {digest_bytes(b"old"): file})


def test_a_missing_blob_is_not_found(api):
    with pytest.raises(NotFound), api.get_blob("0" * 64):
        pass


def test_a_long_poll_may_last_as_long_as_it_was_asked_to(api, fake):
    api.events("abcd2345", wait_seconds=30)
    timeout = fake.requests[-1].extensions["timeout"]
    assert timeout["read"] > 30
    assert fake.requests[-1].url.params["wait"] == "30"


def test_a_proxy_for_the_web_is_not_asked_for_a_farm_on_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    near, far = (FarmApi(parse_address(f"http://t@{host}:1", "test")) for host in ("127.0.0.1", "farm.test"))
    with near, far:
        assert [bool(client._http._mounts) for client in (near, far)] == [False, True]
    assert isinstance(near._http, httpx.Client)
