"""torch.compile, where the recipe asks for it and the machine has a compiler."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from farm_client.executor.means import remark

_COMPILERS = ("torch._dynamo", "torch._inductor")


def has_failed(error: BaseException) -> bool:
    """Return whether an error comes from compiling a model, not from running it."""
    return any(type(cause).__module__.startswith(_COMPILERS) for cause in _causes(error))


def forgo() -> None:
    """Run compiled models as they are written, from now on."""
    torch.compiler.set_stance("force_eager")
    remark("the model can't be compiled on this machine: it runs as it is written")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
