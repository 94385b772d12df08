"""The marts' exports: Parquet by day, which Feast and the learner read."""

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from training.contract.files import write_atomic
from training.contract.layout import day_of_folder
from training.contract.settings import Settings
from training.warehouse.engine import Window
from training.warehouse.engines import engine_of

# mart: columns that fix the order of an export's rows
MARTS = {
    "fct_transitions": ("event_ts", "request_id"),
    "fct_user_history": ("user_id",),
    "fct_session_state": ("event_timestamp", "request_id"),
    "dim_users": ("user_id",),
    "fct_policy_daily": ("arm", "policy_version"),
    "fct_user_days": ("user_id",),
}


def export(settings: Settings, window: Window) -> dict[str, dict[str, Any]]:
    """Write the days that each mart replaced, and remove exports of those that have no rows now."""
    exported = {}
    with engine_of(settings).connect() as (connection, tables):
        for mart, key in MARTS.items():
            since = window.since(mart)
            counts = (
                connection.execute(
                    f"select dt, count(*) from main.{mart} where dt between ? and ? group by dt order by dt",  # noqa: S608
                    [since, window.last],
                ).fetchall()
                if mart in tables
                else []
            )
            for day, _ in counts:
                _copy(connection, mart, key, day, settings.layout.mart(mart) / f"dt={day}" / "part-0.parquet")
            kept = {day for day, _ in counts}
            for path in settings.layout.mart(mart).glob("dt=*/part-0.parquet"):
                day = day_of_folder(path.parent)
                if since <= day <= window.last and day not in kept:
                    shutil.rmtree(path.parent)
            exported[mart] = {"days": [str(day) for day, _ in counts], "rows": sum(n for _, n in counts)}
    return exported


def _copy(
    connection: duckdb.DuckDBPyConnection, mart: str, key: tuple[str, ...], day: date, path: Path
) -> None:
    def write(temporary: Path) -> None:
        connection.execute(
            f"copy (select * from main.{mart} where dt = date '{day}' order by {', '.join(key)}) "  # noqa: S608
            f"to '{str(temporary).replace(chr(39), chr(39) * 2)}' (format parquet, compression zstd)"
        )

    write_atomic(path, write)
