"""Updates under a codec: what the wire expects, and nothing of what they lose is lost for good or sent twice."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm_client.executor.failures import CodeError, LossNotFinite
from farm_client.executor.messages import Done, LoadTask
from farm_client.executor.updates import UpdateWriter
from protocol.codecs import BytesReader, decoder
from protocol.codecs.registry import CODECS
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.encoded import check_encoded, largest_bytes
from protocol.recipe import Mode
from protocol.tensors import Layout, Role, TensorSpec, check_update, parse_layout
from protocol.zstd import is_wrapped, unwrap_bytes
from tests.farm_client.executor.awkward import AWKWARD
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of

INT8 = CodecSpec(name=CodecName.INT8, block=16)
LOSSY = list(CODECS)
ROUNDS = 12


def decoded(done: Done, layout: Layout, codec: CodecSpec) -> dict[str, torch.Tensor]:
    """Check an update as the server does, and decode it."""
    assert done.update is not None
    reader = BytesReader(unwrap_bytes(done.update, largest_bytes(layout, codec)))
    check_encoded(layout, codec, reader.header)
    return {spec.name: decoder(reader, spec, codec).decode() for spec in layout.returned}


def stored(done: Done) -> dict[str, torch.Tensor]:
    """Return what is in an update's file. (Its header's bytes differ from time to time: the library shuffles them.)"""
    data = done.update if done.update_path is None else Path(done.update_path).read_bytes()
    assert data is not None
    assert len(data) == done.update_bytes
    assert digest_bytes(data) == done.update_digest
    return safetensors.torch.load(unwrap_bytes(data, 1 << 20))


def assert_same(one: Done, other: Done) -> None:
    assert_same_tensors(stored(one), stored(other))


def assert_same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def bench_with(folder: Path, codec: CodecSpec, source: str = AWKWARD, **options: object) -> Bench:
    folder.mkdir(exist_ok=True)
    return Bench(folder, source, update_codec=codec, **options)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("mode", list(Mode))
def test_every_kind_of_tensor_in_every_codec(tmp_path: Path, name: CodecName, mode: Mode) -> None:
    codec = CodecSpec(name=name, block=16, density=1 / 4)
    bench = bench_with(tmp_path, codec, mode=mode)
    layout = parse_layout(bench.weights)
    exact = update_of(bench_with(tmp_path / "exact", CodecSpec(), mode=mode).train())
    got = decoded(bench.train(), layout, codec)
    assert got.keys() == exact.keys() == {t.name for t in layout.returned}
    assert "fixed.weight" not in got
    assert "tied.weight" not in got
    for spec in layout.returned:
        if spec.role is Role.BUFFER:
            assert torch.equal(got[spec.name], exact[spec.name]), "buffers travel as they are"
        else:
            assert torch.isfinite(got[spec.name]).all()
    assert got["calls"].dtype is torch.int64


def test_without_a_codec_the_file_is_the_plain_one(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, CodecSpec())
    done = bench.train()
    assert done.update is not None
    check_update(parse_layout(bench.weights), BytesReader(done.update).header)
    bench.runner.confirm()
    assert bench.train().update == done.update


@pytest.mark.parametrize("name", sorted(CODECS.keys() & {CodecName.INT8, CodecName.SIGN, CodecName.TOPK}))
def test_what_one_update_loses_comes_with_the_next(tmp_path: Path, name: CodecName) -> None:
    codec = CodecSpec(name=name, block=16, density=1 / 4)
    exact = update_of(bench_with(tmp_path / "exact", CodecSpec()).train())
    fed_back, forgetful = (
        bench_with(tmp_path / str(keeps), codec.model_copy(update={"error_feedback": keeps})) for keeps in (True, False)
    )
    missing = []
    for bench in (fed_back, forgetful):
        total = torch.zeros(40, 3)
        for number in range(ROUNDS):
            total += decoded(bench.train(assignment_id=f"a{number}"), parse_layout(bench.weights), codec)[
                "front.weight"
            ]
            bench.runner.confirm()
        missing.append((total - ROUNDS * exact["front.weight"]).norm())
    assert missing[0] < missing[1] / 2


def test_an_update_that_was_not_reported_is_not_accounted_for(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, INT8)
    first = bench.train()
    assert_same(bench.train(), first)  # begun again: as if it had not been done
    bench.runner.confirm()
    bench.evaluate()
    bench.runner.confirm()
    second = bench.train()
    assert not torch.equal(stored(second)["front.weight/q"], stored(first)["front.weight/q"])
    assert_same(bench.train(), second)
    undisturbed = bench_with(tmp_path / "undisturbed", INT8)
    undisturbed.train()
    undisturbed.runner.confirm()
    assert_same(undisturbed.train(), second)


def test_an_assignment_that_fails_half_way_leaves_what_was_carried_over(tmp_path: Path) -> None:
    bench, undisturbed = (bench_with(tmp_path / name, INT8) for name in ("failing", "undisturbed"))
    for each in (bench, undisturbed):
        each.train()
        each.runner.confirm()
    bench.runner.contract.module.config_fails_at = bench.batch_samples
    with pytest.raises(CodeError, match="half-way"):
        bench.train()
    bench.runner.contract.module.config_fails_at = -1
    assert_same(bench.train(), undisturbed.train())


def test_an_evaluation_does_not_report_what_failed_before_it(tmp_path: Path) -> None:
    bench, undisturbed = (bench_with(tmp_path / name, INT8) for name in ("disturbed", "undisturbed"))
    bench.train()  # and then something fails before it is reported
    bench.evaluate()
    bench.runner.confirm()
    assert_same(bench.train(), undisturbed.train())


class Happening(Enum):
    """How an assignment may go."""

    REPORTED = auto()
    LOST = auto()
    EVALUATED = auto()
    TOO_LARGE = auto()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(Happening), max_size=8), st.sampled_from(LOSSY))
def test_only_what_was_reported_is_carried_over(tmp_path: Path, life: list[Happening], name: CodecName) -> None:
    layout = Layout((TensorSpec("w", "F32", (40, 400)), TensorSpec("x", "F64", (64,))))
    order = bench_order(tmp_path, CodecSpec(name=name, block=16, density=1 / 8))
    lived, undisturbed = UpdateWriter(order, layout), UpdateWriter(order, layout)
    generator = torch.Generator().manual_seed(0)
    for happening in [*life, Happening.REPORTED]:
        update = {"w": torch.randn(40, 400, generator=generator), "x": torch.randn(64, generator=generator).double()}
        lived.begin()
        if happening is Happening.EVALUATED:
            lived.confirm()
        elif happening is Happening.TOO_LARGE:
            with pytest.raises(LossNotFinite):
                lived.write("a", {**update, "w": update["w"] * 1e37})
        elif happening is Happening.LOST:
            lived.write("a", update)
        else:
            got, expected = lived.write("a", update), undisturbed.write("a", update)
            assert_same_tensors(*(safetensors.torch.load(unwrap_bytes(f["update"], 1 << 20)) for f in (got, expected)))
            lived.confirm()
            undisturbed.confirm()


def bench_order(folder: Path, codec: CodecSpec) -> LoadTask:
    return LoadTask(
        task_id="t",
        code_dir=str(folder),
        entry="train.py",
        config={},
        mode=Mode.WEIGHTS,
        seed=0,
        batch_samples=1,
        dataset_kind="files",
        scratch_dir=str(folder),
        report_bytes=1 << 20,
        update_codec=codec,
    )


def test_an_update_that_cannot_be_written_leaves_what_was_carried_over(tmp_path: Path) -> None:
    bench, undisturbed = (bench_with(tmp_path / name, INT8, report_bytes=0) for name in ("failing", "undisturbed"))
    for each in (bench, undisturbed):
        each.train(assignment_id="first")
        each.runner.confirm()
    blocked = bench.folder / "second.update"
    blocked.mkdir()
    with pytest.raises(Exception, match="directory"):
        bench.train(assignment_id="second")
    blocked.rmdir()
    assert_same(bench.train(assignment_id="second"), undisturbed.train(assignment_id="second"))


@pytest.mark.parametrize("zstd", [True, False])
@pytest.mark.parametrize("report_bytes", [0, 1 << 20])
def test_a_file_that_zstd_makes_smaller_is_wrapped(tmp_path: Path, zstd: bool, report_bytes: int) -> None:
    bench = bench_with(tmp_path, INT8.model_copy(update={"zstd": zstd}), report_bytes=report_bytes, config={"lr": 0.0})
    done = bench.train()
    assert (done.update is None) == (report_bytes == 0)
    data = Path(done.update_path).read_bytes() if done.update_path else done.update or b""
    assert is_wrapped(data) == zstd
    assert not stored(done)["front.weight/q"].any()
    assert sorted(path.name for path in tmp_path.glob("a.*")) == (["a.update"] if done.update_path else [])


def test_a_large_update_is_a_file(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, CodecSpec(), report_bytes=100)
    done = bench.train()
    assert done.update is None
    assert done.update_path is not None
    check_update(parse_layout(bench.weights), BytesReader(Path(done.update_path).read_bytes()).header)
    assert stored(done)


def test_numbers_that_no_codec_takes_are_the_researchers_fault(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, INT8, LINEAR + HUGE)
    with pytest.raises(LossNotFinite, match=r"magnitude over .*: lower the learning rate"):
        bench.train()


HUGE = """
    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=1e37)

    def loss(model, batch):
        return 10 * torch.tanh(model(batch["x"])).mean()
"""


def test_a_tensor_with_the_name_of_a_part_is_named(tmp_path: Path) -> None:
    clashing = """
        import torch
        from torch import nn

        def build_model(config):
            model = nn.Linear(3, 200)
            setattr(model, "weight/q", nn.Parameter(torch.ones(1)))
            return model

        def loss(model, batch):
            return model(batch["x"]).square().mean()
    """
    with pytest.raises(CodeError, match=r"weight/q.*rename it"):
        bench_with(tmp_path, INT8, clashing)


def test_the_file_says_its_codec(tmp_path: Path) -> None:
    parts = stored(bench_with(tmp_path, INT8).train())
    assert parts["front.weight/q"].dtype is torch.int8
    assert "front.weight" not in parts
