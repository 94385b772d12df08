"""How long may a connection take, and how long is it kept open?

uvicorn, which carries HTTP for BentoML, waits for ever for the end of a request's headers, and closes a
kept-alive connection after 5 s: a balancer in front that keeps it for 60 s then now and then sends a request
into a connection that is just being closed. :func:`keep` puts this in the place of uvicorn's own.
"""

import asyncio
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from training.contract.settings import ServingSettings

MAXIMUM_HEADERS = 64 * 1024  # bytes before a request's body


class Connection(HttpToolsProtocol):
    """Closed when it is idle for ``keep_alive_s``, or when the headers of a request take longer than
    ``headers_s`` from their first byte, or are too large."""

    keep_alive_s, headers_s = 75.0, 10.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.timeout_keep_alive = self.keep_alive_s  # type: ignore[assignment]  # seconds, whole or not
        self._deadline: asyncio.TimerHandle | None = None
        self._received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn sets it after a request only: one that never sends a byte would stay
        self.timeout_keep_alive_task = self.loop.call_later(
            self.keep_alive_s, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # its headers are here
            self._answering()
            return
        self._received += len(data)
        if self._received > MAXIMUM_HEADERS:
            self._refuse(b"431 Request Header Fields Too Large", f"over {MAXIMUM_HEADERS} bytes")
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.headers_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._answering()
        super().connection_lost(exc)

    def _answering(self) -> None:
        self._received = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._refuse(
            b"408 Request Timeout", f"not whole within {self.headers_s:g} s (serving.headers_seconds)"
        )

    def _refuse(self, status: bytes, reason: str) -> None:
        if self.transport.is_closing():
            return
        body = b'{"error":"the headers were %s"}' % reason.encode()
        head = [
            b"HTTP/1.1 %b" % status,
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        self.transport.write(b"\r\n".join([*head, b"", body]))
        self.transport.close()


def keep(serving: ServingSettings) -> None:
    """Let every uvicorn server of this process that is started from now on carry its connections so."""
    Connection.keep_alive_s, Connection.headers_s = serving.keep_alive_seconds, serving.headers_seconds
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
