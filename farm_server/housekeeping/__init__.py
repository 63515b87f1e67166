"""What is removed when it is too old or too much: histories, superseded checkpoints, and unreferenced blobs.

It may import the environment and observability.
"""
