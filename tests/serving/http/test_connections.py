"""Connections to a real uvicorn: headers that do not end, and how long an idle one is kept."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from serving.http import connections
from training.contract.settings import ServingSettings


async def application(scope, receive, send):
    """Answers what it is sent, once it is whole."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message.get("more_body"):
            break
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(monkeypatch, headers_seconds: float, keep_alive_seconds: float) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr("uvicorn.config.HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    connections.keep(ServingSettings(headers_seconds=headers_seconds, keep_alive_seconds=keep_alive_seconds))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(application, log_config=None, lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(20)


def until_closed(connection: socket.socket) -> tuple[bytes, float]:
    """What comes until the other side closes, and after how many seconds it does."""
    started, received = time.monotonic(), b""
    connection.settimeout(20)
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionError:
            part = b""
        if not part:
            return received, time.monotonic() - started
        received += part


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"POST /rank HTTP/1.1\r\n", b"X: y\r\n"),
        (b"P", b"O"),
        (b"\r\n", b"\r\n"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 1000, b"y"),
    ],
)
def test_headers_that_do_not_end_are_not_waited_for(monkeypatch, begun, more):
    with serving(monkeypatch, 0.5, 60.0) as address, socket.create_connection(address) as slow:
        slow.sendall(begun)
        time.sleep(0.2)
        slow.sendall(more)  # something now and then does not help
        received, seconds = until_closed(slow)
        assert received.startswith(b"HTTP/1.1 408 ") and b"serving.headers_seconds" in received
        assert seconds < 5.0


def test_headers_without_measure_are_refused(monkeypatch):
    with serving(monkeypatch, 30.0, 60.0) as address, socket.create_connection(address) as large:
        large.sendall(b"GET / HTTP/1.1\r\n")
        try:
            for _ in range(40):
                large.sendall(b"X: " + b"y" * 8_000 + b"\r\n")
        except ConnectionError:
            pass
        _, seconds = until_closed(large)
        assert seconds < 20.0


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_an_idle_connection_is_kept_for_as_long_as_is_set_and_no_longer(monkeypatch, begun):
    with serving(monkeypatch, 0.2, 1.5) as address, socket.create_connection(address) as idle:
        idle.sendall(begun)
        received, seconds = until_closed(idle)
        assert received.startswith(b"HTTP/1.1 200") or not begun
        assert 1.0 < seconds < 10.0


def test_by_default_a_balancer_that_keeps_a_connection_for_a_minute_closes_it_first(monkeypatch):
    default = ServingSettings()
    assert default.keep_alive_seconds > 60.0
    with (
        serving(monkeypatch, 0.3, default.keep_alive_seconds) as address,
        socket.create_connection(address) as kept,
    ):
        kept.settimeout(10)
        for pause in (6.0, 0.0):  # uvicorn's own five, and more
            kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert kept.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(pause)


def test_many_requests_and_slow_bodies_on_one_connection_are_answered(monkeypatch):
    with serving(monkeypatch, 0.3, 60.0) as address, socket.create_connection(address) as kept:
        kept.settimeout(10)
        for size in (3, 70_000, 0, 5):
            head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
            kept.sendall(head)
            if size == 5:
                time.sleep(0.6)  # longer than headers may take: a body has its own time
            kept.sendall(b"x" * size)
            answer = b""
            while not answer.endswith(b"\r\n\r\n" + b"x" * size):
                answer += kept.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
