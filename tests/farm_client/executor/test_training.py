"""What a client sends back, against plain torch on the same samples, for models of every awkward kind."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from farm_client.data.shards import read_shard
from farm_client.executor.failures import CodeError, LossNotFinite, MissingFile
from farm_client.executor.samples import even_sizes
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.encoded import untouched_in
from protocol.recipe import InnerState, Mode
from protocol.tasks import Split
from protocol.tensors import check_update, joined_layout, parse_layout, read_header
from protocol.zstd import unwrap_bytes
from tests.farm_client.executor.bench_task import LINEAR, Bench, toy_arrays, update_of

NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.front = nn.Linear(3, 4)
            self.norm = nn.BatchNorm1d(4)
            self.back = nn.Linear(4, 2)
            self.fixed = nn.Linear(2, 2)
            self.fixed.requires_grad_(False)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.register_buffer("local", torch.zeros(1), persistent=False)

        def forward(self, x):
            self.calls = self.calls + 1
            return self.fixed(self.back(torch.relu(self.norm(self.front(x)))))

    def build_model(config):
        return Net()

    def build_optimizer(model, config):
        return torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1, momentum=0.9)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""

TIED_BF16 = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight
            self.unused = nn.Parameter(torch.ones(3))

    def build_model(config):
        return Net().to(getattr(torch, config["dtype"]))

    def loss(model, batch):
        scores = model.head(model.embed(batch["token"]))
        return nn.functional.cross_entropy(scores.float(), batch["token"])
"""


def all_samples(bench: Bench) -> dict[str, torch.Tensor]:
    """Return the training rows in the order in which the runner reads them."""
    batches = list(bench.runner._source.batches(bench.run_order().pieces, 0))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_weights_mode_is_plain_local_training(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NET, batch_samples=9)
    reference = bench.runner.contract.build_model()
    reference.load_state_dict(bench.whole())
    before = {n: t.detach().clone() for n, t in reference.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    data, losses = all_samples(bench), []
    for start in range(0, len(data["y"]), 9):
        x, y = data["x"][start : start + 9], data["y"][start : start + 9]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(reference(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item() * len(y))

    done = bench.train()
    update = update_of(done)
    after = reference.state_dict()
    assert done.samples == 72
    assert done.metrics["loss"] == pytest.approx(sum(losses) / 72, rel=1e-6)
    for name in ("front.weight", "norm.bias", "back.bias"):
        torch.testing.assert_close(update[name], before[name] - after[name])
    for name in ("norm.running_mean", "norm.num_batches_tracked", "calls"):
        torch.testing.assert_close(update[name], after[name])
    assert update["calls"].item() == 8
    assert update["calls"].dtype is torch.int64
    check_update(parse_layout(bench.weights), read_header(done.update or b""))


MOMENTUM = (
    LINEAR
    + """
    calls = 0

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def fragile(model, batch, plain=loss):
        global calls
        calls += 1
        if calls == 12:
            raise ValueError("the third batch of the second round")
        return plain(model, batch)

    loss = fragile
"""
)


def test_the_inner_optimizer_is_new_in_each_round(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MOMENTUM.replace("== 12", "== 0"))
    assert bench.train(round=0).update == bench.train(round=1).update


def test_a_kept_inner_optimizer_goes_on_where_it_was(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MOMENTUM.replace("== 12", "== 0"), inner_state=InnerState.KEPT)
    reference = bench.runner.contract.build_model()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    base = safetensors.torch.load(bench.weights)
    data = all_samples(bench)
    for number in range(3):
        reference.load_state_dict(base)  # the weights are the round's, the momentum is the client's
        for start in range(0, len(data["y"]), bench.batch_samples):
            rows = slice(start, start + bench.batch_samples)
            optimizer.zero_grad()
            nn.functional.cross_entropy(reference(data["x"][rows]), data["y"][rows]).backward()
            optimizer.step()
        update = update_of(bench.train(round=number))
        bench.evaluate(round=number)
        for name, tensor in reference.state_dict().items():
            torch.testing.assert_close(update[name], base[name] - tensor)


SHARED = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(3))
            self.other = nn.Parameter(self.one.detach())

    def build_model(config):
        return Net()

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.5)

    def loss(model, batch):
        return model.one.sum() + 3 * model.other.sum() + 0 * batch["x"].sum()
"""


def test_parameters_that_share_memory_do_not_spoil_each_others_update(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SHARED, batch_samples=1000)
    update = update_of(bench.train())
    for name in ("one", "other"):
        torch.testing.assert_close(update[name], torch.full((3,), 0.5 * (1 + 3)))


def test_a_round_that_failed_half_way_leaves_no_inner_optimizer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MOMENTUM, inner_state=InnerState.KEPT)
    first = bench.train()
    with pytest.raises(CodeError, match="third batch"):
        bench.train()
    assert bench.train().update == first.update


def test_the_layout_names_roles_as_the_wire_wants_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NET)
    layout, frozen = parse_layout(bench.weights), parse_layout(bench.frozen or b"")
    roles = {t.name: t.role.value for t in joined_layout(layout, frozen).tensors}
    assert not any(t.role.value == "frozen" for t in layout.tensors), "a version has only what may change"
    assert roles["front.weight"] == "parameter"
    assert roles["fixed.bias"] == "frozen"
    assert roles["norm.running_var"] == roles["calls"] == "buffer"
    assert "local" not in roles


@pytest.mark.parametrize("batch_samples", [7, 32, 1000])
def test_gradients_mode_is_the_gradient_of_the_mean_loss(tmp_path: Path, batch_samples: int) -> None:
    bench = Bench(tmp_path, LINEAR, mode=Mode.GRADIENTS, batch_samples=batch_samples)
    model = bench.runner.contract.build_model()
    model.load_state_dict(safetensors.torch.load(bench.weights))
    data = all_samples(bench)
    nn.functional.cross_entropy(model(data["x"]), data["y"]).backward()
    update = update_of(bench.train())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(update[name], parameter.grad)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_tied_weights_go_once_and_unused_ones_as_zero(tmp_path: Path, mode: Mode, dtype: str) -> None:
    arrays = {"token": np.arange(60) % 5}
    bench = Bench(tmp_path, TIED_BF16, mode=mode, config={"dtype": dtype}, arrays=arrays)
    layout = parse_layout(bench.weights)
    assert dict(layout.tied) == {"head.weight": "embed.weight"}
    done = bench.train()
    update = update_of(done)
    check_update(layout, read_header(done.update or b""))
    assert set(update) == {"embed.weight", "unused"}
    assert update["embed.weight"].dtype is getattr(torch, dtype)
    assert update["embed.weight"].abs().sum() > 0
    if mode is Mode.GRADIENTS:
        assert not update["unused"].any()
    assert untouched_in(layout, read_header(done.update or b"")) == {"unused"}


def test_what_an_earlier_update_left_of_an_untouched_parameter_still_counts(tmp_path: Path) -> None:
    source = """
        import torch
        from torch import nn

        def build_model(config):
            return nn.ModuleDict({"x": nn.Linear(3, 2), "rare": nn.Linear(3, 2)})

        def loss(model, batch):
            used = ("x", "rare") if model.training and loss.calls == 0 else ("x",)
            loss.calls += 1
            return sum(nn.functional.cross_entropy(model[name](batch["x"]), batch["y"]) for name in used)

        loss.calls = 0
    """
    codec = CodecSpec(name=CodecName.TOPK, density=0.2)
    bench = Bench(tmp_path, source, mode=Mode.GRADIENTS, batch_samples=1000, update_codec=codec)
    layout = parse_layout(bench.weights)
    said = []
    for _ in range(2):
        update = unwrap_bytes(bench.train().update or b"", 1 << 20)
        bench.runner.confirm()
        said.append(untouched_in(layout, read_header(update)))
    # the codec kept some of the weight's first gradient back, which comes with the second; the bias went whole
    assert said == [set(), {"rare.bias"}]


def test_a_repeated_assignment_gives_the_same_bytes(tmp_path: Path) -> None:
    source = NET.replace("torch.relu(", "torch.dropout(torch.relu(").replace(
        "self.front(x)))))", "self.front(x))), 0.5, True)))"
    )
    bench = Bench(tmp_path, source)
    first = bench.train()
    bench.evaluate()
    again = bench.train(weights=None)
    assert first.update == again.update


def test_weights_are_sent_once_and_asked_for_when_not_held(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LINEAR)
    with pytest.raises(Exception, match="does not hold weights"):
        bench.train(weights=None)
    path = tmp_path / "weights"
    path.write_bytes(bench.weights)
    by_path = bench.train(weights=None, weights_path=str(path))
    assert by_path.update == bench.train(weights=None).update == bench.train().update


def test_a_large_update_goes_to_a_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LINEAR, report_bytes=16)
    done = bench.train()
    assert done.update is None
    assert done.update_path is not None
    data = Path(done.update_path).read_bytes()
    assert len(data) == done.update_bytes
    assert digest_bytes(data) == done.update_digest
    check_update(parse_layout(bench.weights), read_header(data))


def test_pieces_of_several_shards_fill_the_batches(tmp_path: Path) -> None:
    source = (
        LINEAR
        + """
    sizes = []
    def evaluate(model, data):
        return {"batches": len(data), "samples": data.samples}
    """
    )
    bench = Bench(tmp_path, source, batch_samples=10)
    sizes = [samples for samples, _ in bench.runner._source.batches(bench.run_order().pieces, 0).sized()]
    assert sizes == [9] * 8
    done = bench.evaluate()
    assert done.metrics == {"batches": 3.0, "samples": 24.0}
    assert done.update is None


@given(st.integers(1, 2000), st.integers(1, 300))
def test_batches_are_few_and_even(samples: int, largest: int) -> None:
    sizes = even_sizes(samples, largest)
    assert sum(sizes) == samples
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, samples, largest), "BatchNorm cannot train on one"
    if (samples, largest) not in [(n, 2) for n in range(3, samples + 1, 2)]:
        assert len(sizes) == math.ceil(samples / largest)
        assert max(sizes) <= largest


def test_an_odd_number_of_samples_in_twos_begins_with_three() -> None:
    assert even_sizes(5, 2) == [3, 2]


def test_default_evaluation_is_the_mean_loss_and_leaves_the_buffers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NET.replace("self.calls = self.calls + 1", ""))
    done = bench.evaluate()
    model = bench.runner.contract.build_model().eval()
    model.load_state_dict(bench.whole())
    data = bench.run_order().model_copy(update={"pieces": bench.pieces(Split.HOLDOUT)})
    rows = list(bench.runner._source.batches(data.pieces, 0))
    x, y = (torch.cat([b[k] for b in rows]) for k in ("x", "y"))
    assert done.metrics["loss"] == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-6)
    assert done.samples == 24


def test_dict_losses_and_strings_in_a_batch(tmp_path: Path) -> None:
    source = LINEAR.replace(
        'return nn.functional.cross_entropy(model(batch["x"]), batch["y"])',
        """assert all(word.startswith("wörd") for word in batch["word"])
        return {"loss": model(batch["x"]).square().mean(), "characters": sum(map(len, batch["word"]))}""",
    )
    words = np.array([f"wörd{i}" for i in range(96)])
    bench = Bench(tmp_path, source, arrays={**toy_arrays(), "word": words}, batch_samples=96)
    assert bench.train().metrics["characters"] > 72 * 5


def test_logged_metrics_are_reported_with_the_progress(tmp_path: Path) -> None:
    source = (
        LINEAR
        + """
    from farm_client.task import log
    def build_optimizer(model, config):
        log(step=7, metrics={"half": torch.tensor(0.5)})
        return torch.optim.SGD(model.parameters(), lr=0.1)
    """
    )
    from farm_client import task
    from farm_client.executor.progress import ProgressReporter

    bench = Bench(tmp_path, source)
    progress = ProgressReporter(bench.advances.append)
    progress.start("a")
    task.send_metrics_to(progress.log)
    try:
        bench.runner.run(bench.run_order(), progress)
    finally:
        task.send_metrics_to(None)
    progress.finish()
    [point] = bench.advances[-1].metrics
    assert (point.name, point.value, point.step) == ("half", 0.5, 7)
    assert bench.advances[-1].samples_done == 72


def test_a_loss_that_is_not_finite_is_the_researchers(tmp_path: Path) -> None:
    arrays = toy_arrays()
    arrays["x"][5] = np.nan
    with pytest.raises(LossNotFinite, match=r"loss is nan at step \d+ of the round: lower the learning rate"):
        Bench(tmp_path, LINEAR, arrays=arrays).train()


def test_an_infinite_step_is_found_after_the_last_batch(tmp_path: Path) -> None:
    source = (
        LINEAR
        + """
    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=3e38)
    """
    )
    with pytest.raises(LossNotFinite, match="NaN or infinity in"):
        Bench(
            tmp_path, source.replace("return nn.functional", "return 100 * nn.functional"), batch_samples=1000
        ).train()


def test_other_weights_than_the_codes_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LINEAR)
    foreign = safetensors.torch.save({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
    with pytest.raises(CodeError, match="does not build the submitted model: weight"):
        bench.train(weights=foreign, weights_digest="f" * 64)


def test_a_missing_shard_is_this_machines_fault(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LINEAR)
    for path in bench.files.values():
        path.unlink()
    with pytest.raises(MissingFile, match="it will be fetched again"):
        bench.train()


def test_an_attention_mask_of_infinities_is_frozen(tmp_path: Path) -> None:
    source = LINEAR.replace(
        "return nn.Linear(3, 2)",
        """model = nn.Linear(3, 2)
        model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        return model""",
    )
    bench = Bench(tmp_path, source)
    assert [(t.name, t.role.value) for t in parse_layout(bench.frozen or b"").tensors] == [("mask", "frozen")]
    assert set(update_of(bench.train())) == {"weight", "bias"}


def test_a_lazy_model_is_told_how_to_get_its_shapes(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="run the lazy model on one input in build_model"):
        Bench(tmp_path, LINEAR.replace("nn.Linear(3, 2)", "nn.LazyLinear(2)"))


def test_metrics_that_are_no_numbers_are_noted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = (
        LINEAR
        + """
    def evaluate(model, data):
        return {"auc": float("nan"), **{f"m{i:03}": i for i in range(150)}}
    """
    )
    metrics = Bench(tmp_path, source).evaluate().metrics
    assert len(metrics) == 100
    assert "m099" in metrics
    assert "the metric 'auc' is nan and was left out" in capsys.readouterr().err


def test_shards_are_read_as_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LINEAR)
    assert read_shard(next(iter(bench.files.values()))).samples == bench.shards[0].samples
