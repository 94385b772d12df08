"""A small typed client of the service, sync and async, over kept-alive connections.

With ``settings`` a ranker is never left without an order: when the service is down, too slow, refuses
for its load or fails, ``rank`` orders by static weights on the spot and says so
(:attr:`Ranking.fallback` is :data:`SERVICE`). Such a ranking is in no log, and feedback on it is lost.
"""

import uuid
from asyncio import timeout as deadline_of
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx
import numpy as np
import orjson
import structlog

from serving.http.messages import BINARY, JSON, decode_answer_binary, encode_rank_binary
from serving.ranking import arms
from serving.ranking.ranker import top
from training.contract.errors import MtfError
from training.contract.log import STATIC_VERSION
from training.contract.settings import Settings

SERVICE = "service"  # Ranking.fallback: the service gave no answer, the client ranked by static weights

_log = structlog.get_logger("mtf.serving.client")


class ServiceError(MtfError):
    """The service refused, or could not be reached; ``status`` is its HTTP status, or None."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_outage(self) -> bool:
        """Whether the service is at fault, and not what it was sent."""
        return self.status is None or self.status in (408, 429) or self.status >= 500


@dataclass(frozen=True)
class Ranking:
    """``items`` best first with their ``scores``; ``weights`` by head; ``fallback`` or None."""

    request_id: str
    session_id: str
    items: list[int]
    scores: list[float]
    weights: dict[str, float]
    policy_version: str
    arm: str
    fallback: str | None


@dataclass(frozen=True)
class _Rank:
    """One ranking to ask for, or to make up for."""

    items: Sequence[int] | np.ndarray
    scores: Mapping[str, Sequence[float] | np.ndarray]
    fields: dict[str, Any]

    def content(self, binary: bool) -> bytes:
        if binary:
            scores = {name: np.asarray(column) for name, column in self.scores.items()}
            return encode_rank_binary(self.fields, np.asarray(self.items), scores)
        candidates = {"item_id": self.items, "scores": dict(self.scores)}
        return _json(self.fields | {"candidates": candidates})

    def by_static_weights(self, settings: Settings) -> Ranking:
        """Raises :class:`DataError` for scores that the service would have refused."""
        fusion = settings.fusion
        items = np.asarray(self.items, dtype=np.int64)
        weights = fusion.to_weights(fusion.static_action)
        scores = fusion.score(fusion.matrix(self.scores, len(items)), weights)
        shown = top(scores, min(self.fields.get("k", settings.serving.default_k), len(items)))
        return Ranking(
            request_id=self.fields.get("request_id", uuid.uuid4().hex),
            session_id=self.fields.get("session_id", ""),
            items=items[shown].tolist(),
            scores=scores[shown].tolist(),
            weights=dict(zip(fusion.names, weights.tolist(), strict=True)),
            policy_version=STATIC_VERSION,
            arm=arms.STATIC,
            fallback=SERVICE,
        )


class _Caller:
    """What both clients share: how a call is put, and how its answer is read."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 5.0,
        connections: int = 32,
        *,
        settings: Settings | None = None,
        binary: bool = False,
    ) -> None:
        self._url, self._token, self._timeout = url, token, timeout
        self._settings, self._binary = settings, binary
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._options: dict[str, Any] = {"base_url": url, "timeout": timeout, "limits": limits}

    def _headers(self, path: str) -> dict[str, str]:
        media_type = BINARY if self._binary and path == "/rank" else JSON
        headers = {"content-type": media_type, "accept": media_type}
        if self._token is not None and path == "/feedback":
            headers["authorization"] = f"Bearer {self._token}"
        return headers

    def _made_up(self, asked: _Rank, error: ServiceError) -> Ranking:
        if self._settings is None or not error.is_outage:
            raise error
        _log.warning("ranked by static weights", status=error.status, reason=str(error)[:300])
        return asked.by_static_weights(self._settings)

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            if response.headers.get("content-type") == BINARY:
                answer = decode_answer_binary(response.content)
            else:
                answer = orjson.loads(response.content)
        except ValueError as error:
            raise ServiceError(f"{response.url}: {response.text[:200]!r}", response.status_code) from error
        if response.status_code != 200:
            reason = answer.get("error") if isinstance(answer, dict) else answer
            raise ServiceError(f"{response.url}: {reason}", response.status_code)
        return answer

    def _unreached(self, error: Exception) -> ServiceError:
        return ServiceError(f"{self._url}: {error!r}")


class Client(_Caller):
    """Thread-safe. Every call raises :class:`ServiceError` when it got no good answer.

    ``timeout`` is in seconds, for connecting, sending and waiting each. Nothing is retried: a repeated
    ``rank`` with the same ``request_id`` is safe, and the caller knows best whether it still wants it.
    ``binary`` sends and takes safetensors instead of JSON; ``settings`` are what to rank by when the
    service cannot (see the module).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def rank(
        self,
        user_id: int,
        items: Sequence[int] | np.ndarray,
        scores: Mapping[str, Sequence[float] | np.ndarray],
        *,
        k: int | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
    ) -> Ranking:
        """Order ``items`` [n] by ``scores`` {head: [n]}; numpy arrays are taken as they are."""
        asked = _Rank(items, scores, _rank_fields(user_id, k, request_id, session_id, event_ts))
        try:
            return _ranking(self._post("/rank", asked.content(self._binary)))
        except ServiceError as error:
            return self._made_up(asked, error)

    def feedback(
        self,
        request_id: str,
        events: Sequence[Mapping[str, int]],
        *,
        user_id: int | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
    ) -> bool:
        """Send what the user did; True when the next request of the session will see it."""
        content = _feedback_content(request_id, events, user_id, session_id, event_ts)
        return bool(self._post("/feedback", content)["state_moved"])

    def status(self) -> dict[str, Any]:
        """What the service serves now."""
        try:
            return self._read(self._http.get("/status"))
        except httpx.HTTPError as error:
            raise self._unreached(error) from error

    def ready(self) -> bool:
        """Whether the service is fit to take traffic; False also when nobody answers."""
        return self._is_ok("/readyz")

    def live(self) -> bool:
        """Whether the process answers."""
        return self._is_ok("/livez")

    def _is_ok(self, path: str) -> bool:
        try:
            return self._http.get(path).status_code == 200
        except httpx.HTTPError:
            return False

    def _post(self, path: str, content: bytes) -> dict[str, Any]:
        try:
            return self._read(self._http.post(path, content=content, headers=self._headers(path)))
        except httpx.HTTPError as error:
            raise self._unreached(error) from error


class AsyncClient(_Caller):
    """:class:`Client` for an event loop. ``timeout`` is of a whole call, in seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._http = httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def rank(
        self,
        user_id: int,
        items: Sequence[int] | np.ndarray,
        scores: Mapping[str, Sequence[float] | np.ndarray],
        *,
        k: int | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
    ) -> Ranking:
        """See :meth:`Client.rank`."""
        asked = _Rank(items, scores, _rank_fields(user_id, k, request_id, session_id, event_ts))
        try:
            return _ranking(await self._post("/rank", asked.content(self._binary)))
        except ServiceError as error:
            return self._made_up(asked, error)

    async def feedback(
        self,
        request_id: str,
        events: Sequence[Mapping[str, int]],
        *,
        user_id: int | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
    ) -> bool:
        """See :meth:`Client.feedback`."""
        content = _feedback_content(request_id, events, user_id, session_id, event_ts)
        return bool((await self._post("/feedback", content))["state_moved"])

    async def status(self) -> dict[str, Any]:
        """What the service serves now."""
        return await self._call("GET", "/status")

    async def _post(self, path: str, content: bytes) -> dict[str, Any]:
        return await self._call("POST", path, content=content, headers=self._headers(path))

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            async with deadline_of(self._timeout):
                response = await self._http.request(method, path, **options)
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._unreached(error) from error
        return self._read(response)


def _rank_fields(
    user_id: int, k: int | None, request_id: str | None, session_id: str | None, event_ts: str | None
) -> dict[str, Any]:
    return _given(user_id=user_id, k=k, request_id=request_id, session_id=session_id, event_ts=event_ts)


def _feedback_content(
    request_id: str,
    events: Sequence[Mapping[str, int]],
    user_id: int | None,
    session_id: str | None,
    event_ts: str | None,
) -> bytes:
    return _json(
        _given(
            request_id=request_id,
            events=[dict(event) for event in events],
            user_id=user_id,
            session_id=session_id,
            event_ts=event_ts,
        )
    )


def _ranking(answer: Mapping[str, Any]) -> Ranking:
    policy = answer["policy"]
    return Ranking(
        request_id=answer["request_id"],
        session_id=answer["session_id"],
        items=answer["items"],
        scores=answer["scores"],
        weights=answer["weights"],
        policy_version=policy["version"],
        arm=policy["arm"],
        fallback=policy["fallback"],
    )


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _json(body: Mapping[str, Any]) -> bytes:
    return orjson.dumps(body, default=list, option=orjson.OPT_SERIALIZE_NUMPY)
