"""Parting a checkpoint's tensors as a model's are: whichever file they come from, each keeps its value and its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from farm_client.sdk.checkpoints import best_round
from farm_client.sdk.warm_start import Start, WarmStart
from protocol.digests import digest_bytes
from protocol.errors import InvalidTask
from protocol.rest import CheckpointView
from protocol.tasks import BlobRef
from protocol.tensors import Role, joined_layout, parse_layout, weights_metadata

Tensors = Mapping[str, NDArray[np.float32]]
NAMES = ("body.bias", "body.weight", "head.bias", "head.weight")


def make_tensors(first: float) -> dict[str, NDArray[np.float32]]:
    """Return one tensor of each name, of another shape and with other values than the next."""
    return {name: np.full((2, at + 1), first + at, np.float32) for at, name in enumerate(NAMES)}


def parted(tensors: Tensors, frozen: frozenset[str], tied: Mapping[str, str] | None = None) -> list[bytes]:
    """Return the weights files of a model: the trained tensors, and the frozen ones apart if there are any."""
    trained = {name: value for name, value in tensors.items() if name not in frozen}
    files = [save(trained, weights_metadata({}, tied or {}))]
    if frozen:
        roles = dict.fromkeys(frozen, Role.FROZEN)
        files.append(save({name: tensors[name] for name in sorted(frozen)}, weights_metadata(roles, {})))
    return files


def written(files: list[bytes], folder: Path, stem: str) -> Start:
    paths = [folder / f"{stem}.{number}" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return Start.of(paths[0], paths[1] if len(paths) > 1 else None)


@dataclass
class Farm:
    """Keeps a checkpoint's files; ``fetched`` are those that had to travel."""

    files: list[bytes]
    fetched: list[str] = field(default_factory=list)

    def checkpoint(self) -> WarmStart:
        refs = [BlobRef(digest=digest_bytes(data), size_bytes=len(data)) for data in self.files]
        return WarmStart("abcd2345@7", dict(zip(refs, map(parse_layout, self.files), strict=True)), self._fetch)

    def _fetch(self, blob: BlobRef, to: Path) -> None:
        self.fetched.append(blob.digest)
        to.write_bytes(next(data for data in self.files if digest_bytes(data) == blob.digest))


some_names = st.frozensets(st.sampled_from(NAMES), max_size=len(NAMES) - 1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frozen_then=some_names, frozen_now=some_names)
def test_however_layers_are_frozen_then_and_now_the_values_are_the_checkpoints(
    tmp_path: Path, frozen_then: frozenset[str], frozen_now: frozenset[str]
) -> None:
    kept, built = make_tensors(first=10), make_tensors(first=0)
    farm = Farm(parted(kept, frozen_then))
    model = written(parted(built, frozen_now), tmp_path, "built")
    start = farm.checkpoint().fitted_to(model, tmp_path)
    if frozen_then == frozen_now:
        assert farm.fetched == [], "the farm has these very files"
        assert start.files == {}
        assert start.weights.digest == digest_bytes(farm.files[0])
        return
    files = [path.read_bytes() for path in start.files.values()]
    assert [digest_bytes(data) for data in files] == list(start.files), "what is sent is what is named"
    assert {
        spec.name for data in files for spec in parse_layout(data).tensors if spec.role is Role.FROZEN
    } == frozen_now
    found = {name: value for data in files for name, value in load(data).items()}
    assert found.keys() == kept.keys()
    assert all(np.array_equal(found[name], kept[name]) for name in kept)
    assert (start.frozen is None) is (not frozen_now)


def test_the_files_of_a_fitted_start_join_to_the_models_layout(tmp_path: Path) -> None:
    farm = Farm(parted(make_tensors(first=1), frozenset()))
    start = farm.checkpoint().fitted_to(written(parted(make_tensors(0), frozenset(NAMES[:2])), tmp_path, "b"), tmp_path)
    assert start.frozen is not None
    weights, frozen = (start.files[ref.digest].read_bytes() for ref in (start.weights, start.frozen))
    whole = joined_layout(parse_layout(weights), parse_layout(frozen))
    assert [spec.name for spec in whole.tensors] == sorted(NAMES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"extra": np.zeros(1, np.float32)}, "extra is only in the model"),
        (lambda t: {name: t[name] for name in NAMES[1:]}, "body.bias is only in the checkpoint"),
        (
            lambda t: t | {"head.bias": np.zeros((2, 9), np.float32)},
            "head.bias is F32 [2, 9] in the model and F32 [2, 3]",
        ),
        (
            lambda t: t | {"head.bias": np.zeros((2, 3), np.float64)},
            "head.bias is F64 [2, 3] in the model and F32 [2, 3]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name_before_anything_travels(tmp_path, change, said):
    farm = Farm(parted(make_tensors(first=1), frozenset()))
    model = written(parted(change(make_tensors(first=0)), frozenset()), tmp_path, "built")
    with pytest.raises(InvalidTask, match="abcd2345@7 do not fit") as refused:
        farm.checkpoint().fitted_to(model, tmp_path)
    assert said in refused.value.message
    assert "submit without --from" in refused.value.message
    assert farm.fetched == []


@pytest.mark.parametrize("tied_in", ["model", "checkpoint"])
def test_a_tensor_that_is_shared_on_one_side_only_is_a_difference(tmp_path: Path, tied_in: str) -> None:
    tied = parted(make_tensors(first=1), frozenset(), {"output.weight": "head.weight"})
    plain = parted(make_tensors(first=1), frozenset())
    farm, model = (Farm(plain), tied) if tied_in == "model" else (Farm(tied), plain)
    with pytest.raises(InvalidTask, match=f"output.weight shares another tensor only in the {tied_in}"):
        farm.checkpoint().fitted_to(written(model, tmp_path, "built"), tmp_path)


def test_three_differences_are_named_and_the_others_counted(tmp_path: Path) -> None:
    farm = Farm(parted({"w": np.zeros(1, np.float32)}, frozenset()))
    with pytest.raises(InvalidTask) as refused:
        farm.checkpoint().fitted_to(written(parted(make_tensors(0), frozenset()), tmp_path, "built"), tmp_path)
    assert refused.value.message.count(" is only in the ") == 3
    assert "; and 2 more. Build" in refused.value.message


def checkpoint(round_number: int, **metrics: float) -> CheckpointView:
    return CheckpointView(
        task_id="abcd2345", round=round_number, epoch=0, digest="0" * 64, size_bytes=1, created_at=0.0, metrics=metrics
    )


measured = st.lists(
    st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from((0.0, 0.5, 1.0)) | st.none(), max_size=8
)


@given(values=measured, direction=st.sampled_from(("min", "max")))
def test_the_best_round_is_the_newest_of_those_that_nothing_beats(values: list[float | None], direction: str) -> None:
    kept = [checkpoint(n, **({} if value is None else {"loss": value})) for n, value in enumerate(values)]
    best = best_round(kept, f"{direction}:loss")
    finite = [(value, n) for n, value in enumerate(values) if value is not None and np.isfinite(value)]
    if not finite:
        assert best is None
        return
    extreme = (min if direction == "min" else max)(value for value, _ in finite)
    assert best == max(n for value, n in finite if value == extreme)


def test_a_task_without_a_rule_or_with_another_metric_has_no_best() -> None:
    kept = [checkpoint(1, loss=0.5)]
    assert best_round(kept, None) is None
    assert best_round(kept, "max:accuracy") is None
