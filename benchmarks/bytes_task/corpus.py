"""The model of examples/charlm on a text that every CPython brings along: the topics of its ``help()``.

The benchmark puts the example's ``train.py`` beside this file. No client has to fetch the text, so that all bytes on
the wire are the training's. ``config`` is the example's.
"""

import pydoc_data.topics

import torch
from train import build_model, build_optimizer, loss  # type: ignore[import-not-found]  # only there in the bundle

__all__ = ["build_model", "build_optimizer", "loss", "make_dataset"]


class Rows:
    """A text, cut into rows of ``row_bytes``: {"text": uint8 [row_bytes]}; what is left over at its end is dropped."""

    def __init__(self, text: str, row_bytes: int) -> None:
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        self.rows = data[: len(data) // row_bytes * row_bytes].view(-1, row_bytes)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one row."""
        return {"text": self.rows[index]}


def make_dataset(config: dict[str, int]) -> Rows:
    """Return the topics, in the order of their names, in rows of the model's context and the next byte."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return Rows("\n\n".join(topics[name] for name in sorted(topics)), config["context"] + 1)
