"""HTTP in front of the engine: routes, limits, token, and an answer for every error.

Every answer carries ``X-Request-ID``: the caller's own when it sent a sane one, else a new one. The
service's log names a failed request by it.

An endpoint is an ASGI application of its own, which reads the body and sends the answer itself. Starlette
routes to them; ``/rank`` is also reached past it (:class:`Outermost`), because what a framework does around a
request takes longer than reading its 6,000 numbers.
"""

import asyncio
import hmac
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any

import orjson
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.openapi import document
from serving.http.page import POLICY, page
from serving.http.rate_limit import RateLimit
from serving.http.requests import BINARY, JSON, RequestError, new_id
from serving.log.day_files import LogError
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.app")
REQUEST_SECONDS = 10.0  # a body that takes longer to arrive is given up, and so is an answer
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_PAGE_HEADERS = ((b"content-security-policy", POLICY.encode()),)
HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"
_NO_HEADERS: Mapping[str, str] = {}
REQUEST_ID = b"x-request-id"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,200}")
_SANE_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,260}")

Content = tuple[bytes, str]  # an answer's bytes and their media type


class Call:
    """One HTTP request as the server hands it over; its body may not have come yet."""

    __slots__ = ("_headers", "_receive", "arrived", "client", "request_id")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # of two, the first
        self._receive = receive
        client = scope.get("client")
        self.client: str = client[0] if client else ""
        given = self.header(REQUEST_ID)
        self.request_id = given if _SANE_ID.fullmatch(given) else new_id()
        self.arrived = False  # the body, whole

    def header(self, name: bytes, default: str = "") -> str:
        value = self._headers.get(name)
        return default if value is None else value.decode("latin-1")

    async def body(self, limit: int) -> bytes:
        """The whole body, never holding more than ``limit`` bytes of it."""
        too_large = f"the body is larger than {limit} bytes (serving.max_body_bytes)"
        length = self.header(b"content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise RequestError(too_large, 413)
        chunks: list[bytes] = []
        size = 0
        while not self.arrived:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise RequestError(too_large, 413)
            self.arrived = not message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


Handler = Callable[[Call], Awaitable[Content]]


class Endpoint:
    """An ASGI application that turns a handler's errors into JSON answers, and counts and times every one."""

    def __init__(self, path: str, handle: Handler) -> None:
        self._path, self._handle = path, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        call = Call(scope, receive)
        status, media_type, headers = 200, JSON, _NO_HEADERS
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                content, media_type = await self._handle(call)
        except RequestError as error:
            status, content, headers = error.status, _error(str(error)), error.headers
        except LogError as error:
            status, content, headers = 503, _error(str(error)), {"retry-after": "1"}
            _metrics().log_errors.labels(self._path).inc()
            _log.error(
                "not logged, so not served", endpoint=self._path, request=call.request_id, reason=str(error)
            )
        except TimeoutError:
            what, status = ("an answer", 504) if call.arrived else ("the body", 408)
            content = _error(f"{what} did not arrive within {REQUEST_SECONDS:g} s")
        except ClientDisconnect:
            status, content = 499, b""  # nobody reads it
        except Exception:
            status, content = 500, _error("internal error; see the service's log")
            _log.exception("request failed", endpoint=self._path, request=call.request_id)
        requests, seconds = _counted(self._path, status)
        requests.inc()
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *_HEADERS,
                    *(_PAGE_HEADERS if media_type == HTML else ()),
                    (REQUEST_ID, call.request_id.encode()),
                    (b"content-length", b"%d" % len(content)),
                    (b"content-type", media_type.encode()),
                    *((name.encode(), value.encode()) for name, value in headers.items()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": content})
        seconds.observe(time.perf_counter() - started)


class Outermost:
    """ASGI middleware of the whole service: every request is ours, and ``/rank`` goes to its endpoint.

    BentoML puts a service's own middlewares behind its time-out and tracing, and has pages of its own, which
    ask other people's servers for parts. So when the server starts, this one takes the place in front of
    them, and only starting and ending are left to it; :class:`Endpoint` has a time-out of its own.
    """

    def __init__(self, app: ASGIApp, ours: Starlette) -> None:
        self._app, self._ours, self._rank = app, ours, ours.state.rank

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            whole = scope["app"]
            whole.middleware_stack = Outermost(whole.middleware_stack, self._ours)
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/rank" and scope["method"] == "POST":
            await self._rank(scope, receive, send)
        else:
            await self._ours(scope, receive, send)


def create_app(settings: Settings) -> Starlette:
    """The routes, without an engine: the worker sets ``app.state.engine`` and ``app.state.token``.

    ``app.state.rank`` is the endpoint of ``/rank``.
    """
    serving = settings.serving
    limit = serving.max_body_bytes
    callers = None if serving.rate_limit is None else RateLimit(serving.rate_limit, serving.rate_burst)

    def admit(call: Call) -> None:
        wait = callers.take(call.client) if callers else 0.0
        if wait:
            raise RequestError(
                f"more than {serving.rate_limit:g} requests a second from this address (serving.rate_limit)",
                429,
                {"retry-after": str(math.ceil(wait))},
            )

    async def rank(call: Call) -> Content:
        admit(call)
        sent = _media_type(call, (JSON, BINARY))
        state.engine.admit()
        wanted = BINARY if BINARY in call.header(b"accept") else JSON
        return await state.engine.rank(await call.body(limit), sent, wanted), wanted

    async def feedback(call: Call) -> Content:
        admit(call)
        _authorise(call, state.token)
        _media_type(call, (JSON,))
        return await state.engine.feedback(await call.body(limit)), JSON

    async def status(call: Call) -> Content:
        return orjson.dumps(state.engine.status()), JSON

    async def live(call: Call) -> Content:
        return b"live\n", TEXT

    async def ready(call: Call) -> Content:
        reason = state.engine.unready
        if reason is not None:
            raise RequestError(f"not ready: {reason}", 503, {"retry-after": "1"})
        return b"ready\n", TEXT

    async def openapi(call: Call) -> Content:
        return orjson.dumps(document(settings)), JSON

    async def index(call: Call) -> Content:
        engine, host = state.engine, call.header(b"host")
        address = f"http://{host if _SANE_HOST.fullmatch(host) else f'{serving.host}:{serving.port}'}"
        return page(document(settings), engine.status(), engine.unready, address), HTML

    async def metrics(call: Call) -> Content:
        return await asyncio.to_thread(_metrics().exposition), _metrics().content_type

    rank_first = Endpoint("/rank", rank)
    app = Starlette(
        routes=[
            Route("/rank", rank_first, methods=["POST"]),
            Route("/feedback", Endpoint("/feedback", feedback), methods=["POST"]),
            Route("/status", Endpoint("/status", status), methods=["GET"]),
            Route("/docs.json", Endpoint("/docs.json", openapi), methods=["GET"]),
            Route("/metrics", Endpoint("/metrics", metrics), methods=["GET"]),
            Route("/livez", Endpoint("/livez", live), methods=["GET"]),
            Route("/healthz", Endpoint("/healthz", live), methods=["GET"]),
            Route("/readyz", Endpoint("/readyz", ready), methods=["GET"]),
            Route("/", Endpoint("/", index), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_exception},
    )
    state = app.state
    state.rank = rank_first
    return app


@cache
def _metrics() -> Any:
    """The worker's metrics, which only a worker may import."""
    from serving.control import metrics

    return metrics


@cache
def _counted(endpoint: str, status: int) -> tuple[Any, Any]:
    """Where an endpoint's answers are counted and timed: looking a label up takes as long as counting."""
    return _metrics().http_requests.labels(endpoint, status), _metrics().http_seconds.labels(endpoint)


def _media_type(call: Call, taken: tuple[str, ...]) -> str:
    """The body's media type; one that is not named is JSON. Others, and compressed bodies, are refused."""
    if call.header(b"content-encoding", "identity").strip().lower() != "identity":
        raise RequestError("a compressed body is not taken: send it without Content-Encoding", 415)
    media_type = call.header(b"content-type", JSON).partition(";")[0].strip().lower()
    if media_type not in taken:
        raise RequestError(f"Content-Type must be {' or '.join(taken)}", 415)
    return media_type


def _authorise(call: Call, token: str) -> None:
    given = call.header(b"authorization").encode()
    if not hmac.compare_digest(given, f"Bearer {token}".encode()):
        raise RequestError(
            "this needs the header `Authorization: Bearer <token>` with $MTF_TOKEN",
            401,
            {"www-authenticate": "Bearer"},
        )


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    call = Call(request.scope, request.receive)
    ours = (*_HEADERS, (REQUEST_ID, call.request_id.encode()))
    headers = {name.decode(): value.decode() for name, value in ours} | dict(error.headers or {})
    return Response(_error(error.detail), error.status_code, headers, JSON)
