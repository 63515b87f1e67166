"""A task's code as a module, imported from where its file lies."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from benchmarks.farm import BenchmarkError


def import_task(file: Path, name: str) -> ModuleType:
    """Import a task's file under a name that is nobody else's. Raises: BenchmarkError if it is no module."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BenchmarkError(f"{file} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
