"""A small typed client of the service, sync and async, over kept-alive connections.

With ``settings`` a ranker is never left without an order: when the service is down, too slow, refuses
for its load or fails, ``rank`` orders by static weights on the spot and says so
(:attr:`Ranking.fallback` is :data:`SERVICE`). Such a ranking is in no log, and feedback on it is lost.
"""

from asyncio import timeout as deadline_of
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import httpx
import numpy as np

from serving.release.calls import SERVICE, Call, Calls, Ranking, ServiceError
from training.contract.log import Id
from training.contract.settings import Settings

__all__ = ["SERVICE", "AsyncClient", "Client", "Ranking", "ServiceError"]

Result = TypeVar("Result")


class _Transport:
    """What both clients are made of: the calls that they carry, and the options of their connections."""

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
        self._timeout = timeout
        self._calls = Calls(url, token, settings, binary)
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._options: dict[str, Any] = {"base_url": url, "timeout": timeout, "limits": limits}


class Client(_Transport):
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
        user_id: Id,
        items: Sequence[Id] | np.ndarray,
        scores: Mapping[str, Sequence[float] | np.ndarray],
        *,
        k: int | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
        shown: int | None = None,
    ) -> Ranking:
        """Order ``items`` [n] by ``scores`` {head: [n]}; numpy arrays are taken as they are.

        So many of the top as ``shown`` says are taken as shown while no feedback says which.
        """
        return self._send(
            self._calls.rank(user_id, items, scores, k, request_id, session_id, event_ts, shown)
        )

    def feedback(
        self,
        request_id: str,
        events: Sequence[Mapping[str, Any]],
        *,
        user_id: Id | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
        shown: int | Sequence[Id] | None = None,
    ) -> bool:
        """Send what the user did; True when the next request of the session will see it.

        ``shown`` is what they saw: items, or how many from the top of the list.
        """
        return self._send(self._calls.feedback(request_id, events, user_id, session_id, event_ts, shown))

    def status(self) -> dict[str, Any]:
        """What the service serves now."""
        return self._send(self._calls.status())

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

    def _send(self, call: Call[Result]) -> Result:
        try:
            response = self._http.request(call.method, call.path, content=call.content, headers=call.headers)
        except httpx.HTTPError as error:
            return call.unreached(error)
        return call.answered(response)


class AsyncClient(_Transport):
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
        user_id: Id,
        items: Sequence[Id] | np.ndarray,
        scores: Mapping[str, Sequence[float] | np.ndarray],
        *,
        k: int | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
        shown: int | None = None,
    ) -> Ranking:
        """See :meth:`Client.rank`."""
        return await self._send(
            self._calls.rank(user_id, items, scores, k, request_id, session_id, event_ts, shown)
        )

    async def feedback(
        self,
        request_id: str,
        events: Sequence[Mapping[str, Any]],
        *,
        user_id: Id | None = None,
        session_id: str | None = None,
        event_ts: str | None = None,
        shown: int | Sequence[Id] | None = None,
    ) -> bool:
        """See :meth:`Client.feedback`."""
        return await self._send(
            self._calls.feedback(request_id, events, user_id, session_id, event_ts, shown)
        )

    async def status(self) -> dict[str, Any]:
        """What the service serves now."""
        return await self._send(self._calls.status())

    async def _send(self, call: Call[Result]) -> Result:
        try:
            async with deadline_of(self._timeout):
                response = await self._http.request(
                    call.method, call.path, content=call.content, headers=call.headers
                )
        except (httpx.HTTPError, TimeoutError) as error:
            return call.unreached(error)
        return call.answered(response)
