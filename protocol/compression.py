"""The codecs' names and parameters; ``protocol.codecs`` implements them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from protocol.frozen import Frozen


class CodecName(StrEnum):
    """Every codec, by the name that recipes and file headers use."""

    NONE = "none"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    SIGN = "sign"
    TOPK = "topk"
    SPARSELOCO = "sparseloco"
    DEMO = "demo"
    POWERSGD = "powersgd"
    PULSE = "pulse"


SPARSE_CODECS: Final = frozenset({CodecName.TOPK, CodecName.SPARSELOCO, CodecName.DEMO})
"""Those that send few elements, or few coefficients of a transform: which ones differs from client to client."""


LOSSLESS: Final = frozenset({CodecName.NONE, CodecName.PULSE})
"""Those that leave every bit as it is: versions in them need no exact copy beside the published one."""
OF_VERSIONS: Final = frozenset({CodecName.PULSE})
"""Those that say how one version follows from another, and can't say an update."""
OF_UPDATES: Final = tuple(name for name in CodecName if name not in OF_VERSIONS)
"""All others: those that an update may be in."""


class CodecSpec(Frozen):
    """A codec with its settings; each codec reads those that concern it."""

    name: CodecName = CodecName.NONE
    error_feedback: bool = True
    """Lossy codecs: what one update loses is added to the next one before it is encoded."""
    block: int = Field(default=256, ge=16, le=65536)
    """int8, int4, sign: elements that share a scale."""
    density: float = Field(default=1 / 64, gt=0, le=1)
    """topk, sparseloco, demo: the fraction of the elements (or of the coefficients) that is sent."""
    rank: int = Field(default=4, ge=1, le=1024)
    """powersgd: the rank of the approximation."""
    zstd: bool = True
    """Compress the file as well, where that makes it at least a twentieth smaller."""
