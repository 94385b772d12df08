"""Sums over the exports by Spark: the very function of this process, on the executors, added up in a tree.

Executors need this project installed, and see the data folder by the same path.
"""

import importlib.util
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from training.contract.errors import DataError, MtfError
from training.contract.settings import Settings
from training.warehouse.engine import S, T
from training.warehouse.java import java_home

_OURS = re.compile(r"training\.contract\.errors\.(DataError|MtfError): (.+)")


class SparkSums:
    """Spark is started by the first sum that is asked for, and ended with the block."""

    def __init__(self, settings: Settings) -> None:
        if importlib.util.find_spec("pyspark") is None:
            raise MtfError(
                "warehouse.engine is spark, and pyspark is not installed: run `make scale`, or "
                'pip install "mtf[scale]"'
            )
        self._spark, self._folder = settings.warehouse.spark, settings.layout.spark_tables.resolve()
        self._context: Any = None

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
        parts = min(len(items), self._spark.partitions)
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

        spark = self._spark
        own = {
            "JAVA_HOME": str(java_home(self._folder.with_name("java"))),
            "PYSPARK_PYTHON": os.environ.get("PYSPARK_PYTHON", sys.executable),
        }
        if spark.master.startswith("local"):
            own["SPARK_LOCAL_IP"] = "127.0.0.1"
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            builder = SparkSession.builder.master(spark.master).appName("mtf sums")
            for name, value in {
                "spark.driver.memory": spark.memory,
                "spark.local.dir": str(self._folder.with_name("spark_scratch")),
                "spark.executorEnv.OPENBLAS_NUM_THREADS": "1",  # as in this process: a task is a core's
                "spark.ui.enabled": "false",
                "spark.ui.showConsoleProgress": "false",
                "spark.log.level": "ERROR",
            }.items():
                builder = builder.config(name, value)
            return builder.getOrCreate().sparkContext
        finally:
            for name, was in before.items():
                os.environ.pop(name) if was is None else os.environ.update({name: was})
