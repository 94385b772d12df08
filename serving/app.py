"""HTTP in front of the engine: routes, size limit, token, and an answer for every error."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable

import orjson
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serving.decision_log import LogError
from serving.messages import RequestError
from serving.openapi import document
from training.contract.settings import Settings

_log = structlog.get_logger("mtf.serving.app")
_BODY_SECONDS = 10.0  # a body that takes longer to arrive is given up
_JSON = "application/json"
_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


def create_app(settings: Settings) -> Starlette:
    """The routes, without an engine: the worker sets ``app.state.engine`` and ``app.state.token``."""
    limit = settings.serving.max_body_bytes

    async def rank(request: Request) -> bytes:
        return await request.app.state.engine.rank(await _body(request, limit))

    async def feedback(request: Request) -> bytes:
        _authorise(request)
        return await request.app.state.engine.feedback(await _body(request, limit))

    async def status(request: Request) -> bytes:
        return orjson.dumps(request.app.state.engine.status())

    async def openapi(request: Request) -> bytes:
        return orjson.dumps(document(settings))

    async def metrics(request: Request) -> Response:
        from serving import metrics as worker_metrics  # only a worker may import it

        content = await asyncio.to_thread(worker_metrics.exposition)
        return Response(content, media_type=worker_metrics.content_type)

    return Starlette(
        routes=[
            Route("/rank", _answer("/rank", rank), methods=["POST"]),
            Route("/feedback", _answer("/feedback", feedback), methods=["POST"]),
            Route("/status", _answer("/status", status), methods=["GET"]),
            Route("/docs.json", _answer("/docs.json", openapi), methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_exception},
    )


def _answer(
    endpoint: str, handle: Callable[[Request], Awaitable[bytes]]
) -> Callable[[Request], Awaitable[Response]]:
    """Turn a handler's errors into JSON answers, and count and time every request."""

    async def answer(request: Request) -> Response:
        from serving import metrics

        started = time.perf_counter()
        status, headers = 200, _HEADERS
        try:
            content = await handle(request)
        except RequestError as error:
            status, content = error.status, _error(str(error))
            if status == 401:
                headers = {**_HEADERS, "www-authenticate": "Bearer"}
        except LogError as error:
            status, content = 503, _error(str(error))
            headers = {**_HEADERS, "retry-after": "1"}
            metrics.log_errors.labels(endpoint).inc()
            _log.error("not logged, so not served", endpoint=endpoint, reason=str(error))
        except ClientDisconnect:
            status, content = 499, b""  # nobody reads it
        except Exception:
            status, content = 500, _error("internal error; see the service's log")
            _log.exception("request failed", endpoint=endpoint)
        metrics.http_requests.labels(endpoint, status).inc()
        metrics.http_seconds.labels(endpoint).observe(time.perf_counter() - started)
        return Response(content, status, headers, media_type=_JSON)

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


def _authorise(request: Request) -> None:
    given = request.headers.get("authorization", "").encode()
    expected = f"Bearer {request.app.state.token}".encode()
    if not hmac.compare_digest(given, expected):
        raise RequestError("this needs the header `Authorization: Bearer <token>` with $MTF_TOKEN", 401)


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message})


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(_error(error.detail), error.status_code, {**_HEADERS, **(error.headers or {})}, _JSON)
