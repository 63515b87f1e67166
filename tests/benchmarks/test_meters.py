"""The meters read what the kernel counts."""

from __future__ import annotations

import math
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from benchmarks import meters
from farm_client.sdk.config import FarmAddress


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


PAGE = """\
# TYPE farm_wire_bytes_total counter
farm_wire_bytes_total{direction="in"} 100.0
farm_wire_bytes_total{direction="out"} 20.0
farm_blob_bytes_total{direction="in"} 3e+06
farm_blob_bytes_total{direction="out"} 5.0
farm_compute_seconds_total 1.5
farm_rounds_committed_total 7.0
"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, *_):
        pass


def test_the_servers_counters_are_read_and_compared():
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = FarmAddress(f"http://127.0.0.1:{server.server_port}", None, "a test")
        count = meters.server_count(address)
    assert count == meters.ServerCount(up_bytes=3_000_100, down_bytes=25, compute_seconds=1.5, rounds=7)
    assert count - count == meters.ServerCount(0, 0, 0.0, 0)


def test_a_quantile_lies_evenly_between_two_bounds_and_needs_looks():
    before = meters.LoopLag({0.01: 5.0, 0.02: 5.0, math.inf: 5.0})
    after = meters.LoopLag({0.01: 55.0, 0.02: 105.0, math.inf: 105.0})
    assert (after - before).quantile(0.5) == pytest.approx(0.01)
    assert (after - before).quantile(0.75) == pytest.approx(0.015)
    assert math.isnan((before - before).quantile(0.99))


def test_what_lies_beyond_the_last_bound_counts_as_the_last_bound():
    late = meters.LoopLag({0.01: 1.0, math.inf: 100.0})
    assert late.quantile(0.99) == 0.01
    assert (late + late).counts == {0.01: 2.0, math.inf: 200.0}
