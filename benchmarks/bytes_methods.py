"""The ways of training that ``benchmarks.bytes`` compares, as recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from protocol.compression import CodecName, CodecSpec
from protocol.recipe import InnerState, Mode, OuterOptimizer, Recipe

REFERENCE: Final = "sync"
_AVERAGE: Final = OuterOptimizer()
_NESTEROV: Final = OuterOptimizer(name="sgd", options={"lr": 0.9, "momentum": 0.5, "nesterov": True})
"""DiLoCo's outer optimizer. Its paper's 0.7 and 0.9 pay off over hundreds of rounds; here there are a few dozen."""
_WHOLE: Final = CodecSpec()


@dataclass(frozen=True)
class Method:
    """One way of training: local steps of a client in a round (0: a gradient), rounds at most, and what is sent how."""

    local_steps: int
    most_rounds: int
    evaluate_every: int = 1
    outer: OuterOptimizer = _NESTEROV
    update_codec: CodecSpec = _WHOLE
    weights_codec: CodecSpec = _WHOLE
    fragments: int = 1
    """Of the model, one of which travels in each round."""
    entry: str = "corpus.py"
    """The file of ``bytes_task`` that is the task's code."""

    def recipe(self, clients: int, batch_samples: int, most_rounds: int | None = None) -> Recipe:
        """Return the recipe for so many clients, each of which takes ``batch_samples`` in a step."""
        common: dict[str, Any] = {
            "rounds": most_rounds or self.most_rounds,
            "batch_samples": batch_samples,
            "min_clients": clients,
            "evaluate_every": self.evaluate_every,
            "keep_checkpoints": 1,
        }
        if not self.local_steps:
            return Recipe(mode=Mode.GRADIENTS, round_samples=clients * batch_samples, **common)
        return Recipe(
            mode=Mode.WEIGHTS,
            round_samples=clients * batch_samples * self.local_steps,
            outer=self.outer,
            inner_state=InnerState.KEPT,
            update_codec=self.update_codec,
            weights_codec=self.weights_codec,
            fragments=self.fragments,
            **common,
        )


def _diloco(local_steps: int, most_rounds: int, update: CodecSpec, weights: CodecSpec | None = None) -> Method:
    """Return DiLoCo with a codec for updates, and the same for new versions unless ``weights`` is another."""
    return Method(local_steps, most_rounds, update_codec=update, weights_codec=weights or update)


_INT8: Final = CodecSpec(name=CodecName.INT8)
_PULSE: Final = CodecSpec(name=CodecName.PULSE)
METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        REFERENCE: Method(local_steps=0, most_rounds=400, evaluate_every=10),
        "local": Method(local_steps=20, most_rounds=40, outer=_AVERAGE),
        "diloco": Method(local_steps=20, most_rounds=40),
        "muloco": Method(local_steps=20, most_rounds=40, entry="corpus_muloco.py"),
        # A quarter of the model after each quarter of the steps: each fragment travels as often as ``diloco``'s whole.
        "streaming": Method(5, 160, 4, weights_codec=_PULSE, fragments=4),
        "int8": _diloco(20, 40, _INT8),
        # Updates as ``int8``; versions without loss, and so larger: these weights are of 32 bits.
        "pulse": _diloco(20, 40, _INT8, weights=_PULSE),
        "int4": _diloco(20, 40, CodecSpec(name=CodecName.INT4)),
        "sign": _diloco(30, 40, CodecSpec(name=CodecName.SIGN, block=1024)),
        "topk": _diloco(20, 80, CodecSpec(name=CodecName.TOPK, density=1 / 32)),
        "sparseloco": _diloco(20, 80, CodecSpec(name=CodecName.SPARSELOCO, density=1 / 32)),
        "demo": _diloco(30, 60, CodecSpec(name=CodecName.DEMO, density=1 / 32)),
        # What low rank loses of a version comes back too late: new versions need another codec.
        "powersgd": _diloco(20, 80, CodecSpec(name=CodecName.POWERSGD, rank=8), weights=_INT8),
    }
)
"""By name; all but the first two are DiLoCo, with and without a codec. All train with AdamW: ``sync`` on the server, on
the mean gradient, as data-parallel training does; the others on the clients, ``muloco`` with Muon for the matrices."""
