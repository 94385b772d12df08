"""A token bucket for each caller, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """``per_second`` requests of a caller are let through, and ``burst`` of them at once.

    The callers seen last are remembered, ``callers`` of them; one that is forgotten starts with a full
    bucket again. Not thread-safe: it belongs to the event loop.
    """

    def __init__(
        self,
        per_second: float,
        burst: int,
        callers: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second, self._burst, self._callers, self._clock = per_second, burst, callers, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def take(self, caller: str) -> float:
        """0 when the request may pass, else the seconds after which the next one may."""
        now = self._clock()
        tokens, then = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - then) * self._per_second)
        wait = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._per_second
        self._buckets[caller] = (tokens if wait else tokens - 1.0, now)
        if len(self._buckets) > self._callers:
            self._buckets.popitem(last=False)
        return wait
