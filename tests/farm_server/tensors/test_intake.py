"""Updates as they come, in the task's codec and compressed or not: what can be used, and what is refused and why."""

from __future__ import annotations

import io
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from farm_server.tensors.intake import Intake, NonFiniteUpdate, UpdateTooLarge
from farm_server.tensors.layouts import Layouts
from farm_server.tensors.spooled_updates import SpooledUpdates
from farm_server.tensors.torch_side import TorchSide
from farm_server.tensors.unwrapping import Unwrapper
from protocol.assignments import Ack, Kind, Result
from protocol.codecs import encode
from protocol.compression import OF_UPDATES, CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.encoded import largest_bytes, untouched_metadata
from protocol.errors import DigestMismatch, FarmError, LayoutMismatch, MalformedTensors, Unavailable
from protocol.limits import INLINE_BYTES
from protocol.masked_layout import MASKED_METADATA
from protocol.recipe import Recipe
from protocol.retry import RetryPolicy
from protocol.tasks import BlobRef
from protocol.tensors import Layout, parse_layout, weights_metadata
from protocol.zstd import is_wrapped, wrap, wrap_bytes
from storage.blobs import FolderBlobStore
from tests.farm_server import model
from tests.farm_server.test_training import ended, final_weights

SMALL, LARGE = 5000, 2 * INLINE_BYTES
CODECS = [CodecSpec(name=name) for name in OF_UPDATES]
TOPK = CodecSpec(name=CodecName.TOPK)
INT8 = CodecSpec(name=CodecName.INT8)


class Desk:
    """An intake over a real store, for one task."""

    def __init__(self, root: Any, codec: CodecSpec, elements: int = SMALL, **recipe: Any) -> None:
        self.blobs = FolderBlobStore(root / "blobs")
        self.spooled = SpooledUpdates(self.blobs)
        self.full: str | None = None
        self.asked = threading.Event()
        layouts = Layouts(self.blobs)
        weights = model.weights(0.0, elements)
        self.blobs.put_bytes(weights)
        layouts.add("t", model.spec(weights, recipe=Recipe(rounds=1, update_codec=codec, **recipe)))
        torch_side = TorchSide(1)
        torch_side.warm_up()
        self.intake = Intake(
            layouts, self.spooled, torch_side, Unwrapper(self.blobs, self.claim, retry=RetryPolicy(0.01, 0.01))
        )

    def claim(self, size_bytes: int) -> None:
        self.asked.set()
        if self.full is not None:
            raise Unavailable(self.full)

    def result(self, data: bytes, *, inline: bool = True) -> Result:
        bare = model.ref(data) if inline else self.blobs.put_bytes(data)
        update = BlobRef(digest=bare.digest, size_bytes=bare.size_bytes, inline=data if inline else None)
        return Result(assignment_id="a", fence=1, samples=1, metrics={"loss": 0.5}, update=update)

    def check(self, data: bytes, *, inline: bool = True) -> BlobRef:
        update = self.intake.check("t", Kind.TRAIN, self.result(data, inline=inline)).update
        assert update is not None
        return update


def layout_of(elements: int) -> Layout:
    return parse_layout(model.weights(0.0, elements))


def encoded(codec: CodecSpec, elements: int = SMALL, value: torch.Tensor | None = None) -> bytes:
    values = torch.zeros(elements) if value is None else value
    return safetensors.torch.save(*encode({"w": values}, layout_of(elements), codec, None))


def normal(elements: int = SMALL) -> torch.Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("inline", [True, False])
def test_an_update_in_the_tasks_codec_passes_as_it_came(tmp_path, codec, inline):
    desk = Desk(tmp_path, codec)
    data = encoded(codec, value=normal())
    assert not is_wrapped(data)
    assert desk.check(data, inline=inline) == desk.result(data, inline=inline).update


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_an_update_in_another_codec_is_refused(tmp_path, codec):
    desk = Desk(tmp_path, codec)
    for other in CODECS:
        if other != codec:
            with pytest.raises(LayoutMismatch, match=r"codec|format"):
                desk.check(encoded(other, value=normal()))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_only_where_a_fragment_travels_an_update_may_lack_what_it_calls_untouched(tmp_path, codec):
    layout = layout_of(SMALL)
    _, metadata = encode({"w": torch.zeros(SMALL)}, layout, codec, None)
    bare = safetensors.torch.save({}, metadata)
    told = safetensors.torch.save({}, metadata | untouched_metadata(["w"]))
    in_fragments, whole = Desk(tmp_path / "a", codec, fragments=2), Desk(tmp_path / "b", codec)
    assert in_fragments.check(told) == in_fragments.result(told).update
    for desk, data in ((in_fragments, bare), (whole, bare), (whole, told)):
        with pytest.raises(LayoutMismatch):
            desk.check(data)


def test_a_small_compressed_update_is_unwrapped_in_memory(tmp_path):
    desk = Desk(tmp_path, TOPK)
    data = encoded(TOPK)
    wrapped = wrap_bytes(data)
    assert is_wrapped(wrapped)
    assert not desk.intake.is_quick(desk.result(wrapped))
    plain = desk.check(wrapped)
    assert plain == BlobRef(digest=digest_bytes(data), size_bytes=len(data), inline=data)


@pytest.mark.parametrize("inline", [True, False])
def test_a_large_compressed_update_is_unwrapped_to_the_disk_and_both_go_with_the_last_user(tmp_path, inline):
    desk = Desk(tmp_path, INT8, LARGE)
    data = encoded(INT8, LARGE)
    wrapped = wrap_bytes(data)
    plain = desk.check(wrapped, inline=inline)
    assert plain == model.ref(data)
    assert desk.blobs.read(plain.digest) == data
    desk.spooled.hold(plain)
    again = desk.check(wrapped, inline=inline)  # the connection broke, and the client sends its result once more
    assert again == plain
    desk.spooled.hold(again)
    desk.spooled.release(plain)
    assert desk.blobs.has(plain.digest)
    assert desk.blobs.has(digest_bytes(wrapped)) != inline
    desk.spooled.release(again)
    assert not desk.blobs.has(plain.digest)
    assert not desk.blobs.has(digest_bytes(wrapped))


def test_many_may_bring_the_same_compressed_update_at_once(tmp_path):
    desk = Desk(tmp_path, INT8, LARGE)
    wrapped = wrap_bytes(encoded(INT8, LARGE))
    with ThreadPoolExecutor(4) as threads:
        updates = list(threads.map(lambda _: desk.check(wrapped, inline=False), range(8)))
    assert len(set(updates)) == 1
    assert desk.blobs.has(updates[0].digest)


def bomb(size_bytes: int) -> bytes:
    target = io.BytesIO()
    assert wrap(io.BytesIO(bytes(size_bytes)), target)
    return target.getvalue()


@pytest.mark.parametrize("elements", [SMALL, LARGE])
@pytest.mark.parametrize("spoil", ["cut", "followed", "bomb", "no tensors"])
def test_a_compressed_update_that_is_not_what_it_should_be_leaves_nothing_behind(tmp_path, elements, spoil):
    desk = Desk(tmp_path, INT8, elements)
    wrapped = wrap_bytes(encoded(INT8, elements))
    limit_bytes = largest_bytes(layout_of(elements), INT8)
    data = {
        "cut": wrapped[:-5],
        "followed": wrapped + b"\0",
        "bomb": bomb(limit_bytes + 1),
        "no tensors": bomb(limit_bytes),
    }[spoil]
    known = set(tmp_path.rglob("*"))
    with pytest.raises(MalformedTensors):
        desk.check(data)
    assert {path for path in set(tmp_path.rglob("*")) - known if path.is_file()} == set()


def test_numbers_that_are_not_finite_are_found_inside_a_codec(tmp_path):
    for codec, part in ((INT8, "w/scale"), (TOPK, "w/value"), (CodecSpec(), "w")):
        desk = Desk(tmp_path / codec.name, codec)
        tensors = safetensors.torch.load(encoded(codec, value=normal()))
        metadata = encode({"w": normal()}, layout_of(SMALL), codec, None)[1]
        tensors[part].view(-1)[-1] = float("nan")
        for inline in (True, False):
            with pytest.raises(NonFiniteUpdate, match=part):
                desk.check(safetensors.torch.save(tensors, metadata), inline=inline)


def test_bytes_that_are_not_the_named_ones_are_refused(tmp_path):
    desk = Desk(tmp_path, CodecSpec())
    result = desk.result(encoded(CodecSpec()))
    assert result.update is not None
    other = result.update.model_copy(update={"inline": encoded(CodecSpec(), value=normal())})
    with pytest.raises(DigestMismatch):
        desk.intake.check("t", Kind.TRAIN, result.model_copy(update={"update": other}))


def test_a_full_disk_makes_a_compressed_update_wait_and_not_fail(tmp_path):
    desk = Desk(tmp_path, INT8, LARGE)
    desk.full = "no space is left"
    data = encoded(INT8, LARGE)
    with ThreadPoolExecutor(1) as thread:
        check = thread.submit(desk.check, wrap_bytes(data))
        assert desk.asked.wait(30)
        assert not check.done()
        desk.full = None
        assert check.result(30) == model.ref(data)


def test_a_server_that_stops_does_not_wait_for_the_disk(tmp_path):
    desk = Desk(tmp_path, INT8, LARGE)
    desk.full = "no space is left"
    with ThreadPoolExecutor(1) as thread:
        check = thread.submit(desk.check, wrap_bytes(encoded(INT8, LARGE)))
        assert desk.asked.wait(30)
        desk.intake.close()
        with pytest.raises(Unavailable, match="no space"):
            check.result(30)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_file_that_is_cut_on_the_disk_is_an_error_and_no_crash(tmp_path, codec):
    desk = Desk(tmp_path, codec)
    result = desk.result(encoded(codec, value=normal()), inline=False)
    assert result.update is not None
    path = desk.blobs.path(result.update.digest)
    whole = path.read_bytes()
    for size in (0, 3, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FarmError):
            desk.intake.check("t", Kind.TRAIN, result)
    path.write_bytes(struct.pack("<Q", 2**63) + whole[8:])
    with pytest.raises(MalformedTensors, match="limit"):
        desk.intake.check("t", Kind.TRAIN, result)


async def test_a_task_with_a_codec_trains_over_the_wire(server):
    recipe = Recipe(rounds=1, round_samples=64, update_codec=INT8)
    initial = model.weights(0.0, LARGE)
    task_id = await model.submit(server.http, model.spec(initial, recipe=recipe), initial=initial)
    wrapped = wrap_bytes(encoded(INT8, LARGE, torch.ones(LARGE)))
    async with server.volunteer(codecs=("int8",)) as volunteer:
        await volunteer.ready()
        assign = await volunteer.accept()
        assert assign.task.update_codec == INT8
        await model.upload(server.http, wrapped)
        await volunteer.deliver(assign, wrapped, update=model.ref(wrapped))
        await volunteer.next(Ack)
        view = await ended(server.http, task_id)
    assert view["state"] == "completed"
    np.testing.assert_allclose(await final_weights(server.http, task_id), -1.0, rtol=1e-6)
    assert not server.farm.blobs.has(digest_bytes(wrapped))


@pytest.mark.parametrize("which", ["update_codec", "weights_codec"])
async def test_a_model_whose_names_a_codec_needs_is_refused_at_submission(server, which):
    initial = safetensors.torch.save({"w": torch.zeros(SMALL), "w/q": torch.zeros(1)}, weights_metadata({}, {}))
    task = model.spec(initial, recipe=Recipe(rounds=1, **{which: INT8}))
    await model.upload(server.http, model.CODE, model.SHARD, initial)
    answer = await server.http.post("/v1/tasks", json=task.model_dump(mode="json"))
    assert answer.status_code == 422
    assert "'w/q'" in answer.json()["message"]


def test_no_more_updates_are_looked_at_than_there_are_cores(tmp_path, monkeypatch):
    """Each is in memory meanwhile: the more clients, the more of it."""
    monkeypatch.setattr("farm_server.tensors.intake._LOOKING_AT_ONCE", 2)
    desk = Desk(tmp_path, CodecSpec(), LARGE)
    both_look, counting, looking, most = threading.Barrier(2, timeout=10), threading.Lock(), 0, 0

    def look(*_: object) -> None:
        nonlocal looking, most
        with counting:
            looking += 1
            most = max(most, looking)
        both_look.wait()
        with counting:
            looking -= 1

    monkeypatch.setattr(TorchSide, "bad_tensor", look)
    updates = [model.update(float(number), LARGE) for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        for checked in [threads.submit(desk.check, update, inline=False) for update in updates]:
            checked.result()
    assert most == 2


def test_a_finite_number_too_large_to_be_summed_is_refused(tmp_path):
    """The sum would be infinite, and the whole round be lost for one client's update."""
    desk = Desk(tmp_path, CodecSpec())
    value = normal()
    value[17] = torch.finfo(torch.float32).max / 2
    with pytest.raises(UpdateTooLarge, match="update of w"):
        desk.check(encoded(CodecSpec(), value=value))
    desk.check(encoded(CodecSpec(), value=normal() * 1e6))


SECURE = {"secure_aggregation": True, "min_clients": 3}


def masked(elements: int = SMALL, dtype: torch.dtype = torch.int32, name: str = "w", **metadata: str) -> bytes:
    return safetensors.torch.save({name: torch.ones(elements, dtype=dtype)}, metadata or dict(MASKED_METADATA))


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.int32), (64, torch.int64)])
def test_a_masked_update_passes_as_it_came(tmp_path, bits, dtype, inline):
    desk = Desk(tmp_path, CodecSpec(), secure_bits=bits, **SECURE)
    data = masked(dtype=dtype)
    assert desk.check(data, inline=inline) == desk.result(data, inline=inline).update


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (masked(SMALL - 1), "has to be I32"),
        (masked(dtype=torch.int64), "is I64"),
        (masked(dtype=torch.float32), "is F32"),
        (masked(name="v"), "'v' is only in one"),
        (masked(format="another"), "metadata"),
        (encoded(CodecSpec(name=CodecName.NONE)), "metadata"),  # plain: sums of the task are secure
    ],
)
def test_another_update_than_the_masked_one_of_a_secure_sum_is_refused(tmp_path, data, named):
    desk = Desk(tmp_path, CodecSpec(), **SECURE)
    for inline in (True, False):
        with pytest.raises(LayoutMismatch, match=named):
            desk.check(data, inline=inline)


def test_a_masked_update_that_is_no_file_of_tensors_or_compressed_is_refused(tmp_path):
    desk = Desk(tmp_path, CodecSpec(), **SECURE)
    for data in (masked()[:-1], masked() + b"x", wrap_bytes(masked()), b""):
        with pytest.raises(MalformedTensors):
            desk.check(data)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_masked_update_is_refused_where_sums_are_plain(tmp_path, codec):
    with pytest.raises(LayoutMismatch):
        Desk(tmp_path, codec).check(masked())
