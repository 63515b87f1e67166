"""An inner loop that is stopped, saved to a file and loaded into a new one goes on to the same bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim import lr_scheduler

from farm_client.executor.failures import CodeError
from farm_client.executor.inner_state import StateFiles, Stateful
from farm_client.executor.layout import ModelTensors
from protocol.codecs import tensor_file
from protocol.errors import FarmError, LayoutMismatch, MalformedTensors
from protocol.inner_state import METADATA_KEY, PREFIX
from protocol.recipe import InnerState, Mode
from tests.farm_client.executor.rehearsing import complaint, rehearsed

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Lion(torch.optim.Optimizer):
    """Of nobody's library: a state in float32 whatever the parameters are, a nested list, and a count."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "pair": (0.9, 0.99), "note": "mine", "best": math.inf})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["best"] = min(group["best"], 3.0)
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {"seen": 0, "m": torch.zeros_like(p, dtype=torch.float32), "last": []}
                state["seen"] += 1
                state["m"].mul_(group["pair"][0]).add_(p.grad.float(), alpha=0.1)
                state["last"] = [*state["last"], state["m"].mean()][-2:]
                p.add_((state["m"] + sum(state["last"])).sign().to(p.dtype), alpha=-group["lr"] / state["seen"])


class Net(nn.Module):
    """With tied weights, and a parameter that gets its first gradient late."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight
        self.late = nn.Parameter(torch.randn(4, 4))
        self.to(dtype)

    def loss(self, step: int) -> torch.Tensor:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).to(self.late.dtype)
        y = self.two(torch.tanh(self.one(x)))
        return (y @ self.late if step > 2 else y).square().mean()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [model.late], "lr": 0.02}, {"params": [model.one.weight]}]


OPTIMIZERS: dict[str, Make] = {
    name: lambda model, kind=kind: kind(model.parameters(), lr=0.01)
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    if name != "SparseAdam"  # for sparse gradients alone
} | {
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True),
    "amsgrad": lambda model: torch.optim.AdamW(groups(model), lr=0.01, amsgrad=True),
    "tensor lr": lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01)),
    "strong wolfe": lambda model: torch.optim.LBFGS(model.parameters(), history_size=3, line_search_fn="strong_wolfe"),
    "custom": lambda model: Lion(model.parameters()),
}


def files(model: nn.Module) -> StateFiles:
    return StateFiles(ModelTensors.of(model), Path("/code"))


def saved(model: nn.Module, parts: dict[str, Stateful]) -> bytes:
    return b"".join(tensor_file(*files(model).save(parts)))


def steps(model: Net, optimizer: torch.optim.Optimizer, numbers: range, each: Callable[[], Any] = lambda: None) -> None:
    for number in numbers:

        def closure(number: int = number) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model.loss(number)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()
        each()


def copied(model: Net) -> Net:
    other = Net(model.late.dtype)
    other.load_state_dict(model.state_dict())
    return other


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 2, 4], ids="after {} steps".format)
def test_an_optimizer_goes_on_to_the_same_bits(make: Make, before: int, tmp_path: Path) -> None:
    unbroken = Net()
    optimizer = make(unbroken)
    steps(unbroken, optimizer, range(before))
    data, model = saved(unbroken, {"optimizer": optimizer}), copied(unbroken)
    (tmp_path / "state").write_bytes(data)
    restored = make(model)
    files(model).load({"optimizer": restored}, tmp_path / "state" if before == 2 else data)
    assert saved(model, {"optimizer": restored}) == data
    steps(unbroken, optimizer, range(before, before + 4))
    steps(model, restored, range(before, before + 4))
    assert equal(model, unbroken)


def test_a_sparse_optimizer_goes_on(tmp_path: Path) -> None:
    def loop(model: nn.Embedding, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            optimizer.zero_grad()
            model(torch.tensor([number % 5, 2])).square().sum().backward()
            optimizer.step()

    unbroken, model = nn.Embedding(5, 3, sparse=True), nn.Embedding(5, 3, sparse=True)
    optimizer, restored = (torch.optim.SparseAdam(m.parameters(), lr=0.1) for m in (unbroken, model))
    loop(unbroken, optimizer, range(3))
    model.load_state_dict(unbroken.state_dict())
    files(model).load({"optimizer": restored}, saved(unbroken, {"optimizer": optimizer}))
    loop(unbroken, optimizer, range(3, 6))
    loop(model, restored, range(3, 6))
    assert equal(model, unbroken)


def test_a_state_keeps_its_dtype_beside_parameters_of_sixteen_bits() -> None:
    unbroken = Net(torch.bfloat16)
    optimizer = Lion(unbroken.parameters())
    steps(unbroken, optimizer, range(4))
    model = copied(unbroken)
    restored = Lion(model.parameters())
    files(model).load({"optimizer": restored}, saved(unbroken, {"optimizer": optimizer}))
    assert {value["m"].dtype for value in restored.state.values()} == {torch.float32}
    steps(unbroken, optimizer, range(4, 8))
    steps(model, restored, range(4, 8))
    assert equal(model, unbroken)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_and_several_optimizers_go_on_beside_each_other(
    schedule: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler],
) -> None:
    def parts_of(model: Net) -> dict[str, Any]:
        one, other = torch.optim.Adam([model.one.weight], lr=0.05), torch.optim.SGD([model.late], 0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
        return {"generator": one, "critic": other, "scheduler": schedule(one), "scaler": scaler}

    def loop(model: Net, parts: dict[str, Any], numbers: range) -> None:
        for number in numbers:
            parts["scaler"].scale(model.loss(number + 3)).backward()
            for name in ("generator", "critic"):
                parts["scaler"].step(parts[name])
                parts[name].zero_grad()
            parts["scaler"].update()
            parts["scheduler"].step()

    unbroken = Net()
    parts = parts_of(unbroken)
    loop(unbroken, parts, range(4))
    model = copied(unbroken)
    restored = parts_of(model)
    files(model).load(restored, saved(unbroken, parts))
    loop(unbroken, parts, range(4, 9))
    loop(model, restored, range(4, 9))
    assert equal(model, unbroken)
    assert restored["scheduler"].get_last_lr() == parts["scheduler"].get_last_lr()
    assert restored["scaler"].get_scale() == parts["scaler"].get_scale()


def test_a_part_that_only_some_machines_have_begins_anew_where_it_was_not() -> None:
    """A loss scaler is there on GPUs, and a state may come from a machine without one."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer, range(2))
    data = saved(model, {"optimizer": optimizer})
    other = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    files(model).load({"optimizer": other, "scaler": scaler}, data)
    assert saved(model, {"optimizer": other}) == data
    assert scaler.get_scale() == 8
    files(model).load({"optimizer": other}, saved(model, {"optimizer": optimizer, "scaler": scaler}))
    assert saved(model, {"optimizer": other}) == data


def test_tensors_have_the_models_names_and_no_two_the_same() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer, range(1))
    outside = nn.Parameter(torch.zeros(()))
    outside.grad = torch.ones(())
    optimizer.add_param_group({"params": [outside]})
    optimizer.step()
    names = safetensors.torch.load(saved(model, {"optimizer": optimizer})).keys()
    assert f"{PREFIX}optimizer/state/one.weight/exp_avg" in names
    assert f"{PREFIX}optimizer/state/#2/exp_avg" in names

    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"a/b": {"c": torch.ones(1)}, "a": {"b/c": torch.zeros(1)}, "a~1b": {"c": torch.ones(2)}}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.got = state_dict

    odd = Odd()
    files(model).load({"odd": odd}, saved(model, {"odd": odd}))
    assert odd.got.keys() == odd.state_dict().keys()
    assert odd.got["a/b"]["c"] == 1
    assert odd.got["a"]["b/c"] == 0


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (lambda: None, "a function, which cannot be carried"),
        (math.nan, "NaN or infinity in part/it"),
        (torch.tensor([1.0, math.inf]), "NaN or infinity in part/it"),
        (torch.ones(2, dtype=torch.complex64), "torch.complex64, which cannot be carried"),
        (torch.ones(2).to_sparse(), "no dense tensor"),
        ({None: 1}, "a dict, which cannot be carried"),
        (torch.empty(300 * 1024**2, dtype=torch.int8), "at most 268435456 can be carried"),
    ],
)
def test_what_no_file_can_have_is_named(value: Any, why: str) -> None:
    class Strange:
        def state_dict(self) -> dict[str, Any]:
            return {"it": value}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Not called."""

    with pytest.raises(CodeError, match=why):
        files(Net()).save({"part": Strange()})


def file_of(tree: Any, **tensors: torch.Tensor) -> bytes:
    text = tree if isinstance(tree, str) else json.dumps(tree)
    return safetensors.torch.save({f"{PREFIX}{name}": t for name, t in tensors.items()}, {METADATA_KEY: text})


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 0


T = {"tensor": f"{PREFIX}t"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 20,
        safetensors.torch.save({"w": torch.ones(1)}),
        file_of("{not json"),
        file_of("NaN"),
        file_of("1e999"),
        file_of("1" * 5000),
        file_of("[" * 100_000),
        file_of(nested(40)),
        file_of(T),
        file_of([T, T], t=torch.ones(1)),
        file_of([], t=torch.ones(1)),
        file_of(T, t=torch.tensor([math.nan])),
        file_of({"tensor": 3}),
        file_of({"pickle": "gASV"}),
        file_of({"float": "nan"}),
        file_of({"dict": [[1.5, 2]]}),
        file_of({"dict": [[1, 2, 3]]}),
        file_of({"dict": 7}),
        file_of({"tuple": {}}),
        file_of({"tensor": "x", "dict": []}),
        file_of(2**63),
        file_of({"dict": [["other", 0]]}),
    ],
    ids=range(23),
)
def test_a_damaged_or_hostile_file_is_blamed(data: bytes, tmp_path: Path) -> None:
    model = Net()
    (tmp_path / "state").write_bytes(data)
    for file in (data, tmp_path / "state"):
        with pytest.raises((MalformedTensors, LayoutMismatch)) as caught:
            files(model).load({"optimizer": torch.optim.Adam(model.parameters())}, file)
        assert isinstance(caught.value, FarmError)
        assert not isinstance(caught.value, CodeError)


def test_a_state_of_another_optimizer_is_the_codes_fault() -> None:
    model = Net()
    data = saved(model, {"optimizer": torch.optim.Adam(groups(model))})
    with pytest.raises(CodeError, match="other parameter groups"):
        files(model).load({"optimizer": torch.optim.Adam(model.parameters())}, data)


STRANGE = """
    import torch
    from torch import nn

    class Strange(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.1)
            self.param_groups[0]["how"] = lambda x: x

    def build_model(config):
        return nn.Linear(3, 2)

    def build_optimizer(model, config):
        return Strange(model.parameters())

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


@pytest.mark.parametrize("mode", [Mode.WEIGHTS, None], ids=["said", "left open"])
def test_a_state_that_cannot_be_carried_is_named_when_the_task_is_submitted(tmp_path: Path, mode: Mode | None) -> None:
    report = rehearsed(tmp_path, STRANGE, mode=mode, inner_state=InnerState.CARRIED if mode else InnerState.FRESH)
    assert "optimizer/param_groups/0/how" in complaint(report)
    assert 'inner_state = "kept" or "fresh"' in complaint(report)
    assert not complaint(rehearsed(tmp_path, STRANGE, inner_state=InnerState.KEPT))
