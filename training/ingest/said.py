"""What someone said already of their logs: a ``columns.json`` that is there, before there are settings.

With the settings :mod:`training.ingest.columns_file` has the last word; here nothing of it may be lost.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.contract.errors import DataError
from training.ingest.columns_file import COLUMNS_FILE, parsed

Said = dict[str, dict[str, Any]]


def read_said(folder: Path | None) -> Said:
    """By table and name, what ``columns.json`` says; nothing without one.

    Raises :class:`DataError` as :func:`~training.ingest.columns_file.parsed` does, and for two names of one
    column.
    """
    if folder is None:
        return {}
    path = folder / COLUMNS_FILE
    found = parsed(path)
    for table, columns in found.items():
        refuse_shared(f"{path}: {table}: ", {name: column_of(name, one) for name, one in columns.items()})
    return found


def column_of(name: str, said: Any) -> Any:
    """Their column of an entry; None where the logs have none."""
    return said.get("column", name) if isinstance(said, dict) else said


def refuse_shared(where: str, columns: Mapping[str, Any]) -> None:
    """Raise :class:`DataError` for two names that one column is to be read as."""
    for column, count in Counter(str(one) for one in columns.values() if one is not None).items():
        if count > 1:
            both = [name for name, one in columns.items() if str(one) == column]
            raise DataError(
                f"{where}{' and '.join(both)} are both to be read from {column!r}: name one of them"
            )
