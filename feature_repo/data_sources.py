"""Where feature values come from: dbt's Parquet exports, and the feedback that the service pushes.

One glob a mart. Feast's DuckDB store takes the column types of the first file, which is the empty
partition that :func:`training.features.apply` writes, and casts the later ones to them.
"""

from feast import FileSource, PushSource
from feast.data_format import ParquetFormat

from training.contract.settings import Settings

EXPORTS = "dt=*/part-0.parquet"


def _export(settings: Settings, mart: str, description: str) -> FileSource:
    return FileSource(
        name=mart,
        path=str(settings.layout.mart(mart).absolute() / EXPORTS),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        description=description,
    )


def users(settings: Settings) -> FileSource:
    return _export(settings, "dim_users", "one row per change of a user's profile")


def user_history(settings: Settings) -> FileSource:
    return _export(
        settings,
        "fct_user_history",
        "one row per user and active day, usable from the local midnight that ends the day",
    )


def session_state(settings: Settings) -> FileSource:
    return _export(settings, "fct_session_state", "running sums of a session, one row per feedback")


def session_push(settings: Settings) -> PushSource:
    """Feedback as it arrives: the service pushes the session's new sums, dbt computes them again."""
    return PushSource(name="user_session_push", batch_source=session_state(settings))
