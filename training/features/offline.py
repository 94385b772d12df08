"""What reads the exports for Feast: DuckDB, or Spark where it makes the tables."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from training.contract.settings import Settings


def configuration(settings: Settings) -> dict[str, Any]:
    """The section ``offline_store`` of ``feature_store.yaml``."""
    if settings.warehouse.engine != "spark":
        return {"type": "duckdb"}
    from training.warehouse.on_spark import session_conf

    spark, scratch = settings.warehouse.spark, settings.layout.spark_scratch.resolve()
    session = {
        **session_conf(settings),
        "spark.master": spark.master,
        "spark.sql.warehouse.dir": str(scratch / "databases"),
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.parquet.mergeSchema": "true",  # a day before a newer column has nulls of it
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.shuffle.partitions": str(spark.partitions),
    }
    return {"type": "spark", "spark_conf": session}


@contextlib.contextmanager
def session(settings: Settings) -> Iterator[None]:
    """Where Feast may start a session of Spark's, which ends here; its JVM stays until the process ends.

    Nothing with DuckDB. Raises :class:`MtfError` where Spark cannot run.
    """
    if settings.warehouse.engine != "spark":
        yield
        return
    from training.warehouse.on_spark import session_environment

    os.environ.update(session_environment(settings))
    try:
        yield
    finally:
        from pyspark.sql import SparkSession

        running = SparkSession.getActiveSession()
        if running is not None:
            running.stop()


def counted(job: Any) -> dict[str, int]:
    """Of a retrieval of Feast's the ``rows``, and of how many ``users`` they are."""
    if hasattr(job, "to_spark_df"):
        frame = job.to_spark_df()
        rows, users = frame.selectExpr("count(*)", "count(DISTINCT user_id)").first()
        return {"rows": rows, "users": users}
    found = job.to_arrow()["user_id"]
    return {"rows": len(found), "users": pc.count_distinct(found).as_py()}
