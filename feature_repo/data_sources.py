"""Where feature values come from: dbt's Parquet exports, and the feedback that the service pushes.

One source a mart, read by DuckDB, or by Spark where Spark makes the tables. Feast's DuckDB store takes the
column types of the first file, which is the empty partition that :func:`training.features.apply` writes, and
casts the later ones to them; for Spark the source is a query that casts.
"""

from collections.abc import Sequence

from feast import Field, FileSource, PushSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.types import FeastType, Float64, Int64, String, UnixTimestamp

from training.contract.settings import Settings

EXPORTS = "dt=*/part-0.parquet"
TIMESTAMP = "event_timestamp"
_SPARK_TYPES: dict[FeastType, str] = {
    Float64: "DOUBLE",
    Int64: "BIGINT",
    String: "STRING",
    UnixTimestamp: "TIMESTAMP",
}


def _export(settings: Settings, mart: str, schema: Sequence[Field], description: str) -> DataSource:
    folder = settings.layout.mart(mart).absolute()
    if settings.warehouse.engine == "spark":
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        columns = [f"CAST({field.name} AS {_SPARK_TYPES[field.dtype]}) AS {field.name}" for field in schema]
        return SparkSource(
            name=mart,
            path=str(folder),
            file_format="parquet",
            query=f"SELECT {TIMESTAMP}, {', '.join(columns)} FROM parquet.`{folder}`",  # noqa: S608
            timestamp_field=TIMESTAMP,
            description=description,
        )
    return FileSource(
        name=mart,
        path=str(folder / EXPORTS),
        file_format=ParquetFormat(),
        timestamp_field=TIMESTAMP,
        description=description,
    )


def users(settings: Settings, schema: Sequence[Field]) -> DataSource:
    return _export(settings, "dim_users", schema, "one row per change of a user's profile")


def user_history(settings: Settings, schema: Sequence[Field]) -> DataSource:
    return _export(
        settings,
        "fct_user_history",
        schema,
        "one row per user and active day, usable from the local midnight that ends the day",
    )


def session_push(settings: Settings, schema: Sequence[Field]) -> PushSource:
    """Feedback as it arrives: the service pushes the session's new sums, dbt computes them again."""
    computed = _export(
        settings, "fct_session_state", schema, "running sums of a session, one row per feedback"
    )
    return PushSource(name="user_session_push", batch_source=computed)
