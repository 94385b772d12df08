"""Predictions that a landed day's source does not carry, filled in later."""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa

from training.contract.errors import DataError
from training.contract.files import recover_folder
from training.contract.layout import IMPRESSIONS
from training.contract.settings import Settings
from training.ingest.landing import (
    connect,
    fetch_row,
    landing_lock,
    read_note,
    read_partition,
    write_partition,
)


def with_predictions(settings: Settings, day: date, predictions: pa.Table) -> dict[str, Any]:
    """Fill the ``p_<head>`` columns of a landed day, and land it again.

    ``predictions`` holds request_id, item_id and any of the ``p_<head>`` columns, one row an
    impression; an impression without a row keeps what it had. Returns what :func:`land` returns.
    Raises :class:`DataError` when the day is not landed, a column is unknown, or a key is repeated.
    """
    with landing_lock(settings.layout):
        partition = settings.layout.partition(IMPRESSIONS, day)
        recover_folder(partition)
        note = read_note(partition)
        if note is None:
            raise DataError(f"impressions of {day} are not landed: there is nothing to predict")
        known = {f"p_{head.name}" for head in settings.heads}
        given = [name for name in predictions.column_names if name not in ("request_id", "item_id")]
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise DataError(
                f"predictions of {day}: {unknown or 'no column'}; expected some of {sorted(known)}"
            )
        with connect() as connection:
            connection.register("predictions", predictions)
            repeated = fetch_row(
                connection, "select count(*) - count(distinct (request_id, item_id)) from predictions"
            )[0]
            if repeated:
                raise DataError(f"predictions of {day}: {repeated} rows repeat a (request_id, item_id)")
            connection.register("landed", read_partition(partition))
            filled = connection.sql(fill_predictions("landed", "predictions", given)).to_arrow_table()
        return write_partition(
            *(settings, IMPRESSIONS, day, filled, note["source"], note["deliveries"], note.get("columns")),
            of_lake=True,
        )


def fill_predictions(landed_rows: str, predictions: str, columns: Sequence[str]) -> str:
    """SQL: ``landed_rows`` with the given columns taken from ``predictions`` where it has them."""
    filled = ", ".join(f'coalesce(p."{name}", l."{name}") as "{name}"' for name in columns)
    return (
        f"select l.* replace ({filled}) from {landed_rows} l "
        f"left join {predictions} p on l.request_id = p.request_id and l.item_id = p.item_id"
    )
