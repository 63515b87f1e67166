"""examples/dcgan on the farm's executor: to the bit what its own plain loop gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from farm_client.data.seeds import derived_seed
from farm_client.executor.randomness import seed_everything
from tests.farm_client.executor.bench_task import Bench, update_of

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_a_round_is_the_plain_loop(tmp_path: Path) -> None:
    arrays = np.load(EXAMPLES / "digits/digits.npz")
    source = (EXAMPLES / "dcgan/train.py").read_text()
    bench = Bench(tmp_path, source, config={"width": 2}, arrays={name: arrays[name][:96] for name in ("x", "y")})
    order = bench.run_order()
    update = update_of(bench.train())

    module = bench.runner.contract.module
    model = module.build_model({"width": 2})
    model.load_state_dict(bench.whole())
    optimizers = module.build_optimizer(model, {})
    first_piece = order.pieces[0]
    seed = derived_seed(bench.load_order().seed, order.round, order.epoch, (first_piece.shard, first_piece.start))
    seed_everything(seed, torch.device("cpu"))
    for step, batch in enumerate(bench.runner._source.batches(order.pieces, 0)):
        module.train_step(model, batch, optimizers, step)
    parameters = {name for name, _ in model.named_parameters()}
    for name, first in bench.whole().items():
        after = model.state_dict()[name]
        assert torch.equal(update[name], first - after if name in parameters else after), name
    assert set(bench.evaluate().metrics) == {"frechet"}
