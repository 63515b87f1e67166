"""The same text and model by the inner optimizers of examples/charlm/muloco.py, which the benchmark puts beside it."""

from corpus import make_dataset  # type: ignore[import-not-found]  # only there in the bundle
from muloco import build_model, build_optimizer, loss, train_step  # type: ignore[import-not-found]

__all__ = ["build_model", "build_optimizer", "loss", "make_dataset", "train_step"]
