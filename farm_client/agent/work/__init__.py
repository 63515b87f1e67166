"""Assignments on this machine: whether to take one, doing it, reporting progress, and delivering its result.

It may import every other room; only the daemon may import it.
"""
