from dataclasses import dataclass
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class Weights:
    url: str
    transforms: Any
    meta: dict[str, Any]

    __hash__ = object.__hash__


class WeightsEnum(Enum):
    @classmethod
    def verify(cls, weights):
        if weights is not None:
            raise ValueError("no weights can be downloaded here")


def register_model():
    return lambda function: function
