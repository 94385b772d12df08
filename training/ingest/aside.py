"""Rows that a landing leaves out of a day: they lie in the day's quarantine, with a ``reason``."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.contract.errors import DataError
from training.contract.files import write_atomic
from training.contract.settings import Settings
from training.ingest.schema import TableSpec, conform

SET_ASIDE = "set_aside.parquet"  # of the day, and breaking a check
DELIVERY = "delivery.parquet"  # of the day's delivery, and of no day up to it


def set_aside(settings: Settings, spec: TableSpec, table: str, day: date) -> pa.Table:
    """Rows of a day's landing that lie in its quarantine, under the contract."""
    path = settings.layout.quarantine(table, day) / SET_ASIDE
    if not path.exists():
        return spec.schema.empty_table()
    return conform(spec, read_parquet(path), str(path))


def without_bad_rows(settings: Settings, table: str, day: date, rows: pa.Table) -> pa.Table:
    """The rows that the day's partition is to hold; the others are written to its quarantine."""
    from training.validation.set_aside import split

    kept, aside = split(settings, table, day, rows)
    path = settings.layout.quarantine(table, day) / SET_ASIDE
    if aside.num_rows:
        write_atomic(path, lambda temporary: pq.write_table(aside, temporary))
    else:
        path.unlink(missing_ok=True)
    return kept


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file; :class:`DataError` naming it when it is missing, truncated or not Parquet."""
    try:
        return pq.ParquetFile(path).read(None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        message = f"{path}: unreadable Parquet: {str(error).splitlines()[0]}"
        raise DataError(message, breaks="readable") from error
