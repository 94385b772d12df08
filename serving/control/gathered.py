"""How do amounts of every request reach Prometheus at little cost? Many at a time.

It relies on private names of ``prometheus_client``: ``tests/test_private_hooks.py`` says for which versions
they hold, and checks that they do.
"""

from abc import abstractmethod
from bisect import bisect_left
from collections import Counter as Multiset
from collections import deque
from collections.abc import Iterable
from typing import Any

from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase


class _Gathering(MetricWrapperBase):
    """Its amounts wait in memory for :meth:`write`: each would take 2 µs of the interpreter to reach the
    file that the workers share, and a request makes twenty. For any thread."""

    def _metric_init(self) -> None:
        super()._metric_init()  # type: ignore[no-untyped-call]  # the library's has no types
        self._waiting: deque[float] = deque()

    def write(self) -> None:
        series: list[Any] = list(self._metrics.values()) if self._labelnames else [self]
        for one in series:
            if taken := one._taken():
                one._write(taken)

    def _taken(self) -> list[float]:
        taken: list[float] = []
        while self._waiting:
            try:
                taken.append(self._waiting.popleft())
            except IndexError:  # another thread writes, too
                break
        return taken

    @abstractmethod
    def _write(self, taken: list[float]) -> None:
        """Add the amounts to what the workers share, as the library's own metric would."""


class Gathered(_Gathering, Histogram):
    """A histogram that gathers."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._waiting.append(amount)

    def observe_all(self, amounts: Iterable[float]) -> None:
        self._waiting.extend(amounts)

    def _write(self, taken: list[float]) -> None:
        for bucket, count in Multiset(bisect_left(self._upper_bounds, amount) for amount in taken).items():
            self._buckets[bucket].inc(count)
        self._sum.inc(sum(taken))


class GatheredCounter(_Gathering, Counter):
    """A counter that gathers."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._waiting.append(amount)

    def _write(self, taken: list[float]) -> None:
        super().inc(sum(taken))
