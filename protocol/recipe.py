"""The recipe: how a task is to be trained, in numbers that do not depend on which clients come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from pydantic import Field, field_validator, model_validator

from protocol.aggregates import AggregateName, unfit_for_aggregate
from protocol.asynchronous import MOST_STALENESS, asynchronous_problem, with_stale_updates
from protocol.bounds import (
    MAX_TAGS,
    Bytes,
    Clients,
    Count,
    Epochs,
    Interval,
    Mu,
    Natural,
    Positive,
    Seconds,
    Share,
    TensorName,
    Threshold,
    Word,
)
from protocol.compression import CodecName, CodecSpec
from protocol.control_variates import with_control_variates
from protocol.data_split import MOST_PARTS, SplitName, split_problem, with_split_parts
from protocol.fragments import FragmentPattern
from protocol.frozen import Frozen
from protocol.named_schedule import NamedSchedule
from protocol.optimizers import OptimizerName, OptionValue
from protocol.privacy import DELTA, unfit_for_privacy
from protocol.sandbox import Rung
from protocol.schedule import Schedule
from protocol.secure_aggregation import CLIP, Bits, unfit_for_secure_sum

BEST_RULE: Final = r"^(min|max):.+$"
TARGET_RULE: Final = r"^(.+?)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)$"


class Mode(StrEnum):
    """What clients return each round."""

    WEIGHTS = "weights"
    """A pseudo-gradient (base weights minus local weights) after local steps: FedAvg and its kin."""
    GRADIENTS = "gradients"
    """The gradient of the mean loss over the assignment's samples: synchronous SGD."""


class PartSizes(StrEnum):
    """How a round's samples are parted among clients."""

    SPEED = "speed"
    """By measured speed, so that a laptop and a workstation are done at the same time."""
    FIXED = "fixed"
    """In equal parts of ``part_samples``, whoever comes: the same seed gives the same weights, to the bit on machines
    of one kind. Clients that are done with one part take the next; a slow one holds the round up."""


class DataOrder(StrEnum):
    """The order in which an epoch reads the training rows."""

    SHUFFLED = "shuffled"
    """In a new random order each epoch."""
    SEQUENTIAL = "sequential"
    """As they are in the data: ``min_clients`` contiguous stretches, each read by one client of a round as
    ``batch_samples`` contiguous streams side by side. What is carried from batch to batch makes sense then."""


def with_equal_parts(record: Any) -> Any:
    """Return a recipe's record with fixed parts, unless it says otherwise, where it wants its rows in order."""
    if isinstance(record, Mapping) and record.get("order") == DataOrder.SEQUENTIAL and "parts" not in record:
        return {**record, "parts": PartSizes.FIXED}
    return record


class InnerState(StrEnum):
    """Weights mode: what a client's inner optimizer begins a round with (moments, momentum, and what else it keeps)."""

    FRESH = "fresh"
    """Nothing: each round builds the optimizer anew."""
    KEPT = "kept"
    """What the same client had at the end of its last round, while its executor lives: clients differ."""
    CARRIED = "carried"
    """What belongs to the version: the mean of what the clients of the round before ended with, by samples. With one
    client in each round (``max_clients`` 1) this is one loop over all rounds, whichever optimizer."""


def with_inner_state(record: Any) -> Any:
    """Return a record with its ``inner_state`` where it says ``keep_inner_optimizer``, as older versions do."""
    if isinstance(record, Mapping) and record.get("keep_inner_optimizer") is True and "inner_state" not in record:
        return {**record, "inner_state": InnerState.KEPT}
    return record


class Precision(StrEnum):
    """The number format of forward and backward passes; the weights keep their own."""

    FP32 = "fp32"
    """That of the model's tensors."""
    BF16 = "bf16"
    """bfloat16 by autocast; a card that has none computes in float32."""
    FP16 = "fp16"
    """float16 by autocast, with the loss scaled."""


SNAPSHOT_SECONDS: Final = 300.0
"""What an assignment may lose with its process. Shorter ones are never snapshot."""


def _rate_of(outer: dict[str, Any]) -> dict[str, OptionValue]:
    """Return the options of an outer optimizer without any: plain averaging, or the optimizer's own defaults."""
    return {"lr": 1.0} if outer.get("name", "sgd") == "sgd" else {}


class ParameterGroup(Frozen):
    """One optimizer parameter group: the parameters' names, and what differs from the defaults."""

    names: tuple[TensorName, ...] = Field(max_length=2**18)
    options: dict[Word, OptionValue] = Field(default_factory=dict, max_length=100)
    schedules: dict[Word, Schedule] = Field(default_factory=dict, max_length=8)


class OuterOptimizer(Frozen):
    """The optimizer that the server applies to the aggregated update.

    ``name`` is one of torch.optim's, or one for servers (``docs/combining.md``); ``options`` are its keyword
    arguments (``lr``, ``momentum``, ``betas``, ...), by default its own.
    ``schedules`` are of options that change with the version: by an option's name, or ``beta1`` and ``beta2``.
    Plain FedAvg is SGD with ``lr`` 1 on the mean pseudo-gradient. Empty ``groups`` means one group of all parameters.
    """

    name: OptimizerName = "sgd"
    options: dict[Word, OptionValue] = Field(default_factory=_rate_of, max_length=100)
    schedules: dict[Word, Schedule] = Field(default_factory=dict, max_length=8)
    groups: tuple[ParameterGroup, ...] = Field(default=(), max_length=10_000)


class Recipe(Frozen):
    """How to train: one of ``rounds`` and ``epochs`` says when to stop (the earlier one where both are given).

    Units: ``*_samples`` are samples, ``*_seconds`` seconds, ``quorum`` a fraction of the round's samples.
    """

    mode: Mode = Mode.WEIGHTS
    rounds: Positive | None = None
    epochs: Epochs | None = None
    round_samples: Positive = 1024
    """The global batch: samples that one round consumes, whatever the number of clients."""
    batch_samples: Positive = 32
    """Samples of one local step (weights mode) or of one forward pass (gradients mode)."""
    order: DataOrder = DataOrder.SHUFFLED
    """The order in which an epoch reads the training rows."""
    parts: PartSizes = PartSizes.SPEED
    """How a round is parted among clients; in fixed parts where the order is sequential."""
    part_samples: Positive | None = None
    """With fixed parts: samples of each; where absent, as many parts as ``min_clients``."""
    split: SplitName | None = None
    """How rows are dealt to virtual clients, for research (``protocol.data_split``); each round has a part of each."""
    split_parts: int | None = Field(default=None, ge=1, le=MOST_PARTS)
    split_alpha: Threshold | None = None
    split_by: TensorName | None = None
    aggregate: AggregateName = AggregateName.MEAN
    """How the updates of a round become one. All but the mean bear a few wrong or hostile clients."""
    trim_share: float = Field(default=0.0, ge=0, lt=0.5)
    """With trimmed_mean: this share of the updates, rounded up, is left out at either end of each coordinate's values.
    It should be at least the share of clients that may be wrong."""
    byzantine: Count = 0
    """With krum, multi_krum and bulyan: the most clients of a round that may be wrong, f. The first two need 2 f + 3
    clients in each round, bulyan 4 f + 3."""
    norm_bound: Threshold | None = None
    """With norm_bounding and centered_clipping: the Euclidean norm that a client's update, or its difference to the
    last aggregate, is cut down to; where absent, the round's (lower) median norm."""
    dp_clip: Threshold | None = None
    """Differential privacy: what a client contributes to a round is cut down to this Euclidean norm, on the server,
    and all clients count alike. With ``dp_noise_multiplier``."""
    dp_noise_multiplier: float = Field(default=0.0, ge=0, le=1000)
    """Times ``dp_clip``: the standard deviation of the Gaussian noise on the sum of what clients contribute."""
    dp_delta: float = Field(default=DELTA, gt=0, lt=1)
    """The chance that is left of more privacy loss than epsilon."""
    dp_epsilon: Threshold | None = None
    """Stop before the round after which the privacy loss, epsilon at ``dp_delta``, would be more than this."""
    secure_aggregation: bool = False
    """Weights mode: clients mask their updates, and the server learns the sum of a round's and none of them."""
    secure_clip: Threshold = CLIP
    """With it: each number of an update is cut to this from below and above, so that the sum has a fixed grid."""
    secure_bits: Bits = 32
    """With it: bits of a number in the sum, 32 or 64; its grid is 2 * secure_clip * samples / 2**bits."""
    outer: OuterOptimizer = OuterOptimizer()
    schedule: NamedSchedule | None = None
    """The learning rate of the code's optimizer over the task; None is the code's own business."""
    clip_norm: Threshold | None = None
    """The gradient of all parameters is scaled down to this Euclidean norm, as ``clip_grad_norm_`` does: the mean one,
    on the server, in gradients mode; before every local step in weights mode."""
    clip_value: Threshold | None = None
    """Likewise each element of the gradient, as ``clip_grad_value_`` does; before the norm, where both are given."""
    proximal_mu: Mu = 0.0
    """Weights mode: FedProx's mu. Each local gradient gets mu * (weights - those of the round's version)."""
    scaffold_clients: Count = 0
    """Weights mode: SCAFFOLD's control variates, for so many clients in all (its N); 0 is without. ``inner_state`` is
    ``carried`` with it."""
    fragments: Positive = 1
    """Weights mode: Streaming DiLoCo. One of so many fragments of the model travels in each round, in turn."""
    fragment_pattern: FragmentPattern = FragmentPattern.STRIDED
    """Which layers make up a fragment."""
    fragment_mix: Share = 0.0
    """How much of a client's own values stays (the paper's alpha) where it takes a fragment from the version."""
    fragment_overlap_steps: Count = 0
    """So many local steps of each part (the paper's tau) are taken while its fragment travels, which lacks them."""
    precision: Precision = Precision.FP32
    """The number format of forward and backward passes, evaluation included."""
    compile: bool = False
    """Compile the model (torch.compile); where that fails it runs as it is written."""
    snapshot_seconds: Seconds = SNAPSHOT_SECONDS
    """How often a client keeps the state of an assignment on its disk, to go on from there if its process ends.
    0 means never."""
    tuple_columns: tuple[TensorName, ...] = Field(default=(), max_length=256)
    """A batch is a tuple of these columns, in this order; a dict by name where there are none."""
    ignore: tuple[Word, ...] = Field(default=(), max_length=64)
    """What the task's code asks for, would change what is trained, and is left out all the same: ``schedule`` (the rate
    then stays at ``initial_lr``), ``optimizer_hooks``, a LightningModule's hooks by their names, and so on."""
    inner_state: InnerState = InnerState.FRESH
    """Weights mode: what the inner optimizer begins a round with."""
    update_codec: CodecSpec = CodecSpec()
    """How clients make their updates small."""
    weights_codec: CodecSpec = CodecSpec()
    """How the server makes a new version small for clients that hold an older one: its difference to that, by this
    codec; ``none`` sends whole versions. What the codec loses is kept back and comes with a later version."""
    refresh_every: int = Field(default=16, ge=1, le=256)
    """The longest chain of differences: a client that holds no version since then gets a whole one."""
    pipeline: bool = False
    """Weights mode: a client goes on to the next round while its update is on its way. Needs ``max_staleness``."""
    seed: Natural = 0
    min_clients: Clients = 1
    """A round opens only with at least this many clients."""
    init_min_clients: Clients | None = None
    """The first round opens only with this many (``min_clients`` when absent)."""
    max_clients: Clients | None = None
    evaluate_every: Count = 1
    """Evaluate on held-out shards after every Nth round and after the last; 0 means never."""
    gather_seconds: Seconds = 2.0
    """The longest wait for busy eligible clients once ``min_clients`` are free."""
    longest_round_seconds: Interval = 600.0
    """A round that is not complete by then commits at quorum, or is given up once nobody gets on with it."""
    quorum: float = Field(default=1.0, gt=0, le=1)
    over_provision: float = Field(default=0.0, ge=0, le=4)
    """Weights mode: hand out this fraction more samples than the round needs, and commit as soon as it has enough."""
    max_staleness: int = Field(default=0, ge=0, le=MOST_STALENESS)
    """Weights mode: an update that misses its round still counts up to so many rounds later, at a lower weight."""
    buffer: Clients | None = None
    """Weights mode, asynchronous (FedBuff): nobody waits for anybody. A version is made of so many results, whoever
    brings them; who is free begins with the newest version at once, and ``max_staleness`` is 16 unless it is said."""
    quorum_clients: Clients | None = None
    """Likewise, after Decoupled DiLoCo: a version is of what is here once so many clients have delivered, and
    ``grace`` is over."""
    grace: float = Field(default=0.5, ge=0, le=10)
    """With ``quorum_clients``: how long the others are waited for, as a share of the median time of a part."""
    max_retries: Count = 3
    keep_checkpoints: Positive = 3
    """The newest so many checkpoints stay; so do the last one of a task, and those of the next two rules."""
    keep_every: Count = 0
    """Every Nth round's checkpoint stays; 0 means none."""
    keep_best: str | None = Field(default=None, max_length=100, json_schema_extra={"pattern": BEST_RULE})
    """``max:accuracy`` or ``min:loss``: the checkpoint with the best held-out metric stays."""

    @model_validator(mode="before")
    @classmethod
    def _reads_older_recipes(cls, recipe: Any) -> Any:
        return with_stale_updates(with_control_variates(with_split_parts(with_equal_parts(with_inner_state(recipe)))))

    patience: Positive | None = None
    """Stop after so many evaluations in which the metric of ``keep_best`` was no better than its best."""
    target: str | None = Field(default=None, max_length=100, json_schema_extra={"pattern": TARGET_RULE})
    """``accuracy>=0.95`` or ``loss<=0.1``: stop at the first evaluation that says so."""
    max_seconds: Interval | None = None
    """Stop at the first commit so many seconds after a client first worked on it."""

    @field_validator("target")
    @classmethod
    def _is_a_bound(cls, target: str | None) -> str | None:
        if target is not None and not re.match(TARGET_RULE, target):
            raise ValueError(f"{target!r} is no target: write accuracy>=0.95, or loss<=0.1")
        return target

    @field_validator("keep_best")
    @classmethod
    def _says_which_way(cls, rule: str | None) -> str | None:
        if rule is not None and not re.match(BEST_RULE, rule):
            raise ValueError(f"{rule!r} does not say which way is better: write max:accuracy, or min:loss")
        return rule

    @model_validator(mode="after")
    def _waits_for_nobody(self) -> Recipe:
        if (why := asynchronous_problem(self, averages_weights=self.mode is Mode.WEIGHTS)) is not None:
            raise ValueError(why)
        if (why := split_problem(self)) is not None:
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _stops(self) -> Recipe:
        if self.rounds is None and self.epochs is None:
            raise ValueError("give rounds or epochs, so that the task ends")
        if self.mode is Mode.GRADIENTS and self.quorum != 1.0:
            raise ValueError("gradients mode needs quorum 1: a global batch is all of its samples")
        if self.mode is Mode.GRADIENTS and (self.over_provision or self.max_staleness):
            raise ValueError("over_provision and max_staleness are for weights mode: a global batch is exact")
        if self.mode is Mode.GRADIENTS and self.inner_state is not InnerState.FRESH:
            raise ValueError("inner_state is for weights mode: in gradients mode the server has the optimizer")
        if self.part_samples is not None and self.parts is not PartSizes.FIXED:
            raise ValueError(
                'part_samples is for parts = "fixed": otherwise parts follow the measured speed of clients'
            )
        if self.parts is PartSizes.FIXED and (why := self._unrepeatable()):
            raise ValueError(f'parts = "fixed" promises equal weights, and {why}')
        if self.order is DataOrder.SEQUENTIAL and (why := self._disordered()):
            raise ValueError(f'order = "sequential" reads one batch after the other, and {why}')
        if self.pipeline and self.inner_state is InnerState.CARRIED:
            raise ValueError(
                'inner_state = "carried" needs the state that the round before ends with, and with pipeline a client '
                'begins before it ends: use "kept", or leave pipeline out'
            )
        if self.pipeline and (self.mode is Mode.GRADIENTS or not self.max_staleness):
            raise ValueError("pipeline is for weights mode with a max_staleness of 1 or more: its updates come late")
        return self

    @model_validator(mode="after")
    def _aggregates(self) -> Recipe:
        if (why := unfit_for_aggregate(self) or unfit_for_privacy(self) or unfit_for_secure_sum(self)) is not None:
            raise ValueError(why)
        return self

    def _unrepeatable(self) -> str | None:
        """Return what besides the parts would depend on which clients come, and when."""
        if self.buffer is not None or self.quorum_clients is not None:
            return "in an asynchronous recipe a version is of whatever came first: leave buffer or quorum_clients out"
        if self.quorum < 1 or self.over_provision or self.max_staleness:
            return "quorum, over_provision and max_staleness count whoever is first: leave them out"
        if self.inner_state is InnerState.KEPT:
            return 'inner_state = "kept" makes an update depend on what its client did before: use "carried"'
        if self.update_codec.name is not CodecName.NONE and self.update_codec.error_feedback:
            return "error feedback makes an update depend on what its client sent before: set error_feedback = false"
        return None

    def _disordered(self) -> str | None:
        """Return what would keep a client from reading its stretch batch by batch."""
        if self.mode is Mode.GRADIENTS:
            return "gradients mode takes a whole round as one step, in which no batch comes before another: use weights"
        if self.parts is not PartSizes.FIXED:
            return 'parts = "speed" cuts a round anywhere: leave parts out'
        if self.part_samples is not None:
            return "a round has one part of each stretch, min_clients in all: leave part_samples out"
        return None


def parse_rule(rule: str) -> tuple[int, str]:
    """Return 1 or -1, with which more is better, and the metric's name of a rule such as ``max:accuracy``."""
    direction, metric = rule.split(":", 1)
    return (1 if direction == "max" else -1), metric


def parse_target(target: str) -> tuple[str, int, float]:
    """Return the metric's name, 1 for ``>=`` and -1 for ``<=``, and the bound. Raises: ValueError if it is none."""
    found = re.match(TARGET_RULE, target)
    if found is None:
        raise ValueError(f"{target!r} is no target")
    metric, relation, bound = found.groups()
    return metric, (1 if relation == ">=" else -1), float(bound)


class Requirements(Frozen):
    """What a client must have to be eligible; unset means no requirement. ``clients`` are client names or ids."""

    cpu_cores: Count = 0
    ram_bytes: Bytes = 0
    gpu: bool = False
    gpu_memory_bytes: Bytes = 0
    tags: tuple[Word, ...] = Field(default=(), max_length=MAX_TAGS)
    clients: tuple[Word, ...] = Field(default=(), max_length=1000)
    modules: tuple[Word, ...] = Field(default=(), max_length=64)
    """Top-level Python modules that the code imports and that do not travel with it."""
    sandbox: Rung | None = None
    """How well the client must shut the code in: this rung, or one above it, that withstood the escape probes."""
