"""A plugin of coverage's, for what is measured of many processes and threads.

No line is traced while another's package is imported: of those nothing is measured anyway, but each call and each
return asks whether it is, 1.2 s of CPU for torch in every server and executor that a test starts.

And a thread may take the lock of the figures again that it holds. Objects end while it is held; a weak reference's
callback is traced then, on the same thread. Two runs of the suite hung in such a callback, and so did the handler of
their time limit.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

from coverage.collector import Collector

OURS: Final = frozenset({"protocol", "coordinator", "storage", "farm_server", "farm_client", "tests", "benchmarks"})


class _Untraced(Loader):
    """Loads as the loader that it stands for, and traces nothing meanwhile."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            self._loader.exec_module(module)
        finally:
            sys.settrace(tracer)


class _Finder(MetaPathFinder):
    """Finds what the finders after it find, for whole packages of others."""

    def __init__(self) -> None:
        self._looking_for = ""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is not None or name in OURS or name == self._looking_for or sys.gettrace() is None:
            return None
        before, self._looking_for = self._looking_for, name
        try:
            spec = find_spec(name)
        finally:
            self._looking_for = before
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
            spec.loader = _Untraced(spec.loader)
        return spec


def coverage_init(_registry: object, _options: object) -> None:
    """Be there before the first import; coverage calls this as it starts, before it makes its collector."""
    sys.meta_path.insert(0, _Finder())
    Collector.reset = _with_a_lock_to_take_twice(Collector.reset)  # type: ignore[method-assign]


def _with_a_lock_to_take_twice(reset: Callable[[Collector], None]) -> Callable[[Collector], None]:
    def reset_and_replace(self: Collector) -> None:
        reset(self)
        if self.data_lock is not None:
            self.data_lock = threading.RLock()

    return reset_and_replace
