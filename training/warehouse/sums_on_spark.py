"""Sums over the exports by Spark: the very function of this process, on the executors, added up in a tree.

Executors need this project installed, and see the data folder by the same path.
"""

import math
import operator
import os
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from training.contract.errors import DataError, MtfError
from training.contract.settings import Settings
from training.contract.sums import S, T
from training.warehouse.on_spark import session_conf, session_environment

_OURS = re.compile(r"training\.contract\.errors\.(DataError|MtfError): (.+)")


class SparkSums:
    """Spark is started by the first sum that is asked for, and ended with the block."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context: Any = None
        self._environment = session_environment(settings)  # refuses before anything is begun

    def __enter__(self) -> "SparkSums":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context is not None:
            gateway, context = type(self._context)._gateway, type(self._context)
            self._context.stop()
            # a stopped context leaves its JVM, and the memory of that, to the end of the process
            gateway.shutdown()
            gateway.proc.stdin.close()
            gateway.proc.wait()
            context._gateway = context._jvm = self._context = None

    def __call__(self, work: Callable[[T], S], items: Sequence[T]) -> S:
        from py4j.protocol import Py4JJavaError

        if self._context is None:
            self._context = self._started()
        parts = min(len(items), self._settings.warehouse.spark.partitions)
        depth = max(1, math.ceil(math.log2(parts)))  # so that few sums, however many parts, reach the driver
        try:
            found: S = self._context.parallelize(items, parts).map(work).treeReduce(operator.add, depth)
        except Py4JJavaError as error:
            said = _OURS.search(str(error.java_exception))
            if said is None:
                raise
            raise {"DataError": DataError, "MtfError": MtfError}[said[1]](said[2]) from None
        return found

    def _started(self) -> Any:
        from pyspark.sql import SparkSession

        conf: dict[str, Any] = {
            **session_conf(self._settings),
            "spark.executorEnv.OPENBLAS_NUM_THREADS": "1",  # as in this process: a task is a core's
        }
        before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        try:
            builder = SparkSession.builder.master(self._settings.warehouse.spark.master).appName("mtf sums")
            return builder.config(map=conf).getOrCreate().sparkContext
        finally:
            for name, was in before.items():
                os.environ.pop(name) if was is None else os.environ.update({name: was})
