"""Waiting for what another process does: looked at again and again, because nothing announces it."""

import asyncio

import psutil


async def until(condition, longest_seconds=30.0):
    """Return the condition's first true value. Raises: TimeoutError."""
    async with asyncio.timeout(longest_seconds):
        while not (value := condition()):  # noqa: ASYNC110  no event tells of another process
            await asyncio.sleep(0.01)
        return value


async def gone(pid, longest_seconds=30.0):
    """Wait until a process has ended. Raises: TimeoutError."""
    await until(lambda: not psutil.pid_exists(pid), longest_seconds)
