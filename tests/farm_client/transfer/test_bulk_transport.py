import socket
import threading
from contextlib import suppress

import httpx
import pytest

from farm_client.transfer import bulk_transport as module
from farm_client.transfer.bulk_transport import SHUTDOWN, BulkTransport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"


class Server:
    """Answers each connection's requests with the next of ``answers``; None closes the connection."""

    def __init__(self):
        self.answers = []
        self.requests = []
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while True:
            connection = self.listener.accept()[0]
            self.open.append(connection)
            self.connections += 1
            while head := self._head(connection):
                if head == b"end":
                    return
                self.requests.append(head)
                answer = self.answers.pop(0)
                if answer is None:
                    connection.close()
                    break
                connection.sendall(answer)

    def _head(self, connection):
        head = b""
        while b"\r\n\r\n" not in head and head != b"end":
            if not (chunk := connection.recv(1)):
                return b""
            head += chunk
        return head

    def close(self):
        for connection in self.open:
            with suppress(OSError):  # the client closed it, or the test did
                connection.shutdown(socket.SHUT_RDWR)
        with socket.create_connection(self.listener.getsockname()) as last:
            last.sendall(b"end")
        self.thread.join()
        for connection in self.open:
            connection.close()
        self.listener.close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def client(server):
    timeout = httpx.Timeout(5.0)
    with httpx.Client(base_url=server.url, transport=BulkTransport(), timeout=timeout) as client:
        yield client


def test_a_body_comes_in_chunks_and_the_connection_is_kept(server, client):
    server.answers = [HEAD % 5 + b"hello", HEAD % 2 + b"ok"]
    with client.stream("GET", "/a", headers={"Range": "bytes=0-4"}) as response:
        assert response.headers["content-length"] == "5"
        assert b"".join(response.iter_raw()) == b"hello"
    assert client.get("/b").content == b"ok"
    assert server.connections == 1
    assert b"GET /a HTTP/1.1" in server.requests[0]
    assert b"range: bytes=0-4" in server.requests[0].lower()


def test_a_body_that_is_not_read_to_its_end_takes_its_connection_along(server, client):
    server.answers = [HEAD % 10 + b"hello"]
    with client.stream("GET", "/a") as response:
        assert next(response.iter_raw()) == b"hello"
    server.answers = [HEAD % 2 + b"ok"]
    assert client.get("/b").content == b"ok"
    assert server.connections == 2


def test_a_body_that_is_cut_is_an_error_after_what_came(server, client):
    server.answers = [HEAD % 10 + b"hello"]
    with client.stream("GET", "/a") as response:
        chunks = response.iter_raw()
        assert next(chunks) == b"hello"
        server.open[-1].shutdown(socket.SHUT_RDWR)
        with pytest.raises(httpx.ReadError):
            next(chunks)


def test_a_reader_is_ended_from_another_thread(server, client):
    server.answers = [HEAD % 10 + b"hello"]
    with client.stream("GET", "/a") as response:
        chunks = response.iter_raw()
        next(chunks)
        threading.Thread(target=response.extensions[SHUTDOWN]).start()
        with pytest.raises(httpx.TransportError):
            next(chunks)
    response.extensions[SHUTDOWN]()  # afterwards it does nothing


def test_a_connection_that_the_farm_closed_meanwhile_is_an_error_that_a_try_mends(server, client):
    server.answers = [None]
    with pytest.raises(httpx.TransportError):
        client.get("/a")
    server.answers = [HEAD % 2 + b"ok"]
    assert client.get("/a").content == b"ok"


def test_nobody_there_is_a_connect_error():
    with (
        httpx.Client(transport=BulkTransport(), timeout=5) as client,
        pytest.raises(httpx.ConnectError, match="refused"),
    ):
        client.get("http://127.0.0.1:1/")


def test_a_farm_that_says_nothing_is_a_timeout(server):
    server.answers = [b""]
    with (
        httpx.Client(base_url=server.url, transport=BulkTransport(), timeout=0.1) as client,
        pytest.raises(httpx.ReadTimeout, match="in time"),
    ):
        client.get("/a")


def test_a_proxy_of_the_environment_is_asked_unless_the_host_is_spared(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    server.answers = [HEAD % 2 + b"ok"]
    with httpx.Client(transport=BulkTransport(), timeout=5) as client:
        assert client.get("http://farm.invalid/x").content == b"ok"
    assert b"GET http://farm.invalid/x HTTP/1.1" in server.requests[0]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.answers = [HEAD % 2 + b"ok"] * 2
    with httpx.Client(transport=BulkTransport(), timeout=5) as client:
        client.get(f"{server.url}/y")
    monkeypatch.delenv("no_proxy")
    with httpx.Client(transport=BulkTransport(trust_env=False), timeout=5) as client:
        client.get(f"{server.url}/z")
    assert [request.split()[1] for request in server.requests[1:]] == [b"/y", b"/z"]


def test_certificates_are_read_only_for_what_is_encrypted(monkeypatch):
    trusted = httpx.create_ssl_context()
    monkeypatch.setattr(module.httpx, "create_ssl_context", lambda **_: trusted)
    transport = BulkTransport(trust_env=False)
    assert transport._manager(httpx.URL("http://farm.example/")).connection_pool_kw["ssl_context"] is None
    assert transport._manager(httpx.URL("https://farm.example/")).connection_pool_kw["ssl_context"] is trusted
    transport.close()
