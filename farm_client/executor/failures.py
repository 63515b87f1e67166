"""Whose fault a failure is, and its report: the researcher's file and line, one sentence, a trimmed traceback."""

from __future__ import annotations

import argparse
import errno
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from farm_client.executor.messages import DISK_FULL, OUT_OF_MEMORY, Failed, FailedStepFile
from protocol.errors import FarmError
from protocol.messages import Scope

MAX_MESSAGE_CHARS = 2000
MAX_TRACEBACK_CHARS = 20000


_MEMORY_WORDS: Final = ("DefaultCPUAllocator", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""How torch, CUDA and its libraries say it where they have no type for it."""
_OF_LOGGERS: Final = frozenset(
    {
        "experiment",
        "log_dir",
        "log_hyperparams",
        "log_image",
        "log_metrics",
        "log_table",
        "log_text",
        "save_dir",
        "watch",
    }
)
"""What modules ask of Lightning's loggers."""
_DISK_WORDS: Final = ("No space left on device", "Disk quota exceeded")


class CodeError(FarmError):
    """The task's code or data is at fault: it would fail on every machine."""

    code: ClassVar[str] = "task_code"

    def __init__(self, message: str, trace: str | None = None) -> None:
        super().__init__(message)
        self.trace = trace
        self.failed_step: FailedStepFile | None = None
        """What is kept of the step in which it happened."""


class LossNotFinite(CodeError):
    """The loss became NaN or infinite."""

    code = "loss_not_finite"


class EmptyData(CodeError):
    """There is no sample to train on."""

    code = "empty_data"


class MissingModule(FarmError):
    """The task's code needs a module that this machine does not have; another one may."""

    code: ClassVar[str] = "missing_module"

    def __init__(self, message: str, trace: str | None = None) -> None:
        super().__init__(message)
        self.trace = trace


class MissingFile(FarmError):
    """A shard or weights file is gone from the agent's cache; it will be fetched again."""

    code: ClassVar[str] = "missing_file"


@contextmanager
def calling(
    what: str,
    code_dir: Path,
    note: Callable[[BaseException], str] | None = None,
    function: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Run a piece of the researcher's code; ``what`` names it, ``note`` adds to the message.

    ``function`` says where that piece stands, for errors in what it gives back. Raises: CodeError with the
    researcher's file, line and trimmed traceback for anything that it raises, interrupts and exits too; MissingModule
    for a module that this machine lacks. Running out of memory or disk is passed on: another machine may have more.
    """
    try:
        yield
    except (CodeError, MissingModule, MissingFile):
        raise
    except BaseException as error:
        if is_out_of_memory(error) or is_out_of_disk(error):
            raise
        place = _location(error, code_dir) or f"{_definition(function, code_dir)}{what}"
        message = f"{place}: {_one_line(error)}{_advice(error, code_dir)}"
        if note is not None:
            message += note(error)
        kind = MissingModule if _is_missing_module(error, code_dir) else CodeError
        raise kind(message, _trimmed(error, code_dir)) from error


@contextmanager
def blaming(code_dir: Path) -> Iterator[None]:
    """Run the farm's own code, which may call the researcher's at any place: a model's methods can all be theirs.

    Raises: CodeError for what a line of theirs raised; everything else as it is.
    """
    try:
        yield
    except FarmError:
        raise
    except BaseException as error:
        place = _location(error, code_dir)
        if place is None or is_out_of_memory(error) or is_out_of_disk(error):
            raise
        kind = MissingModule if _is_missing_module(error, code_dir) else CodeError
        raise kind(f"{place}: {_one_line(error)}{_advice(error, code_dir)}", _trimmed(error, code_dir)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine ran out of memory, on the GPU or in RAM."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in text_of(error) for words in _MEMORY_WORDS)


def is_out_of_disk(error: BaseException) -> bool:
    """Return whether a write found the disk full. ``safetensors`` and torch wrap the system's error into their own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in text_of(error) for words in _DISK_WORDS)


def as_failed(error: BaseException, assignment_id: str | None) -> Failed:
    """Return the report of a failure, with the scope that says who could succeed instead."""
    code, message, scope, trace = _verdict(error)
    return Failed(
        assignment_id=assignment_id,
        code=code,
        message=sendable(message)[:MAX_MESSAGE_CHARS],
        scope=scope,
        traceback=sendable(trace)[-MAX_TRACEBACK_CHARS:] if trace else None,
        failed_step=error.failed_step if isinstance(error, CodeError) else None,
    )


def sendable(text: str) -> str:
    """Return text that every encoding of Unicode can write: lone surrogates are written as their escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _verdict(error: BaseException) -> tuple[str, str, Scope, str | None]:
    if isinstance(error, CodeError):
        return error.code, error.message, Scope.NOBODY, error.trace
    if isinstance(error, FarmError):
        scope = Scope.HERE if isinstance(error, MissingFile) else Scope.ELSEWHERE
        return error.code, error.message, scope, getattr(error, "trace", None)
    if is_out_of_memory(error):
        return OUT_OF_MEMORY, f"this machine ran out of memory: {_one_line(error)}", Scope.ELSEWHERE, None
    if is_out_of_disk(error):
        return DISK_FULL, f"this machine's disk is full: {_one_line(error)}", Scope.ELSEWHERE, None
    if isinstance(error, FileNotFoundError):
        missing = MissingFile()
        return missing.code, f"{missing.message} ({error.filename})", Scope.HERE, None
    trace = "".join(traceback.format_exception(error))
    return "executor_error", f"the executor failed: {_one_line(error)}", Scope.ELSEWHERE, trace


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in text_of(error).splitlines() if line.strip()]
    text = error.msg if isinstance(error, SyntaxError) else (lines[0] if lines else "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def text_of(error: BaseException) -> str:
    """Return what an error says of itself; an error of the researcher's may fail even at that."""
    try:
        return str(error)
    except Exception as another:
        return f"its text cannot be made ({type(another).__name__})"


def _definition(function: Callable[..., Any] | None, code_dir: Path) -> str:
    """Return where a function of the researcher's is defined, as ``file:line, in ``; empty for one of ours."""
    code = getattr(inspect.unwrap(function) if function is not None else None, "__code__", None)
    if code is None or not _is_researchers(code.co_filename, code_dir):
        return ""
    return f"{_relative(code.co_filename, code_dir)}:{code.co_firstlineno}, in "


def _location(error: BaseException, code_dir: Path) -> str | None:
    """Return ``file:line, in function`` of the innermost frame that is the researcher's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(error.filename, code_dir)}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_researchers(f.filename, code_dir)]
    if not frames:
        return None
    place = f"{_relative(frames[-1].filename, code_dir)}:{frames[-1].lineno}"
    return place if frames[-1].name == "<module>" else f"{place}, in {frames[-1].name}"


def _trimmed(error: BaseException, code_dir: Path) -> str:
    """Format the traceback with only the researcher's frames, by paths inside the bundle: no path of this machine."""
    summary = traceback.TracebackException.from_exception(error)
    own = [frame for frame in summary.stack if _is_researchers(frame.filename, code_dir)]
    for frame in own:
        frame.filename = _relative(frame.filename, code_dir)
    summary.stack = traceback.StackSummary.from_list(own)
    summary.__cause__ = summary.__context__ = None
    if isinstance(error, SyntaxError) and error.filename:
        summary.filename = _relative(error.filename, code_dir)
    return "".join(summary.format())


def _is_researchers(filename: str, code_dir: Path) -> bool:
    return Path(filename).is_relative_to(code_dir)


def _relative(filename: str, code_dir: Path) -> str:
    return str(Path(filename).relative_to(code_dir)) if _is_researchers(filename, code_dir) else filename


def _advice(error: BaseException, code_dir: Path) -> str:
    if isinstance(error, ImportError) and _is_installed_thing(error):
        return (
            "; if the module is Python alone, submit the folder that holds it; one that is compiled (such as "
            "torchvision) has to be installed, here and on the volunteers, who have Python, torch and numpy"
        )
    if isinstance(error, FileNotFoundError) and _is_submitted(error.filename, code_dir):
        return "; it is in the submitted folder, but relative paths begin in that of the entry file"
    if isinstance(error, AttributeError) and error.obj is None and error.name in _OF_LOGGERS:
        return (
            "; if this is a LightningModule's self.logger: it is None on the farm, so use self.log, or log of "
            "farm_client.task, and leave files by on_epoch_end"
        )
    if isinstance(error, SystemExit):
        said = _parsers_word(error)
        return f"; the code must not exit the process{f' (argparse: {said})' if said else ''}"
    return ""


def _is_submitted(name: Any, code_dir: Path) -> bool:
    """Return whether a relative path names a file of the submitted folder."""
    return isinstance(name, str) and not Path(name).is_absolute() and (code_dir / name).exists()


def _is_missing_module(error: BaseException, code_dir: Path) -> bool:
    """Return whether a module is lacking that is not a part of the submitted code."""
    if not isinstance(error, ImportError) or not _is_installed_thing(error):
        return False
    name = (error.name or "").partition(".")[0]
    own = [folder / file for folder in (code_dir, *_entry_folders(code_dir)) for file in (name, f"{name}.py")]
    return not name or not any(path.exists() for path in own)


def _entry_folders(code_dir: Path) -> list[Path]:
    return [Path(entry) for entry in sys.path if _is_researchers(entry, code_dir)]


def _is_installed_thing(error: ImportError) -> bool:
    """Return whether an import failed for want of a module, or of a shared library that one needs."""
    is_library = any(words in text_of(error) for words in ("shared object", "DLL load failed", "undefined symbol"))
    return isinstance(error, ModuleNotFoundError) or is_library


def _parsers_word(error: BaseException) -> str:
    """Return what argparse complained of before it left, which is otherwise on stderr only."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == argparse.__file__ and frame.f_code.co_name == "error":
            return " ".join(str(frame.f_locals.get("message", "")).split())
    return ""
