"""A small typed client of the service, over kept-alive connections."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx
import orjson

from training.contract.errors import MtfError


class ServiceError(MtfError):
    """The service refused, or could not be reached; ``status`` is its HTTP status, or None."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


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


class Client:
    """Thread-safe. Every call raises :class:`ServiceError` when it got no good answer.

    ``timeout`` is in seconds, for connecting, sending and waiting each. Nothing is retried: a repeated
    ``rank`` with the same ``request_id`` is safe, and the caller knows best whether it still wants it.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout: float = 5.0, connections: int = 32
    ) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.Client(base_url=url, timeout=timeout, limits=limits)
        self._token = token

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def rank(
        self,
        user_id: int,
        items: Sequence[int],
        scores: Mapping[str, Sequence[float]],
        *,
        k: int | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
    ) -> Ranking:
        """Order ``items`` [n] by ``scores`` {head: [n]}; numpy arrays are taken as they are."""
        answer = self._post(
            "/rank",
            {
                "user_id": user_id,
                "candidates": {"item_id": items, "scores": dict(scores)},
                "k": k,
                "request_id": request_id,
                "session_id": session_id,
                "event_ts": event_ts,
            },
        )
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
        body = {
            "request_id": request_id,
            "events": [dict(event) for event in events],
            "user_id": user_id,
            "session_id": session_id,
            "event_ts": event_ts,
        }
        return bool(self._post("/feedback", body)["state_moved"])

    def status(self) -> dict[str, Any]:
        """What the service serves now."""
        return self._answer(lambda: self._http.get("/status"))

    def ready(self) -> bool:
        """Whether the service is fit to take traffic; False also when nobody answers."""
        return self._is_ok("/readyz")

    def live(self) -> bool:
        """Whether the process answers."""
        return self._is_ok("/livez")

    def wait_ready(self, seconds: float) -> None:
        """Return as soon as the service is ready; :class:`ServiceError` after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                state = "answers, but its store was not reached" if self.live() else "does not answer"
                raise ServiceError(f"{self._http.base_url} {state} after {seconds:g} s")
            time.sleep(0.1)

    def _is_ok(self, path: str) -> bool:
        try:
            return self._http.get(path).status_code == 200
        except httpx.HTTPError:
            return False

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in body.items() if value is not None}
        content = orjson.dumps(given, default=list, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {"content-type": "application/json"}
        if self._token is not None and path == "/feedback":
            headers["authorization"] = f"Bearer {self._token}"
        return self._answer(lambda: self._http.post(path, content=content, headers=headers))

    def _answer(self, call: Any) -> dict[str, Any]:
        try:
            response = call()
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._http.base_url}: {error!r}") from error
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise ServiceError(f"{response.url}: {response.text[:200]!r}", response.status_code) from error
        if response.status_code != 200:
            raise ServiceError(f"{response.url}: {answer.get('error')}", response.status_code)
        return answer
