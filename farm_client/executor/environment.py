"""The environment of an executor: an allow-list, so that nothing of the volunteer's secrets is inherited.

Once it has a task, also the folder in which relative paths begin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_ALLOWED: Final = frozenset({"PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "SYSTEMROOT"})
_ALLOWED_PREFIXES: Final = ("LC_", "CUDA_", "NVIDIA_")
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
HEAP_VARIABLES: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
"""For glibc (mallopt(3)), by bytes: what a step freed is there for the next one, which else gets it page by page from
the system, zeroed. Larger blocks than the first still go back at once; of smaller ones so much is kept as the second
says, until the executor has nothing to do (``heap.py``)."""
_CACHE_VARIABLES: Final = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME")
_FIXED: Final = {
    "USER": "farm",  # inside a sandbox nobody else has a name
    "LOGNAME": "farm",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # idle threads that spin slow small models several times on a busy machine
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # torch numbers the GPUs as NVML does
}


def executor_environment(
    scratch_dir: Path, cpu_cores: int, inherited: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return an executor's whole environment: what may pass, its threads and heap, and scratch for every cache."""
    passed = {name: value for name, value in inherited.items() if _may_pass(name)}
    folders = dict.fromkeys(_CACHE_VARIABLES, str(scratch_dir))
    threads = dict.fromkeys(_THREAD_VARIABLES, str(cpu_cores))
    return passed | threads | folders | HEAP_VARIABLES | _FIXED


def work_beside(code_dir: str, entry: str) -> None:
    """Make the folder of the task's entry file that of this process, as where one runs ``python train.py`` at home.

    It is this executor's own copy of the submitted files: relative paths lead to them, and what is written there is
    deleted with the executor.
    """
    os.chdir((Path(code_dir) / entry).parent)


def _may_pass(name: str) -> bool:
    return name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
