"""The researcher's contract: which functions a task's code has, and what each must give back.

``build_model(config)`` and ``loss(model, batch)`` are needed, and all others optional;
docs/reference/researcher-contract.md has the table. A LightningModule stands for some of them. Every call goes through
``failures.calling``, so that an error names the researcher's line.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import default_collate

from farm_client.executor import lightning_steps
from farm_client.executor.failures import CodeError, calling, text_of
from farm_client.executor.lightning_hooks import is_own
from farm_client.executor.lightning_trainer import missed_in_a_property, trainer_view
from farm_client.executor.means import as_number, describe_batch
from farm_client.executor.optimizers import Optimizers
from farm_client.executor.step_metrics import Number, left_there
from farm_client.executor.streams import is_stream
from farm_client.executor.timeline import Place, Scheduled, as_scheduled
from farm_client.task import metric_name
from protocol.recipe import Precision
from protocol.task_length import TaskLength

DEFAULT_LEARNING_RATE: Final = 1e-3
"""Of the AdamW that trains a task without ``build_optimizer``."""


@dataclass(frozen=True)
class LossValue:
    """A batch's mean loss, with its graph, and further metrics without one."""

    loss: torch.Tensor
    metrics: Mapping[str, Number]


@dataclass(frozen=True)
class Contract:
    """A task's code, imported. Each method raises CodeError with the researcher's line; memory errors pass through."""

    module: ModuleType
    code_dir: Path
    config: Mapping[str, Any]

    def has(self, function: str) -> bool:
        """Return whether the code defines this optional function."""
        return callable(getattr(self.module, function, None))

    def build_model(self) -> nn.Module:
        """Return a new model on the CPU."""
        with calling("build_model(config)", self.code_dir):
            if self.has("build_model"):
                model = self.module.build_model(dict(self.config))
            else:
                model = lightning_steps.instantiate(self._lightning_class(), self.config)
        if not isinstance(model, nn.Module):
            raise CodeError(f"build_model must return a torch.nn.Module, it returned {type(model).__name__}")
        if not (self._has_loss(model) or (self.has("train_step") and self.has("evaluate"))):
            raise CodeError(self._missing_loss)
        if lightning_steps.is_lightning(model):
            trainer_view(model)
        return model

    def build_optimizer(self, model: nn.Module) -> Optimizers:
        """Return new inner optimizers; one AdamW with learning rate 1e-3 where the code has none."""
        function = self._function("build_optimizer", model)
        if function is None:
            trained = [p for p in model.parameters() if p.requires_grad]
            return Optimizers.of(torch.optim.AdamW(trained, lr=DEFAULT_LEARNING_RATE))
        with calling("build_optimizer(model, config)", self.code_dir, lambda error: _missed(model, error)):
            optimizers = Optimizers.of(function(model, dict(self.config)))
        if not (self.has("train_step") or self.is_manual(model)):
            _ = optimizers.only
        return optimizers

    def has_schedulers(self, model: nn.Module) -> bool:
        """Return whether the code may have schedulers that the farm follows."""
        stands_in = lightning_steps.is_lightning(model) and not self.has("build_optimizer")
        return (stands_in and not self.is_manual(model)) or self.has("build_scheduler")

    def build_scheduler(self, optimizers: Optimizers, model: nn.Module) -> tuple[Scheduled, ...]:
        """Return new schedulers of these optimizers; none where the code has none."""
        if self.has("build_scheduler"):
            with calling("build_scheduler(optimizer, config)", self.code_dir):
                return as_scheduled(self.module.build_scheduler(optimizers.given, dict(self.config)))
        if not self.has_schedulers(model):
            return ()
        return tuple(one for optimizer in optimizers for one in lightning_steps.schedulers(optimizer, model))

    def loss(self, model: nn.Module, batch: Any) -> LossValue:
        """Return the batch's mean loss and metrics. Whether it is finite is the caller's question."""
        if not self._has_loss(model):
            raise CodeError(self._missing_loss)
        function = self.module.loss if self.has("loss") else lightning_steps.loss
        with calling("loss(model, batch)", self.code_dir, lambda error: _about_batch(batch, error), function):
            return _as_loss_value(function(model, batch))

    def initial_state(self, model: nn.Module, streams: int) -> Any:
        """Return what the code's first batch of so many streams is given."""
        with calling("initial_state(model, batch_size, config)", self.code_dir):
            return self.module.initial_state(model, streams, dict(self.config))

    def loss_with_state(self, model: nn.Module, batch: Any, state: Any) -> tuple[LossValue, Any]:
        """Return the batch's mean loss and metrics, and the state that the next batch is given."""
        if not self.has("loss"):
            raise CodeError(self._missing_loss)
        function = self.module.loss
        with calling("loss(model, batch, state)", self.code_dir, lambda error: _about_batch(batch, error), function):
            value, after = _with_state(function(model, batch, state), "loss")
            return _as_loss_value(value), after

    def train_step_with_state(
        self, model: nn.Module, batch: Any, optimizers: Any, step: int, state: Any
    ) -> tuple[dict[str, Number], Any]:
        """As ``train_step``, and with the state as ``loss_with_state``."""
        function = self.module.train_step
        with calling("train_step(...)", self.code_dir, lambda error: _about_batch(batch, error), function):
            answer, after = _with_state(function(model, batch, optimizers, step, state), "train_step")
            return _metrics(answer if isinstance(answer, Mapping) else {"loss": answer}, "train_step"), after

    def train_step(self, model: nn.Module, batch: Any, optimizers: Any, step: int) -> dict[str, Number]:
        """Have the researcher's own ``train_step`` take a step; return its metrics, ``loss`` among them if it says one.

        ``optimizers`` are as ``build_optimizer`` gave them, ``step`` counts the round's steps from 0.
        """
        function = self.module.train_step
        with calling("train_step(...)", self.code_dir, lambda error: _about_batch(batch, error), function):
            answer = function(model, batch, optimizers, step)
            values = answer if isinstance(answer, Mapping) else {"loss": answer}
            return _metrics(values, "train_step")

    def on_before_step(self, model: nn.Module, optimizers: Any, step: int) -> None:
        """Show the researcher's ``on_before_step``, if there is one, the gradients before they are clipped."""
        if self.has("on_before_step"):
            with calling("on_before_step(model, optimizers, step)", self.code_dir):
                self.module.on_before_step(model, optimizers, step)

    def takes_lightnings_steps(self, model: nn.Module) -> bool:
        """Return whether local steps are a LightningModule's, with its hooks: the code has no other part of them."""
        own = ("loss", "train_step", "build_optimizer")
        return lightning_steps.is_lightning(model) and not any(self.has(name) for name in own)

    def is_manual(self, model: nn.Module) -> bool:
        """Return whether a LightningModule steps its optimizers itself."""
        return self.takes_lightnings_steps(model) and lightning_steps.is_manual(model)

    def manual_step(self, model: nn.Module, batch: Any) -> dict[str, Number]:
        """Have such a module take a step; return its metrics, ``loss`` among them if it says one."""
        with calling("training_step(...)", self.code_dir, lambda error: _about_batch(batch, error)):
            return _metrics(lightning_steps.step(model, batch), "training_step")

    def begin_batch(self, model: nn.Module, batch: Any, index: int) -> Any:
        """Return what a LightningModule's hooks make of a batch, the ``index``-th of its part."""
        if self.has("loss") or not lightning_steps.is_lightning(model):
            return batch
        with calling("the model's hooks on batches", self.code_dir):
            return lightning_steps.begin_batch(model, batch, index)

    def move(self, model: nn.Module, step: int | None, epoch: int) -> None:
        """Tell a LightningModule where the task is: its global step, the last one known if None, and its epoch."""
        if lightning_steps.is_lightning(model):
            view = trainer_view(model)
            view.at(Place(view.global_step if step is None else step, epoch))

    def tell(self, model: nn.Module, length: TaskLength | None, precision: Precision) -> None:
        """Tell a LightningModule of the task: how long it is, if that is known, and its numbers' format."""
        if lightning_steps.is_lightning(model):
            trainer_view(model).tell(length, precision)

    def reads_length(self, model: nn.Module) -> bool:
        """Return whether a LightningModule has asked how long the task is."""
        return lightning_steps.is_lightning(model) and trainer_view(model).was_asked_for_length

    def begin(self, model: nn.Module) -> None:
        """Begin an assignment: what a LightningModule's metric objects gathered in former ones is over."""
        if lightning_steps.is_lightning(model):
            with calling("resetting the model's metrics", self.code_dir):
                lightning_steps.begin(model)

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics that are known only after all batches of an assignment."""
        if not lightning_steps.is_lightning(model):
            return {}
        with calling("computing the model's metrics", self.code_dir):
            return lightning_steps.finish(model)

    def evaluate(self, model: nn.Module, data: Iterable[Any]) -> dict[str, float] | None:
        """Return the researcher's own evaluation, or None where the default one is wanted."""
        function = self._function("evaluate", model)
        if function is None:
            return None
        if not self.evaluates(model):
            raise CodeError("with manual optimization only a validation_step can evaluate, and there is none: add it")
        with calling("evaluate(model, data)", self.code_dir, function=function):
            found = function(model, data)
            if not isinstance(found, Mapping):
                raise CodeError(f"evaluate must return a dict of numbers, it returned {type(found).__name__}")
            return {metric_name(name): as_number(value) for name, value in found.items()}

    def on_epoch_end(self, model: nn.Module, epoch: int, out: Path) -> None:
        """Have the researcher's ``on_epoch_end`` look at the model that ended an epoch, and leave files in ``out``."""
        with calling("on_epoch_end(model, epoch, out)", self.code_dir, function=self.module.on_epoch_end):
            self.module.on_epoch_end(model, epoch, out)

    def evaluates(self, model: nn.Module) -> bool:
        """Return whether there is a way to evaluate: a step that steps its optimizers is none."""
        return self.has("evaluate") or not self.is_manual(model) or is_own(type(model), "validation_step")

    def collate(self, items: list[Any]) -> Any:
        """Return the batch of some of a data set's items, by the researcher's ``collate_fn`` if there is one."""
        return self.module.collate_fn(items) if self.has("collate_fn") else default_collate(items)

    def load_shard(self, shard: object) -> Any:
        """Return what the researcher's ``load_shard`` makes of a shard."""
        with calling("load_shard(shard)", self.code_dir):
            return self.module.load_shard(shard)

    def make_dataset(self) -> Any:
        """Return the researcher's whole data set: map-style, or a stream.

        Raises: CodeError also if it is neither.
        """
        with calling("make_dataset(config)", self.code_dir):
            if not self.has("make_dataset"):
                raise CodeError(f"there is no data: {self._missing_data}")
            dataset = self.module.make_dataset(dict(self.config))
            if not is_stream(dataset) and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise CodeError(
                    "make_dataset must return a map-style data set, with __len__ and __getitem__, or an iterable one "
                    f"that can be read again; it returned {type(dataset).__name__}"
                )
            return dataset

    def _has_loss(self, model: nn.Module) -> bool:
        return self.has("loss") or lightning_steps.is_lightning(model)

    @property
    def _missing_loss(self) -> str:
        return f"{self._file} has no loss(model, batch): add it; it returns the batch's mean loss"

    @property
    def _missing_data(self) -> str:
        if self.has("load_shard"):
            return "load_shard does not say how many rows there are; write samples = N into [task] of --config"
        return f"give files with --data, or add make_dataset(config) to {self._file}"

    @property
    def _file(self) -> str:
        return Path(str(self.module.__file__)).name

    def _function(self, name: str, model: nn.Module) -> Callable[..., Any] | None:
        if self.has(name):
            return getattr(self.module, name)  # type: ignore[no-any-return]  # has() saw that it is callable
        stand_in = {"build_optimizer": lightning_steps.build_optimizer, "evaluate": lightning_steps.evaluate}
        return stand_in[name] if lightning_steps.is_lightning(model) else None

    def _lightning_class(self) -> type[nn.Module]:
        found = lightning_steps.find_lightning_class(self.module)
        if found is None:
            raise CodeError(f"{self._file} has no build_model(config): add it; it returns a torch.nn.Module")
        return found


def load_contract(code_dir: Path, entry: str, config: Mapping[str, Any]) -> Contract:
    """Import the entry file as a module, with its folder and the bundle's root on the import path.

    Raises: CodeError if it is missing, has a syntax error, or raises.
    """
    root = code_dir.resolve()
    path = root / entry
    if not path.is_file():
        raise CodeError(f"there is no {entry} in the submitted code; name the entry file with --entry")
    sys.path[:0] = [p for p in dict.fromkeys((str(path.parent), str(root))) if p not in sys.path]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CodeError(f"{entry} is not a Python file; the entry must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # before it runs: dataclasses and pickling look their module up
    with calling(entry, root):
        spec.loader.exec_module(module)
    return Contract(module, root, config)


def _about_batch(batch: Any, error: BaseException) -> str:
    """Return what a batch is, and what may have been meant by code that unpacks a dict."""
    about = f" (the batch is {describe_batch(batch)})"
    if isinstance(batch, Mapping) and _smells_of_unpacking(error):
        about += (
            "; a dict that is unpacked gives its columns' names: take batch['name'], or submit with --batch tuple, "
            "which makes tuples"
        )
    return about


def _missed(model: nn.Module, error: BaseException) -> str:
    return missed_in_a_property(model, error) if lightning_steps.is_lightning(model) else ""


def _smells_of_unpacking(error: BaseException) -> bool:
    """Return whether an error is like those of ``x, y = batch`` and ``batch[0]`` over a dict."""
    if isinstance(error, KeyError):
        return bool(error.args) and isinstance(error.args[0], int)
    return bool(re.search(r"\bstr\b|to unpack", text_of(error)))


def _with_state(answer: Any, function: str) -> tuple[Any, Any]:
    if isinstance(answer, tuple) and len(answer) == 2:
        return answer
    raise CodeError(
        f"{function} must return (loss, state), for there is an initial_state; it returned {type(answer).__name__}"
    )


def _as_loss_value(answer: Any) -> LossValue:
    values = dict(answer) if isinstance(answer, Mapping) else {"loss": answer}
    loss = values.pop("loss", None)
    if not isinstance(loss, torch.Tensor):
        kind = f"a {type(loss).__name__}" if loss is not None else 'a dict without "loss"'
        raise CodeError(f'loss must return a scalar tensor, or a dict with one under "loss"; it returned {kind}')
    if loss.numel() != 1:
        raise CodeError(f"loss must return one number and returned shape {list(loss.shape)}: take its .mean()")
    return LossValue(loss.reshape(()), _metrics(values, "loss", " beside the loss"))


def _metrics(values: Mapping[Any, Any], function: str, where: str = "") -> dict[str, Number]:
    """Return what a function of the researcher's returned, as numbers. Raises: CodeError naming what is none."""
    numbers: dict[str, Number] = {}
    for name, value in values.items():
        known_as = metric_name(name)
        try:
            is_tensor = isinstance(value, torch.Tensor) and value.numel() == 1
            numbers[known_as] = left_there(value) if is_tensor else as_number(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CodeError(f"{function} returned {name!r}{where}, which is no number: {text_of(error)}") from error
    return numbers
