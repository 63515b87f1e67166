"""`farm submit --from`: the checkpoint's weights are taken as they lie on the farm, once they are sure to fit."""

from __future__ import annotations

import textwrap
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn

from farm_client.executor.layout import ModelTensors
from farm_client.executor.rehearsal import rehearse
from farm_client.sdk import check
from protocol.digests import digest_bytes
from protocol.tasks import BlobRef
from protocol.tensors import Role, joined_layout, parse_layout
from tests.farm_client.cli.fake_farm import FakeFarm, make_checkpoint

CODE = """
    import torch

    def build_model(config):
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))

    def loss(model, batch):
        return model(batch["x"]).square().mean()
"""


@pytest.fixture(autouse=True)
def _in_process(monkeypatch):
    monkeypatch.setattr(check, "_run_process", lambda request, folder: (rehearse(request), ""))


@pytest.fixture
def task(tmp_path: Path) -> str:
    (tmp_path / "train.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "task.toml").write_text('[task]\ndata = "data.npz"\n')
    np.savez(tmp_path / "data.npz", x=np.ones((40, 3), np.float32))
    return str(tmp_path)


def keep(fake: FakeFarm, model: nn.Module, round_number: int = 7) -> str:
    """Have the fake farm keep the model as a checkpoint, and return its digest."""
    weights = ModelTensors.of(model).weights_file()
    digest = digest_bytes(weights)
    fake.blobs[digest] = weights
    fake.checkpoints.append(
        make_checkpoint(round_number, digest=digest, size_bytes=len(weights), newest=round_number == 7)
    )
    return digest


def make_model(width: int = 4, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2, bias=bias)).to(dtype)


@pytest.mark.parametrize(("reference", "kept"), [("digits", 7), ("digits@7", 7), ("abcd@3", 3)])
def test_the_checkpoint_becomes_the_initial_weights_and_is_not_sent_again(farm, fake, task, reference, kept):
    digests = {number: keep(fake, make_model(), number) for number in (3, 7)}
    outcome = farm("submit", task, "--from", reference)
    assert outcome.exit_code == 0, outcome.stderr
    (spec,) = fake.submitted
    assert spec.initial_weights.digest == digests[kept]
    assert f"PUT /v1/blobs/{digests[kept]}" not in fake.sent()
    assert f"begins with the weights of digits, abcd2345@{kept}" in outcome.stderr


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (make_model(width=5), "0.bias is F32 [4] in the model and F32 [5] in the checkpoint"),
        (make_model(bias=True), "1.bias is only in the checkpoint"),
        (make_model(dtype=torch.float64), "0.bias is F32 [4] in the model and F64 [4]"),
        (nn.Sequential(nn.Linear(3, 4)), "1.weight is only in the model"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(farm, fake, task, model, said):
    keep(fake, model)
    outcome = farm("submit", task, "--from", "digits")
    assert outcome.exit_code == 1
    assert said in outcome.stderr.splitlines()[-1]
    assert fake.submitted == []


def test_many_differences_are_counted(farm, fake, task):
    keep(fake, nn.Sequential(*(nn.Linear(1, 1) for _ in range(9))))
    assert "and 15 more. Build the same model" in farm("submit", task, "--from", "digits").stderr


def test_layers_that_are_frozen_now_keep_their_values_and_get_their_role(farm, fake, task):
    model = make_model()
    keep(fake, model)
    code = Path(task) / "train.py"
    code.write_text(code.read_text().replace("torch.nn.Linear(3, 4)", "torch.nn.Linear(3, 4).requires_grad_(False)"))
    outcome = farm("submit", task, "--from", "digits")
    assert outcome.exit_code == 0, outcome.stderr
    (spec,) = fake.submitted
    assert spec.frozen is not None
    weights, frozen = fake.blobs[spec.initial_weights.digest], fake.blobs[spec.frozen.digest]
    roles = {spec.name: spec.role for spec in joined_layout(parse_layout(weights), parse_layout(frozen)).tensors}
    assert roles == {"0.weight": Role.FROZEN, "0.bias": Role.FROZEN, "1.weight": Role.PARAMETER}
    assert load(weights).keys() == {"1.weight"}
    for name, tensor in (load(weights) | load(frozen)).items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_frozen_layers_of_a_checkpoint_are_taken_over_or_trained(farm, fake, task):
    model = make_model()
    model[0].requires_grad_(False)
    tensors = ModelTensors.of(model)
    frozen = tensors.frozen_file() or b""
    ref = BlobRef(digest=digest_bytes(frozen), size_bytes=len(frozen))
    fake.blobs[ref.digest] = frozen
    digest = keep(fake, model)
    fake.checkpoints[-1] = fake.checkpoints[-1].model_copy(update={"frozen": ref})
    code = Path(task) / "train.py"
    trained = code.read_text()
    code.write_text(trained.replace("torch.nn.Linear(3, 4)", "torch.nn.Linear(3, 4).requires_grad_(False)"))
    assert farm("submit", task, "--from", "digits").exit_code == 0
    assert (fake.submitted[0].initial_weights.digest, fake.submitted[0].frozen) == (digest, ref)

    code.write_text(trained)
    outcome = farm("submit", task, "--from", "digits")
    assert outcome.exit_code == 0, outcome.stderr
    assert fake.submitted[1].frozen is None
    weights = load(fake.blobs[fake.submitted[1].initial_weights.digest])
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.items())


def test_a_round_that_is_not_kept(farm, fake, task):
    for number in (0, 5, 6, 7):
        keep(fake, make_model(), number)
    outcome = farm("submit", task, "--from", "digits@2")
    assert outcome.exit_code == 1
    assert "no checkpoint of round 2; kept are: 0, 5 to 7" in outcome.stderr


def test_only_the_header_of_large_weights_is_read(farm, fake, task):
    read: list[int] = []
    digest = keep(fake, make_model())
    weights = fake.blobs[digest]

    class Chunks(httpx.SyncByteStream):
        def __iter__(self):
            for start in range(0, len(weights), 64):
                read.append(start)
                yield weights[start : start + 64]

    fake.overrides["GET", f"/v1/blobs/{digest}"] = lambda: httpx.Response(200, stream=Chunks())
    assert farm("submit", task, "--from", "digits").exit_code == 0
    header_bytes = 8 + int.from_bytes(weights[:8], "little")
    assert len(read) * 64 < header_bytes + 64
