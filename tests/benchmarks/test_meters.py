"""The meters read what the kernel counts."""

from __future__ import annotations

import os
import socket

import psutil

from benchmarks import meters


def test_peak_memory_is_at_least_the_present_one():
    assert meters.peak_rss_bytes(os.getpid()) >= psutil.Process().memory_info().rss * 0.9


def test_loopback_bytes_grow_by_what_is_sent():
    before = meters.loopback_bytes()
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as sender, listener.accept()[0] as receiver:
        sender.sendall(b"x" * 10_000)
        assert len(receiver.recv(10_000, socket.MSG_WAITALL)) == 10_000
    assert meters.loopback_bytes() - before >= 10_000


def test_the_machine_is_described():
    machine = meters.describe_machine()
    assert machine["cpus"] == os.cpu_count()
    assert machine["ram_bytes"] > 0
