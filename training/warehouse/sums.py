"""Where sums over the exports are taken: in this process, or by Spark, next to the data."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

from training.contract.settings import Settings
from training.contract.sums import AddUp, S, T


def adding_up(settings: Settings) -> AbstractContextManager[AddUp]:
    """By Spark where it makes the tables in a session (``warehouse.engine``, ``warehouse.spark.target``): a
    Thrift server runs no Python."""
    if settings.warehouse.engine == "spark" and settings.warehouse.spark.target == "session":
        from training.warehouse.sums_on_spark import SparkSums

        return SparkSums(settings)
    return nullcontext(InProcess(settings.learner.threads))


class InProcess:
    """So many at a time (0: as many as there are cores), in threads: reading, products and cosines let go of
    the interpreter. They are added in order, so their number changes no bit."""

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads or os.cpu_count() or 1

    def __call__(self, work: Callable[[T], S], items: Sequence[T]) -> S:
        total: S | None = None
        with ThreadPoolExecutor(self._threads) as pool:
            for at in range(0, len(items), self._threads):  # no more sums than threads wait to be added
                for one in pool.map(work, items[at : at + self._threads]):
                    total = one if total is None else total + one
        assert total is not None
        return total
