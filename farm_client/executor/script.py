"""A script with a loop of its own, run on a thread beside the executor's: it gets parts and hands models in.

The two threads never run at once: the script waits in ``next_part`` while the executor has the word, and the executor
waits while the script trains.
"""

from __future__ import annotations

import ast
import runpy
import shlex
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, SupportsFloat

from torch import nn

from farm_client.executor.arrays import ArrayModel, array_model
from farm_client.executor.failures import CodeError, calling
from farm_client.executor.inner_state import Stateful
from farm_client.own_loop import Evaluate, LoopPart, Trainable, host_parts

_CALLS: Final = frozenset(
    {
        *("farm_client.parts", "farm_client.own_loop.parts"),
        *("farm_client.hf.Callback", "farm_client.lightning.Callback"),
    }
)
"""What only a script calls."""
_LEAVING_SECONDS: Final = 5.0
"""A script that is still busy with its own end then is left to itself."""


def is_script(entry: Path) -> bool:
    """Return whether a file calls ``parts`` of ``farm_client``, or makes a Trainer's callback of it.

    Then it is run as a whole, and calls the farm. A file that cannot be read or parsed is none; whoever imports it says
    why.
    """
    try:
        tree = ast.parse(entry.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                imported[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return any(isinstance(node, ast.Call) and _dotted(node.func, imported) in _CALLS for node in ast.walk(tree))


def _dotted(called: ast.expr, imported: Mapping[str, str]) -> str:
    """Return the full name of what is called, by the file's imports; empty for what none of them names."""
    match called:
        case ast.Attribute():
            return f"{_dotted(called.value, imported)}.{called.attr}"
        case ast.Name():
            return imported.get(called.id, "")
    return ""


def _arguments(config: Mapping[str, Any]) -> list[str]:
    """Return the command line that the task's settings give the script: ``argv``, a text or a list."""
    given = config.get("argv", [])
    if isinstance(given, str):
        return shlex.split(given)
    if not isinstance(given, list):
        raise CodeError(f"argv in [config] is a {type(given).__name__}: write the script's command line as a text")
    return [str(argument) for argument in given]


class Script:
    """A script on its thread. After a failure it is over, and another one has to be made. Raises: CodeError, in all."""

    def __init__(self, code_dir: Path, entry: str, config: Mapping[str, Any]) -> None:
        """Run the script up to its first part: its model is then in ``model``."""
        self.model: nn.Module | None = None
        self.carries: Mapping[str, Stateful] = {}
        self.evaluate: Evaluate | None = None
        self._root = code_dir.resolve()
        self._entry = entry
        self._config = config
        self._part: LoopPart | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._scripts_turn = threading.Semaphore(0)
        self._our_turn = threading.Semaphore(0)
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="script", daemon=True)
        self._thread.start()
        self._our_turn.acquire()
        self._raise_error()
        if self.model is None:
            raise CodeError(f"{entry} ended without calling farm.parts(model): it has nothing to train on the farm")

    def train(self, part: LoopPart) -> None:
        """Have the script train on a part; returns once it has called ``part.done``."""
        if self._ended:
            raise CodeError(
                f"{self._entry} ended after a part: loop over farm.parts(model) to its end; a task ends early by a "
                "metric that the script's evaluate function returns, and a target for it: --target 'loss<=0.001'"
            )
        self._part = part
        self._give_arrays()
        self._scripts_turn.release()
        self._our_turn.acquire()
        self._raise_error()
        if not part.is_done:
            raise CodeError(f"{self._entry} left its loop without part.done()")
        if part.unread:
            left = "its rows unread" if part.items is None else f"{part.unread} of {len(part.rows)} rows unread"
            raise CodeError(
                f"part.done() came with {left}: a part counts as a whole; read all of part.loader(dataset), or say "
                "part.read(rows) where they come another way"
            )
        if isinstance(self.model, ArrayModel):
            self.model.take()

    def evaluation(self, part: LoopPart) -> Mapping[str, SupportsFloat]:
        """Return what the script's function says of the model on a part. Raises: what the function raises."""
        if self.evaluate is None:
            raise CodeError("the script gives farm.parts no evaluate function")
        self._give_arrays()
        return self.evaluate(self.model.arrays if isinstance(self.model, ArrayModel) else self.model, part)

    def open(self, model: Trainable, carries: Mapping[str, Any], evaluate: Evaluate | None) -> None:
        """Take the script's model, and what has a state beside it (on its thread)."""
        if self.model is not None:
            raise CodeError("farm.parts was called twice: a script has one model and one loop over its parts")
        module = array_model(model)
        for name, part in carries.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise CodeError(f"farm.parts: {name} is a {type(part).__name__}, which has no state_dict to be carried")
        self.model, self.carries, self.evaluate = module, carries, evaluate

    def next_part(self) -> LoopPart | None:
        """Give the executor the word until it has another part (on the script's thread). Raises: SystemExit."""
        self._our_turn.release()
        self._scripts_turn.acquire()
        if self._is_over:
            sys.exit(f"{self._entry} gets no more parts")
        return self._part

    def end(self) -> None:
        """Have a script that waits for a part leave, as by ``sys.exit``, and with it the memory that it holds."""
        self._is_over = True
        self._scripts_turn.release()
        self._thread.join(_LEAVING_SECONDS)  # what it does as it leaves must not meet the next script

    def config(self) -> Mapping[str, Any]:
        """Return the task's ``[config]``."""
        return self._config

    def _run(self) -> None:
        path = self._root / self._entry
        sys.path[:0] = [p for p in dict.fromkeys((str(path.parent), str(self._root))) if p not in sys.path]
        host_parts(self)
        try:
            sys.argv = [str(path), *_arguments(self._config)]
            with calling(self._entry, self._root):
                runpy.run_path(str(path), run_name="__main__")
        except BaseException as error:
            self._error = error
        self._ended = True
        self._our_turn.release()

    def _give_arrays(self) -> None:
        if isinstance(self.model, ArrayModel):
            self.model.give()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
