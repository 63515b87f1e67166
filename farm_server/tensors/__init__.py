"""Everything that reads or makes tensors: checks of updates, folding, outer steps, and new versions of weights.

It may import the environment and observability; only `torch_side` and what it loads may import torch.
"""
