"""What someone said already of their logs: a ``columns.json`` that is there, before there are settings.

With the settings :mod:`training.ingest.columns_file` has the last word; here nothing of it may be lost.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.contract.errors import DataError
from training.contract.layout import TABLES
from training.ingest.columns_file import COLUMNS_FILE

Said = dict[str, dict[str, Any]]


def read_said(folder: Path | None) -> Said:
    """By table and name, what ``columns.json`` says; nothing without one.

    Raises :class:`DataError` of one line for what is no such file, a table that there is not, a name that is
    there twice and two names of one column.
    """
    path = None if folder is None else folder / COLUMNS_FILE
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise DataError(f"{path}: expected an object of tables, each an object of columns")
    for table, columns in found.items():
        if table not in TABLES:
            raise DataError(f"{path}: unknown table {table!r}; expected {', '.join(TABLES)}")
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


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name!r} is named twice: take one of them out")
    return dict(pairs)
