"""How is the service called? Paths, headers and bodies, and what an answer, or none, means.

A :class:`Call` is put and read here, whoever carries it: the transports of :mod:`serving.release.client` do
nothing but send it. Nothing is sent twice: a repeated ``rank`` with the same ``request_id`` is safe, and the
caller knows best whether it still wants it.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
import numpy as np
import orjson
import structlog

from serving.http.answers import decode_answer_binary
from serving.http.binary_bodies import encode_rank_binary
from serving.http.requests import BINARY, JSON
from serving.ranking import arms
from training.contract.errors import MtfError
from training.contract.fusion import top
from training.contract.log import STATIC_VERSION, Id
from training.contract.settings import Settings

SERVICE = "service"  # Ranking.fallback: the service gave no answer, the client ranked by static weights

_log = structlog.get_logger("mtf.serving.client")
Result = TypeVar("Result")
Scores = Mapping[str, Sequence[float] | np.ndarray]


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
    items: list[Any]
    scores: list[float]
    weights: dict[str, float]
    policy_version: str
    arm: str
    fallback: str | None


def _raised(error: ServiceError) -> Any:
    raise error


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One HTTP request. ``read`` makes the result of an answer's JSON object; ``instead`` makes it without
    an answer, or raises the error."""

    url: str  # of the service, for errors
    method: str
    path: str
    read: Callable[[dict[str, Any]], Result]
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    instead: Callable[[ServiceError], Result] = _raised

    def answered(self, response: httpx.Response) -> Result:
        """Raises :class:`ServiceError` for an answer that is none, as :meth:`unreached` does."""
        try:
            answer = _decoded(response)
        except ServiceError as error:
            return self.instead(error)
        return self.read(answer)

    def unreached(self, reason: Exception) -> Result:
        error = ServiceError(f"{self.url}: {reason!r}")
        error.__cause__ = reason
        return self.instead(error)


class Calls:
    """The calls to one service. ``binary`` sends and takes safetensors instead of JSON on ``/rank``;
    ``settings`` are what to rank by when the service cannot, None to raise then."""

    def __init__(self, url: str, token: str | None, settings: Settings | None, binary: bool) -> None:
        self._url, self._token, self._settings, self._binary = url, token, settings, binary

    def rank(
        self,
        user_id: Id,
        items: Sequence[Id] | np.ndarray,
        scores: Scores,
        k: int | None,
        request_id: str | None,
        session_id: str | None,
        event_ts: str | None,
        shown: int | None,
    ) -> Call[Ranking]:
        fields = _given(
            user_id=user_id,
            k=k,
            request_id=request_id,
            session_id=session_id,
            event_ts=event_ts,
            shown=shown,
        )
        media_type = BINARY if self._binary else JSON
        if self._binary:
            columns = {name: np.asarray(column) for name, column in scores.items()}
            content = encode_rank_binary(fields, np.asarray(items), columns)
        else:
            content = _json(fields | {"candidates": {"item_id": items, "scores": dict(scores)}})

        def by_static_weights(error: ServiceError) -> Ranking:
            if self._settings is None or not error.is_outage:
                raise error
            _log.warning("ranked by static weights", status=error.status, reason=str(error)[:300])
            return static_ranking(self._settings, items, scores, fields)

        headers = {"content-type": media_type, "accept": media_type}
        return Call(self._url, "POST", "/rank", _ranking, content, headers, by_static_weights)

    def feedback(
        self,
        request_id: str,
        events: Sequence[Mapping[str, Any]],
        user_id: Id | None,
        session_id: str | None,
        event_ts: str | None,
        shown: int | Sequence[Id] | None,
    ) -> Call[bool]:
        content = _json(
            _given(
                request_id=request_id,
                events=[dict(event) for event in events],
                user_id=user_id,
                session_id=session_id,
                event_ts=event_ts,
                shown=shown,
            )
        )
        headers = {"content-type": JSON, "accept": JSON}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        return Call(self._url, "POST", "/feedback", _fed, content, headers)

    def status(self) -> Call[dict[str, Any]]:
        return Call(self._url, "GET", "/status", lambda answer: answer)


def static_ranking(
    settings: Settings, items: Sequence[Id] | np.ndarray, scores: Scores, fields: Mapping[str, Any]
) -> Ranking:
    """What the service would answer by static weights. Raises :class:`DataError` for scores that it would
    have refused."""
    fusion = settings.fusion
    sent = items if isinstance(items, np.ndarray) else np.array(list(items), dtype=object)
    items = sent if settings.ids.items != "int64" else sent.astype(np.int64)
    weights = fusion.to_weights(fusion.static_action)
    fused = fusion.score(fusion.matrix(scores, len(items)), weights)
    shown = top(fused, min(fields.get("k", settings.serving.default_k), len(items)))
    return Ranking(
        request_id=fields.get("request_id", uuid.uuid4().hex),
        session_id=fields.get("session_id", ""),
        items=items[shown].tolist(),
        scores=fused[shown].tolist(),
        weights=dict(zip(fusion.names, weights.tolist(), strict=True)),
        policy_version=STATIC_VERSION,
        arm=arms.STATIC,
        fallback=SERVICE,
    )


def _decoded(response: httpx.Response) -> dict[str, Any]:
    """Raises :class:`ServiceError` for what is not an answer of 200."""
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


def _fed(answer: Mapping[str, Any]) -> bool:
    if answer["not_ranked"]:
        _log.warning(
            "feedback on items that were not ranked", request=answer["request_id"], items=answer["not_ranked"]
        )
    return bool(answer["state_moved"])


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _json(body: Mapping[str, Any]) -> bytes:
    return orjson.dumps(body, default=list, option=orjson.OPT_SERIALIZE_NUMPY)
