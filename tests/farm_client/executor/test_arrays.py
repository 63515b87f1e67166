"""Scripts whose model is arrays by name: NumPy's, a linear model's attributes, and what speaks the array protocols."""

from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

import farm_client as farm
from farm_client.executor.arrays import ArrayModel, array_model
from farm_client.executor.failures import CodeError
from farm_client.executor.layout import ModelTensors
from farm_client.executor.rehearsal import rehearse
from farm_client.own_loop import host_parts
from protocol.assignments import Kind
from protocol.tensors import Role
from tests.farm_client.executor.test_scripts import Bench, request

HEAD = """
import numpy as np
import farm_client as farm

x = np.random.default_rng(1).normal(size=(40, 3))
y = x.sum(axis=1)
state = {"w": np.zeros(3), "bias": np.zeros(1, dtype=np.float32), "steps": np.array(0)}

def error(state, part):
    rows = part.rows_of(40)
    return {"error": np.square(x[rows] @ state["w"] + state["bias"] - y[rows]).mean()}
"""
LOOP = """
for part in farm.parts(state, evaluate=error):
    for row in part.rows_of(40):
        slope = x[row] @ state["w"] + state["bias"] - y[row]
        STEP
        state["steps"] += 1
        part.read([row])
    part.done()
"""
IN_PLACE = LOOP.replace("STEP", 'state["w"] -= 0.1 * slope * x[row]; state["bias"] -= 0.1 * slope')
REPLACED = LOOP.replace(
    "STEP", 'state.update(w=state["w"] - 0.1 * slope * x[row], bias=state["bias"] - 0.1 * slope.astype("float64"))'
)


@pytest.fixture(autouse=True)
def _no_host_stays():
    yield
    host_parts(None)


def run(folder, source, **options):
    bench = Bench(folder, source)
    return bench, bench.run(**options), safetensors.torch.load(bench.weights)


def test_a_numpy_script_is_trained_whether_it_writes_in_place_or_replaces(tmp_path):
    bench, done, base = run(tmp_path, HEAD + IN_PLACE)
    update = safetensors.torch.load(done.update)
    assert {name: tensor.dtype for name, tensor in update.items()} == {
        "w": torch.float64,
        "bias": torch.float32,
        "steps": torch.int64,
    }
    assert (done.samples, int(update["steps"])) == (20, 20), "integers are buffers: their value, not a difference"
    after = {**{name: base[name] - update[name] for name in ("w", "bias")}, "steps": update["steps"]}
    losses = [
        bench.run(kind=Kind.EVALUATE, weights=safetensors.torch.save(weights)).metrics["error"]
        for weights in (base, after)
    ]
    assert losses[1] < losses[0] / 2
    replaced = safetensors.torch.load(run(tmp_path, HEAD + REPLACED)[1].update)
    assert replaced["bias"].dtype is torch.float32, "the dtype of the first array is kept"
    assert all(torch.allclose(update[name], replaced[name], atol=1e-6) for name in update)


def test_a_part_is_the_loop_itself_to_the_bit(tmp_path):
    seen = HEAD + IN_PLACE.replace(
        "    part.done()", "    np.savez('seen.npz', rows=part.rows, **state)\n    part.done()"
    )
    _, done, base = run(tmp_path, seen.replace("'seen.npz'", repr(str(tmp_path / "seen.npz"))))
    found = np.load(tmp_path / "seen.npz")
    space: dict = {}
    exec(HEAD, space)
    w, bias = base["w"].numpy(), base["bias"].numpy()
    for row in found["rows"]:
        slope = space["x"][row] @ w + bias - space["y"][row]
        w -= 0.1 * slope * space["x"][row]
        bias -= 0.1 * slope
    assert (w == found["w"]).all()
    assert (bias == found["bias"]).all()
    update = safetensors.torch.load(done.update)
    assert torch.equal(update["w"], -torch.from_numpy(w)), "from zero"


def test_a_new_script_after_a_failure_gets_the_rounds_values(tmp_path):
    marker = tmp_path / "again"
    source = HEAD + IN_PLACE.replace(
        "part.done()", f"1 / __import__('pathlib').Path({str(marker)!r}).exists()\n    part.done()"
    )
    bench = Bench(tmp_path, source)
    with pytest.raises(CodeError, match="ZeroDivisionError"):
        bench.run()
    marker.touch()
    assert bench.run().update == run(tmp_path, source)[1].update


def test_a_numpy_script_is_rehearsed_and_runs_at_home(tmp_path):
    report = rehearse(request(tmp_path, HEAD + IN_PLACE))
    assert (report.failed, report.is_script, report.rows, set(report.evaluation)) == (None, True, 40, {"error"})
    (tmp_path / "home.py").write_text(HEAD + IN_PLACE + "print(int(state['steps']))")
    answer = subprocess.run([sys.executable, tmp_path / "home.py"], capture_output=True, text=True, check=True)
    assert answer.stdout == "40\n"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"w": np.zeros(2), "c": np.zeros(1, dtype=complex)}, "array c is complex128"),
        ({"w": np.zeros(2), "names": np.array(["a"])}, "array names is <U1"),
        ({"w": np.zeros(2), "o": np.array([None])}, "array o is object"),
        ({"w": np.zeros(2), "u": np.zeros(1, dtype=np.uint32)}, "array u is uint32"),
        ({"w": np.zeros(2), "l": np.zeros(1, dtype=np.longdouble)}, "array l is float128"),
        ({"w": np.zeros(2), "lr": 0.1}, r"lr is a float, not an array: write np.array\(lr\)"),
        ({"w": torch.eye(2).to_sparse()}, "array w is"),
        ({"w": np.zeros(2), 3: np.zeros(2)}, "the key 3 of the arrays is no text"),
        ({"a": np.zeros(2), "a.b": np.zeros(2)}, "'a.b' cannot be used"),
        ({"training": np.zeros(2)}, "'training' cannot be used"),
        (MappingProxyType({"w": np.zeros(2)}), "must be replaceable"),
        (np.zeros(3), "not ndarray"),
    ],
)
def test_what_can_not_be_sent_is_refused_by_its_name(arrays, said):
    with pytest.raises(CodeError, match=said):
        array_model(arrays)


def test_arrays_without_a_float_have_nothing_to_train():
    with pytest.raises(CodeError, match="no trainable parameter"):
        ModelTensors.of(array_model({"n": np.zeros(2, dtype=int)}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"new": np.zeros(1)}, "the array new was added or removed"),
        ({"w": np.zeros(3)}, r"array w was \[2\] and is \[3\]"),
        ({"w": np.zeros(2, dtype=int)}, "array w was torch.float64 and is torch.int64"),
        ({"w": None}, "w is a NoneType, not an array"),
    ],
)
def test_what_training_must_not_do_to_arrays_is_named(change, said):
    arrays = {"w": np.zeros(2)}
    model = ArrayModel(arrays)
    arrays.update(change)
    with pytest.raises(CodeError, match=said):
        model.take()
    model.give()
    assert arrays["w"].tolist() == [0.0, 0.0], "the next part begins with the farm's values all the same"


def test_arrays_are_written_in_place_where_they_can_be():
    big_endian, scalar, frozen = np.ones(2, dtype=">f8"), np.float32(1.0), np.ones(2)
    frozen.flags.writeable = False
    arrays = {"plain": np.ones(2), "big": big_endian, "one": scalar, "frozen": frozen, "a.t": torch.ones(2)}
    before = dict(arrays)
    model = ArrayModel(arrays)
    layout = ModelTensors.of(model).layout()
    assert [spec.name for spec in layout.tensors] == ["a.t", "big", "frozen", "one", "plain"]
    assert {spec.role for spec in layout.tensors} == {Role.PARAMETER}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    assert before["plain"].tolist() == [1.0, 1.0], "the farm's copy is its own"
    model.give()
    assert all(np.asarray(array).ravel().tolist()[0] == 2.0 for array in arrays.values())
    assert arrays["plain"] is before["plain"]
    assert arrays["a.t"] is before["a.t"]
    assert frozen.tolist() == [1.0, 1.0]
    assert type(arrays["one"]) is np.float32
    model.take()
    assert {float(parameter.detach().sum()) for parameter in model.parameters()} == {2.0, 4.0}


class Immutable:
    """An array as JAX has it: no writing, the DLPack protocol, and a namespace of the array API."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()

    def __array_namespace__(self):
        return SimpleNamespace(from_dlpack=lambda other: Immutable(torch.from_dlpack(other)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arrays_of_another_library_are_replaced_by_ones_of_it(dtype):
    arrays = {"w": Immutable(torch.arange(3, dtype=dtype))}
    first, model = arrays["w"], ArrayModel(arrays)
    with torch.no_grad():
        model.w += 1
    model.give()
    assert isinstance(arrays["w"], Immutable)
    assert arrays["w"] is not first
    assert arrays["w"].values.dtype is dtype
    arrays["w"] = Immutable(arrays["w"].values * 2)
    model.take()
    assert model.w.tolist() == [2.0, 4.0, 6.0]


class LinearModel:
    """What scikit-learn's linear models are: attributes that each call may replace by new arrays."""

    def __init__(self):
        self.coef_, self.intercept_ = np.zeros((1, 2)), np.zeros(1)

    def partial_fit(self, x, y):
        slope = x @ self.coef_[0] + self.intercept_ - y
        self.coef_ = self.coef_ - 0.1 * (slope @ x)[None]
        self.intercept_ = self.intercept_ - 0.1 * slope.sum()


def test_attributes_of_an_object_are_trained_where_they_are():
    model = LinearModel()
    arrays = farm.attributes(model, "coef_", "intercept_")
    for part in farm.parts(arrays):
        for row in part.rows_of(5):
            model.partial_fit(np.full((1, 2), row / 5), np.array([1.0]))
            part.read([row])
        part.done()
    shadow = ArrayModel(arrays)
    assert torch.equal(shadow.coef_, torch.from_numpy(model.coef_))
    model.partial_fit(np.ones((1, 2)), np.array([1.0]))
    shadow.take()
    assert torch.equal(shadow.intercept_, torch.from_numpy(model.intercept_))
    assert (len(arrays), list(arrays)) == (2, ["coef_", "intercept_"])


def test_only_the_attributes_that_were_named_are_arrays():
    model = LinearModel()
    arrays = farm.attributes(model, "coef_")
    with pytest.raises(KeyError):
        arrays["intercept_"]
    with pytest.raises(KeyError):
        arrays["classes_"] = np.zeros(1)
    with pytest.raises(TypeError, match="stays"):
        del arrays["coef_"]
    with pytest.raises(AttributeError, match="offset_"):
        farm.attributes(model, "offset_")


def test_scikit_learns_own_classifier_goes_on_from_the_rounds_weights(tmp_path):
    """Where it is installed; ``LinearModel`` above stands in for it elsewhere."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = np.random.default_rng(0).normal(size=(60, 4))
    model = linear_model.SGDClassifier(random_state=0)
    model.partial_fit(x, x.sum(axis=1) > 0, classes=[False, True])
    shadow = ArrayModel(farm.attributes(model, "coef_", "intercept_"))
    with torch.no_grad():
        shadow.coef_.fill_(1.0)
        shadow.intercept_.zero_()
    shadow.give()
    assert model.score(x, x.sum(axis=1) > 0) == 1.0
    model.partial_fit(x, x.sum(axis=1) > 0)
    shadow.take()
    assert torch.equal(shadow.coef_, torch.from_numpy(model.coef_))
    assert not torch.equal(shadow.coef_, torch.ones(1, 4, dtype=torch.float64))
