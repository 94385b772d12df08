"""HTTP in front of the engine: routes, limits, token, and an answer for every error.

Every answer carries ``X-Request-ID``: the caller's own when it sent a sane one, else a new one. The
service's log names a failed request by it.
"""

import asyncio
import hmac
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable

import orjson
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serving.decision_log import LogError
from serving.messages import BINARY, JSON, RequestError
from serving.openapi import document
from serving.rate_limit import RateLimit
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.app")
_BODY_SECONDS = 10.0  # a body that takes longer to arrive is given up
_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
REQUEST_ID = "x-request-id"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,200}")

Content = tuple[bytes, str]  # an answer's bytes and their media type


def create_app(settings: Settings) -> Starlette:
    """The routes, without an engine: the worker sets ``app.state.engine`` and ``app.state.token``."""
    serving = settings.serving
    limit = serving.max_body_bytes
    callers = None if serving.rate_limit is None else RateLimit(serving.rate_limit, serving.rate_burst)

    def admit(request: Request) -> None:
        wait = callers.take(request.client.host if request.client else "") if callers else 0.0
        if wait:
            raise RequestError(
                f"more than {serving.rate_limit:g} requests a second from this address (serving.rate_limit)",
                429,
                {"retry-after": str(math.ceil(wait))},
            )

    async def rank(request: Request) -> Content:
        admit(request)
        sent = _media_type(request, (JSON, BINARY))
        wanted = BINARY if BINARY in request.headers.get("accept", "") else JSON
        return await request.app.state.engine.rank(await _body(request, limit), sent, wanted), wanted

    async def feedback(request: Request) -> Content:
        admit(request)
        _authorise(request)
        _media_type(request, (JSON,))
        return await request.app.state.engine.feedback(await _body(request, limit)), JSON

    async def status(request: Request) -> Content:
        return orjson.dumps(request.app.state.engine.status()), JSON

    async def openapi(request: Request) -> Content:
        return orjson.dumps(document(settings)), JSON

    async def metrics(request: Request) -> Content:
        from serving import metrics as worker_metrics  # only a worker may import it

        return await asyncio.to_thread(worker_metrics.exposition), worker_metrics.content_type

    return Starlette(
        routes=[
            Route("/rank", _answer("/rank", rank), methods=["POST"]),
            Route("/feedback", _answer("/feedback", feedback), methods=["POST"]),
            Route("/status", _answer("/status", status), methods=["GET"]),
            Route("/docs.json", _answer("/docs.json", openapi), methods=["GET"]),
            Route("/metrics", _answer("/metrics", metrics), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_exception},
    )


def _answer(
    endpoint: str, handle: Callable[[Request], Awaitable[Content]]
) -> Callable[[Request], Awaitable[Response]]:
    """Turn a handler's errors into JSON answers, and count and time every request."""

    async def answer(request: Request) -> Response:
        from serving import metrics

        started = time.perf_counter()
        status, media_type = 200, JSON
        headers = _HEADERS | {REQUEST_ID: _request_id(request)}
        try:
            content, media_type = await handle(request)
        except RequestError as error:
            status, content = error.status, _error(str(error))
            headers |= error.headers
        except LogError as error:
            status, content = 503, _error(str(error))
            headers["retry-after"] = "1"
            metrics.log_errors.labels(endpoint).inc()
            _log.error(
                "not logged, so not served",
                endpoint=endpoint,
                request=headers[REQUEST_ID],
                reason=str(error),
            )
        except ClientDisconnect:
            status, content = 499, b""  # nobody reads it
        except Exception:
            status, content = 500, _error("internal error; see the service's log")
            _log.exception("request failed", endpoint=endpoint, request=headers[REQUEST_ID])
        metrics.http_requests.labels(endpoint, status).inc()
        metrics.http_seconds.labels(endpoint).observe(time.perf_counter() - started)
        return Response(content, status, headers, media_type=media_type)

    return answer


async def _body(request: Request, limit: int) -> bytes:
    """The whole body, never holding more than ``limit`` bytes of it."""
    too_large = RequestError(f"the body is larger than {limit} bytes (serving.max_body_bytes)", 413)
    length = request.headers.get("content-length")
    if length is not None and (not length.isdigit() or int(length) > limit):
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError as error:
        raise RequestError(f"the body did not arrive within {_BODY_SECONDS:g} s", 408) from error
    return b"".join(chunks)


def _media_type(request: Request, taken: tuple[str, ...]) -> str:
    """The body's media type; one that is not named is JSON. Others, and compressed bodies, are refused."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise RequestError("a compressed body is not taken: send it without Content-Encoding", 415)
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if media_type not in taken:
        raise RequestError(f"Content-Type must be {' or '.join(taken)}", 415)
    return media_type


def _authorise(request: Request) -> None:
    given = request.headers.get("authorization", "").encode()
    expected = f"Bearer {request.app.state.token}".encode()
    if not hmac.compare_digest(given, expected):
        raise RequestError(
            "this needs the header `Authorization: Bearer <token>` with $MTF_TOKEN",
            401,
            {"www-authenticate": "Bearer"},
        )


def _request_id(request: Request) -> str:
    given = request.headers.get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = _HEADERS | {REQUEST_ID: _request_id(request)} | dict(error.headers or {})
    return Response(_error(error.detail), error.status_code, headers, JSON)
