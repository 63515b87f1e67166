"""Measurements of the whole farm, each beside the simplest program that moves the same bytes.

``python -m benchmarks --help`` lists them; docs/benchmarks.md keeps their results. The farm is real processes on
loopback, and the output is JSON lines on stdout with chatter on stderr.
"""
