"""What computes with tensors: aggregates and the outer optimizer. The rules beside it decide, and import none of it."""
