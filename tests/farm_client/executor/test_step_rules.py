"""Clipping before each local step: what the researcher's own loop would do between backward and step."""

from __future__ import annotations

from pathlib import Path

from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import LINEAR, Bench

OWN = (
    LINEAR
    + """
    class Clipped(torch.optim.SGD):
        def step(self, closure=None):
            parameters = [p for group in self.param_groups for p in group["params"]]
            {clip}
            return super().step(closure)

    def build_model(config):
        torch.manual_seed(1)
        return nn.Linear(3, 2)

    def build_optimizer(model, config):
        return Clipped(model.parameters(), lr=0.5, momentum=0.9)
"""
)
BOTH = "torch.nn.utils.clip_grad_value_(parameters, 0.1); torch.nn.utils.clip_grad_norm_(parameters, 0.05)"


def test_local_steps_are_those_of_a_loop_that_clips(tmp_path: Path) -> None:
    by_hand = Bench(tmp_path / "hand", OWN.format(clip=BOTH)).train()
    by_recipe = Bench(tmp_path / "recipe", OWN.format(clip="pass"), clip_value=0.1, clip_norm=0.05).train()
    unclipped = Bench(tmp_path / "not", OWN.format(clip="pass")).train()
    assert by_recipe.update == by_hand.update
    assert by_recipe.update != unclipped.update


def test_a_clients_gradient_is_not_clipped_where_the_server_clips_their_mean(tmp_path: Path) -> None:
    plain = Bench(tmp_path / "plain", OWN.format(clip="pass"), mode=Mode.GRADIENTS).train()
    assert Bench(tmp_path / "one", OWN.format(clip="pass"), mode=Mode.GRADIENTS, clip_norm=0.01).train().update == (
        plain.update
    )
