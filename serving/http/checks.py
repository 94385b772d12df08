"""What must hold of a body in either form, beyond the types of its fields?"""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from serving.http.ids import Ids
from serving.http.requests import RankRequest, RequestError
from training.contract.log import Id
from training.contract.settings import Settings


class Checks:
    """Under one set of settings. ``maxima`` are float64[heads], the largest score of each."""

    def __init__(self, settings: Settings) -> None:
        self._serving = settings.serving
        self.users = Ids(settings.ids.users, "ids.users")
        self.items = Ids(settings.ids.items, "ids.items")
        self.names = settings.fusion.names
        self.maxima = np.array([head.maximum for head in settings.fusion.heads])

    def in_range(self, scores: np.ndarray) -> np.ndarray:
        """bool[heads, n] of scores [heads, n]; False for NaN."""
        return (scores >= 0.0) & (scores <= self.maxima[:, None])

    def rank_request(
        self,
        fields: Any,
        items: np.ndarray,
        scores: np.ndarray,
        given: tuple[str, ...],
        text_ids: bool = False,
    ) -> RankRequest:
        """Of checked ``items`` [n] and ``scores`` float64[heads, n], and the body's other ``fields``."""
        k = self._serving.default_k if fields.k is None else fields.k
        shown = self._serving.default_shown if fields.shown is None else fields.shown
        return RankRequest(
            user_id=self.users.one("user_id", fields.user_id),
            items=items,
            scores=scores.T,
            given=given,
            k=k,
            shown=k if shown is None else shown,
            request_id=fields.request_id,
            session_id=fields.session_id,
            event_ts=self.time(fields.event_ts),
            text_ids=text_ids,
        )

    def time(self, value: str | None) -> datetime | None:
        """The request's own time in UTC. Raises :class:`RequestError` where none is taken, or it is none."""
        if value is None:
            return None
        if not self._serving.accept_event_ts:
            raise RequestError(
                "event_ts is not taken from requests: this service uses its own clock. "
                "Set serving.accept_event_ts to true for simulated or replayed traffic."
            )
        try:
            time = datetime.fromisoformat(value)
            if time.tzinfo is None:
                raise ValueError
            time = time.astimezone(UTC)
            if not 1970 <= time.year <= 2200:
                raise ValueError
        except (ValueError, OverflowError) as error:
            raise RequestError(
                "event_ts must be an ISO-8601 time with its offset between 1970 and 2200, "
                "such as 2026-01-05T12:00:00Z"
            ) from error
        return time


def refuse_repeated(items: list[Id]) -> None:
    """Raises :class:`RequestError` naming the first item that comes twice."""
    if len(set(items)) == len(items):
        return
    seen: set[Id] = set()
    for item in items:
        if item in seen:
            raise RequestError(f"candidates.item_id names item {item} more than once")
        seen.add(item)
