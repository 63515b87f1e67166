"""FedProx: local steps on F(w) + mu / 2 * ||w - w_t||^2. Source: Li et al., arXiv:1812.06127."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from farm_client.executor.failures import CodeError
from farm_client.executor.local_objective import ProximalTerm
from farm_client.executor.messages import LoadTask
from farm_client.executor.script_runner import ScriptRunner
from protocol.contradictions import contradiction
from protocol.recipe import Mode, Recipe
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of, write_code

TASK = """
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    def cross_entropy(model, batch):
        return nn.functional.cross_entropy(model(batch["x"].double()), batch["y"])

    def loss(model, batch):
        {loss}

    def build_optimizer(model, config):
        return {optimizer}
"""
PLAIN = "return cross_entropy(model, batch)"
BY_HAND = """
        if not hasattr(model, "anchor"):
            model.anchor = [p.detach().clone() for p in model.parameters()]
        far = sum((p - a).square().sum() for p, a in zip(model.parameters(), model.anchor))
        return cross_entropy(model, batch) + {mu} / 2 * far
"""
OPTIMIZERS = (
    "torch.optim.SGD(model.parameters(), lr=0.3)",
    "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)",
    "torch.optim.AdamW(model.parameters(), lr=0.02)",
)


def task(loss: str, optimizer: str = OPTIMIZERS[0]) -> str:
    return textwrap.dedent(TASK).format(loss=textwrap.dedent(loss).strip().replace("\n", "\n    "), optimizer=optimizer)


@given(
    mu=st.floats(1e-6, 1e3),
    values=st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), min_size=1, max_size=8),
)
def test_the_gradient_is_that_of_the_papers_term(mu: float, values: list[tuple[float, float, float]]) -> None:
    now, anchor, gradient = (torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True))
    parameter = nn.Parameter(now.clone())
    parameter.grad = gradient.clone()
    ProximalTerm(mu, {"w": anchor}).add_gradient({"w": parameter}, ())
    reference = nn.Parameter(now.clone())
    (reference @ gradient + mu / 2 * (reference - anchor).square().sum()).backward()
    torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_local_steps_are_those_of_a_loss_that_has_the_term(
    tmp_path: Path, optimizer: str, clip_norm: float | None
) -> None:
    by_hand = Bench(tmp_path / "hand", task(BY_HAND.format(mu=0.7), optimizer), clip_norm=clip_norm).train()
    by_recipe = Bench(tmp_path / "recipe", task(PLAIN, optimizer), clip_norm=clip_norm, proximal_mu=0.7).train()
    without = Bench(tmp_path / "none", task(PLAIN, optimizer), clip_norm=clip_norm).train()
    expected, found = update_of(by_hand), update_of(by_recipe)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(found[name], tensor) for name, tensor in update_of(without).items())
    assert by_recipe.metrics["loss"] < by_hand.metrics["loss"]  # the metric is the task's own loss


@settings(max_examples=10, deadline=None)
@given(mu=st.floats(0.01, 1.5), rate=st.floats(0.01, 0.5))
def test_rounds_of_clients_are_the_papers(tmp_path_factory: pytest.TempPathFactory, mu: float, rate: float) -> None:
    """Algorithm 2 with solvers of a few steps of SGD, in float64 and by autograd, beside the farm's clients."""
    bench = Bench(tmp_path_factory.mktemp("fedprox"), task(PLAIN, f"torch.optim.SGD(model.parameters(), lr={rate})"))
    halves = [bench.pieces(bench.shards[0].split, slice(0, 1)), bench.pieces(bench.shards[0].split, slice(1, 2))]
    assert all(halves)
    model = bench.runner.contract.build_model()
    anchor = [p.detach().clone() for p in model.parameters()]
    locals_ = []
    for half in halves:
        with torch.no_grad():
            [p.copy_(a) for p, a in zip(model.parameters(), anchor, strict=True)]
        for batch in bench.runner._source.batches(half, 0):
            far = sum((p - a).square().sum() for p, a in zip(model.parameters(), anchor, strict=True))
            objective = nn.functional.cross_entropy(model(batch["x"].double()), batch["y"]) + mu / 2 * far
            gradients = torch.autograd.grad(objective, list(model.parameters()))
            with torch.no_grad():
                [p.sub_(rate * g) for p, g in zip(model.parameters(), gradients, strict=True)]
        locals_.append([a - p.detach() for a, p in zip(anchor, model.parameters(), strict=True)])
    client = Bench(bench.folder, bench.source, proximal_mu=mu, shards=bench.shards, files=bench.files)
    for half, expected in zip(halves, locals_, strict=True):
        found = update_of(client.train(pieces=half))
        for (name, _), tensor in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_mu_of_zero_gives_the_bits_of_a_recipe_without(tmp_path: Path) -> None:
    without = Bench(tmp_path / "without", LINEAR).train()
    assert Bench(tmp_path / "zero", LINEAR, proximal_mu=0.0).train().update == without.update


def test_what_the_loss_never_depends_on_is_left_alone_and_what_it_did_is_pulled() -> None:
    never, now_and_then = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((2,), 3.0))
    term = ProximalTerm(0.5, {"never": torch.zeros(2), "some": torch.ones(2)})
    term.add_gradient({"never": never, "some": now_and_then}, {"never"})
    assert never.grad is None
    assert now_and_then.grad is not None
    assert now_and_then.grad.tolist() == [1.0, 1.0]


def test_a_sparse_gradient_gets_the_term() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    with torch.no_grad():
        table.weight.copy_(torch.ones(4, 2))
    anchor = {"weight": torch.zeros(4, 2)}
    table(torch.tensor([1])).sum().backward()
    ProximalTerm(0.5, anchor).add_gradient(dict(table.named_parameters()), ())
    assert table.weight.grad is not None
    assert table.weight.grad.tolist() == [[0.5, 0.5], [1.5, 1.5], [0.5, 0.5], [0.5, 0.5]]


OWN_STEP = (
    LINEAR
    + """
    def train_step(model, batch, optimizers, step):
        return 0.0
"""
)
LBFGS = (
    LINEAR
    + """
    def build_optimizer(model, config):
        return torch.optim.LBFGS(model.parameters())
"""
)


@pytest.mark.parametrize(
    ("source", "why"), [(OWN_STEP, "train_step computes its gradients"), (LBFGS, "needs a closure")]
)
def test_steps_that_are_not_the_farms_are_refused_by_name(tmp_path: Path, source: str, why: str) -> None:
    with pytest.raises(CodeError, match=f"{why}.*proximal_mu"):
        Bench(tmp_path, source, proximal_mu=0.1).train()


def test_a_script_is_refused_by_name(tmp_path: Path) -> None:
    entry = write_code(tmp_path, "import farm_client.own_loop")
    order = LoadTask(
        task_id="t",
        code_dir=str(tmp_path),
        entry=entry,
        config={},
        mode=Mode.WEIGHTS,
        seed=0,
        batch_samples=2,
        dataset_kind="code",
        scratch_dir=str(tmp_path),
        proximal_mu=0.1,
    )
    with pytest.raises(CodeError, match=r"farm\.parts computes its gradients.*proximal_mu"):
        ScriptRunner(order, torch.device("cpu"))


def test_gradients_mode_has_no_local_steps() -> None:
    fields: dict[str, Any] = {"rounds": 1, "proximal_mu": 0.1}
    assert contradiction(Recipe(**fields)) is None
    assert "weights mode" in (contradiction(Recipe(mode=Mode.GRADIENTS, **fields)) or "")
