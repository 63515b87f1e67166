"""What a researcher submits: references to blobs, the data set's shards, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from protocol.bounds import (
    MAX_COUNT,
    MAX_SHARDS,
    Bytes,
    Config,
    Count,
    FilePath,
    Id,
    Label,
    Mu,
    Natural,
    Positive,
    Seconds,
    Share,
    TensorName,
    Text,
    Threshold,
    Title,
    Word,
)
from protocol.compression import CodecSpec
from protocol.data_split import MOST_PARTS, DataPart
from protocol.digests import Digest, digest_bytes
from protocol.fragments import FragmentPattern
from protocol.frozen import Frozen
from protocol.limits import INLINE_BYTES
from protocol.maps import MapPlan
from protocol.named_schedule import NamedSchedule
from protocol.recipe import SNAPSHOT_SECONDS, InnerState, Mode, Precision, Recipe, Requirements, with_inner_state
from protocol.task_length import TaskLength
from protocol.topics import Topics

MAX_NOTES: Final = 64
MAX_BASE_FILES: Final = 256
"""Every assignment names them all."""
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""What libraries unpickle, and so may run code on whoever loads it."""


class BlobRef(Frozen):
    """Immutable bytes by name; those of a small blob may ride along, ``inline``.

    Few need to know whether they do. ``carrying`` makes such a reference, and ``bare`` is what is kept of it. Bytes are
    asked for by the reference: on a client ``Fetcher`` has what comes and ``ResultSender`` sends what goes, on the
    server ``SpooledUpdates`` and ``MemoryBlobs``.
    """

    CARRIED: ClassVar[set[str]] = {"inline"}
    """What to leave out of a reference that is kept as JSON."""

    digest: Digest
    size_bytes: Bytes
    inline: bytes | None = None

    @classmethod
    def carrying(cls, data: bytes, digest: str | None = None) -> Self:
        """Return a reference that brings its bytes; without ``digest`` they are hashed. Raises: ValidationError."""
        return cls(digest=digest or digest_bytes(data), size_bytes=len(data), inline=data)

    @property
    def carried(self) -> bytes | None:
        """The bytes that ride along, if they do. They are what a stranger sent: not yet known to hash to ``digest``."""
        return self.inline

    @property
    def is_small(self) -> bool:
        """Whether it may ride inside a message at all; a connection may allow less."""
        return self.size_bytes <= INLINE_BYTES

    def bare(self) -> Self:
        """Return the reference without the bytes."""
        return self if self.inline is None else self.model_copy(update={"inline": None})


class BaseFile(Frozen):
    """A file of the folder that a task starts from, by its path in it: relative, with slashes."""

    path: FilePath
    blob: BlobRef

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if why := base_path_fault(path):
            raise ValueError(why)
        return path


def base_path_fault(path: str) -> str | None:
    """Return why no base may have a file of this path; None if it may."""
    parts = path.split("/")
    if "\\" in path or ":" in path or any(part in {"", ".", ".."} for part in parts):
        return f"{path!r} is no path inside of a folder: write it relative, with slashes and without dots"
    if path.lower().endswith(_PICKLES):
        return (
            f"{path} is a pickle, which may run code on every volunteer: write the model as safetensors "
            "(save_pretrained does) and leave this file out"
        )
    return None


BaseFiles = Annotated[tuple[BaseFile, ...], Field(max_length=MAX_BASE_FILES)]


class WeightsDelta(Frozen):
    """How one version of the weights follows from another: decoded by ``codec`` and added, the files are equal.

    ``base`` and ``digest`` name the weights files before and after it.
    """

    base: Digest
    digest: Digest
    codec: CodecSpec
    blob: BlobRef


class Split(StrEnum):
    """Which part of the data a shard belongs to."""

    TRAIN = "train"
    HOLDOUT = "holdout"


class Shard(Frozen):
    """A fixed, numbered slice of the data set.

    With ``blob`` the rows are in a safetensors file. Without, the shard is rows ``start`` to
    ``start + samples`` of the data set that the researcher's ``make_dataset(config)`` builds.

    With ``stride``, where rows are read in order, it is a run of as many rows of each of ``batch_samples`` streams, one
    run after the other: the first begins at row ``start`` of the data, the next one ``stride`` rows further on.
    """

    index: Count
    split: Split = Split.TRAIN
    samples: Positive
    start: Count = 0
    stride: Count = 0
    blob: BlobRef | None = None


class Dataset(Frozen):
    """The task's data: shards numbered from 0 without a gap, train and holdout together."""

    kind: Literal["files", "code"]
    shards: tuple[Shard, ...] = Field(max_length=MAX_SHARDS)
    parts: tuple[DataPart, ...] = Field(default=(), max_length=MOST_PARTS)
    """The virtual clients of a split, which have the training shards in turn."""

    def of(self, split: Split) -> tuple[Shard, ...]:
        """Return the shards of one split, in order of index."""
        return tuple(s for s in self.shards if s.split is split)

    def samples(self, split: Split) -> int:
        """Count the samples of one split."""
        return self.samples_by_split[split]

    @cached_property
    def samples_by_split(self) -> Mapping[Split, int]:
        """Count the samples of each split."""
        counts = dict.fromkeys(Split, 0)
        for shard in self.shards:
            counts[shard.split] += shard.samples
        return counts

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Return how many samples are in the shards before each one, whichever split they are of."""
        return (0, *accumulate(shard.samples for shard in self.shards))[:-1]

    @model_validator(mode="after")
    def _numbered(self) -> Dataset:
        if [s.index for s in self.shards] != list(range(len(self.shards))):
            raise ValueError("shards must be numbered 0, 1, 2, ... in order")
        if self.samples(Split.TRAIN) == 0:
            raise ValueError("the data set is empty: there is no training sample")
        if sum(s.samples for s in self.shards) > MAX_COUNT:
            raise ValueError(f"the data set has over {MAX_COUNT} samples")
        if self.parts and not self._is_split():
            raise ValueError("the parts of a split have the first shards, all of them for training, with their samples")
        if self.kind == "files" and any(s.blob is None for s in self.shards):
            raise ValueError("each shard of a file data set needs its blob")
        return self

    def _is_split(self) -> bool:
        train, ends = self.of(Split.TRAIN), list(accumulate((part.shards for part in self.parts), initial=0))
        return (
            train == self.shards[: len(train)]
            and ends[-1] == len(train)
            and all(
                part.samples == sum(shard.samples for shard in train[start:stop])
                for part, start, stop in zip(self.parts, ends, ends[1:], strict=False)
            )
        )

    @cached_property
    def part_of_shard(self) -> Sequence[int]:
        """Return which part of the split each training shard is in, by index."""
        return [number for number, part in enumerate(self.parts) for _ in range(part.shards)]


class Footprint(Frozen):
    """What one batch took on the researcher's machine: the pre-flight's estimate of what a client needs.

    All in bytes; ``peak_ram_bytes`` is the whole executor process, 0 where it was not measured.
    """

    weights_bytes: Bytes = 0
    peak_ram_bytes: Bytes = 0
    largest_shard_bytes: Bytes = 0


class Origin(Frozen):
    """The checkpoint after ``round`` rounds of another task, from which a task goes on as if it had never ended."""

    task_id: Id
    round: Count


class TaskSpec(Frozen):
    """One submission, whole. ``entry`` is the Python file inside the code bundle (a zip)."""

    name: Title
    submitter: Word = Field(default="anonymous", min_length=1)
    code: BlobRef
    topics: Topics = ()
    """What it is about, in the submitter's words; owners choose by them."""
    entry: FilePath = "train.py"
    config: Config = Field(default_factory=dict)
    dataset: Dataset
    initial_weights: BlobRef
    """What training may change: parameters and buffers; all versions of the weights have these tensors."""
    frozen: BlobRef | None = None
    """The frozen tensors, a weights file of their own that clients fetch once; None where ``initial_weights`` has them,
    or there are none."""
    base: BaseFiles = ()
    """The folder that ``build_model`` starts from, file by file; its ``config["base"]`` says where it is."""
    environment: BlobRef | None = None
    """The lock of the packages that the code imports (``protocol.locks``); its digest is the environment's name."""
    model_files: Config = Field(default_factory=dict)
    """JSON files by name that say to Hugging Face's libraries what the model is; for who pulls it, not for clients."""
    recipe: Recipe
    requirements: Requirements = Requirements()
    footprint: Footprint = Footprint()
    priority: int = Field(default=5, ge=0, le=9)
    notes: tuple[Text, ...] = Field(default=(), max_length=MAX_NOTES)
    """What the researcher was told when it was submitted, such as parts of the code that the farm does not run."""
    rehearsed: bool = False
    """The researcher's machine ran the code on a batch before this was submitted."""
    has_scheduler: bool = False
    """In weights mode clients follow a scheduler of the code's, which older ones would leave out without a word."""
    is_quantized: bool = False
    """Among the frozen tensors is what quantized layers keep beside their weights, which older clients don't expect."""
    reads_length: bool = False
    """The code asks how long the task is, which older clients can't tell."""
    epoch_end: bool = False
    """After each epoch one client runs the code's ``on_epoch_end``, and the farm keeps the files that it leaves."""
    map: MapPlan | None = None
    """The task is a map: its code's function is run on each training sample once, and ``initial_weights`` are empty."""
    continues: Origin | None = None
    """The task's rounds, epochs and samples are counted on from there, and ``initial_weights`` are that checkpoint's.
    What else it goes on with is ``coordinator.continuing``'s to say."""
    needs: tuple[Word, ...] = Field(default=(), max_length=64)
    """``protocol.features``: a server that does not know one of them refuses the task."""
    submit_token: Title | None = None
    """A repeat with the same token returns the first task instead of making a second."""

    @model_validator(mode="after")
    def _has_one_base(self) -> TaskSpec:
        paths = [file.path for file in self.base]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise ValueError(f"the base has two files {twice}")
        if self.base and "base" in self.config:
            raise ValueError("config has a value base, and a task with a base gets its folder by that name")
        return self

    @model_validator(mode="after")
    def _maps_once(self) -> TaskSpec:
        recipe = self.recipe
        stops = (recipe.rounds, recipe.patience, recipe.target, recipe.max_seconds, self.continues)
        more = self.epoch_end or self.dataset.samples(Split.HOLDOUT) or any(rule is not None for rule in stops)
        if self.map is not None and (more or recipe.epochs != 1):
            raise ValueError("a map goes over its data once: epochs is 1, nothing is held out, and nothing stops it")
        return self


class TaskBrief(Frozen):
    """What a client must know of a task, the same in each of its assignments."""

    task_id: Id
    name: Title
    submitter: Label = ""
    """``TaskSpec.submitter``, which nobody has proven: whoever has the farm token may write any name. Empty from older
    servers."""
    topics: Topics = ()
    """``TaskSpec.topics``; older servers name none."""
    mode: Mode
    code: BlobRef
    frozen: BlobRef | None = None
    """A weights file of the tensors that never change, fetched once; versions of the weights don't have them then.

    Where there is a ``base`` they are fetched only by a client that builds others from it."""
    base: BaseFiles = ()
    """``TaskSpec.base``."""
    environment: BlobRef | None = None
    """``TaskSpec.environment``: an executor of the task runs with these packages."""
    entry: FilePath
    config: Config
    seed: Natural
    batch_samples: Positive
    dataset_kind: Literal["files", "code"]
    needed_ram_bytes: Natural = 0
    modules: tuple[Word, ...] = Field(default=(), max_length=64)
    """``Requirements.modules``; older clients find out when the code imports them."""
    inner_state: InnerState = InnerState.FRESH
    """``Recipe.inner_state``."""
    keep_inner_optimizer: bool = False
    """The same for older clients, which know two of its values."""
    tuple_columns: tuple[TensorName, ...] = Field(default=(), max_length=256)
    """``Recipe.tuple_columns``."""
    ignore: tuple[Word, ...] = Field(default=(), max_length=64)
    """``Recipe.ignore``: what the executor leaves out although the code asks for it."""
    clip_norm: Threshold | None = None
    """``Recipe.clip_norm``: in weights mode, before each local step."""
    clip_value: Threshold | None = None
    proximal_mu: Mu = 0.0
    """``Recipe.proximal_mu``."""
    fragments: Positive = 1
    """``Recipe.fragments``, with how they are cut and mixed."""
    fragment_pattern: FragmentPattern = FragmentPattern.STRIDED
    fragment_mix: Share = 0.0
    fragment_overlap_steps: Count = 0
    scaffold_clients: Count = 0
    """``Recipe.scaffold_clients``."""
    schedule: NamedSchedule | None = None
    """``Recipe.schedule``: in weights mode, what local steps follow."""
    schedule_steps: Count = 0
    """How many global steps it goes over: the task's."""
    length: TaskLength | None = None
    """How long the task is, for code that asks; older servers do not say."""
    precision: Precision = Precision.FP32
    compile: bool = False
    snapshot_seconds: Seconds = SNAPSHOT_SECONDS
    """``Recipe.snapshot_seconds``; older clients keep no snapshots, and begin anew."""
    update_codec: CodecSpec = CodecSpec()
    weights_codec: CodecSpec = CodecSpec()
    """Unless it is ``none``, versions of the weights are kept as files in the cache: differences build on them."""
    pipeline: bool = False
    """The slot is free again when the update is computed, not when it is delivered."""
    map: MapPlan | None = None
    """``TaskSpec.map``."""

    @model_validator(mode="before")
    @classmethod
    def _reads_older_servers(cls, brief: Any) -> Any:
        return with_inner_state(brief)
