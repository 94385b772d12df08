"""``columns.json`` beside a folder of logs: which of its columns is which of the contract's, and read how.

By table and the contract's name: the name of a column; ``null`` where the logs have none; or an object::

    {"impressions": {"request_id": "req",
                     "p_share": null,
                     "event_ts": {"column": "served_at", "zone": "calendar"}}}

``column`` is its name (the contract's, where left out). Of times: ``unit`` of numbers (``s``, ``ms``, ``us``
or ``ns``), ``zone`` of times without an offset (an IANA name, or ``calendar`` for the settings' own),
``ambiguous`` for those of the hour that comes twice when clocks go back (``earliest`` or ``latest``), and
``of`` (``item``: every item has its own, and the request's is the first of them).
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.contract.errors import DataError
from training.contract.layout import TABLES
from training.contract.settings import Settings, is_zone
from training.ingest.schema import TIMESTAMP, TableSpec, table_spec

COLUMNS_FILE = "columns.json"
CALENDAR = "calendar"
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_ENTRIES = {
    "unit": tuple(UNITS),
    "ambiguous": ("earliest", "latest"),
    "of": ("item", "request"),
}


@dataclass(frozen=True)
class Source:
    """Where a column of the contract comes from; ``column`` is None where the logs have none."""

    column: str | None
    unit: str = "ms"
    zone: str | None = None
    ambiguous: str | None = None
    of: str = "request"


@dataclass(frozen=True)
class Mapped:
    """What ``columns.json`` says of one table."""

    sources: Mapping[str, Source] = field(default_factory=dict)

    def source(self, name: str) -> Source:
        return self.sources.get(name) or Source(name)

    def known(self, spec: TableSpec) -> list[str]:
        """Names that the table's columns have in the logs."""
        return [column for name in spec.schema.names if (column := self.source(name).column) is not None]


def read_columns(settings: Settings, folder: Path) -> dict[str, Mapped]:
    """By table, what the folder's ``columns.json`` says; nothing where there is none.

    Raises :class:`DataError` naming the file and the entry for what is not as above, a name that is given
    twice, and two columns of the contract that would be read from one.
    """
    path = folder / COLUMNS_FILE
    return {table: _mapped(settings, path, table, columns) for table, columns in parsed(path).items()}


def parsed(path: Path) -> dict[str, dict[str, Any]]:
    """By table, the entries of a ``columns.json``; nothing where there is none.

    Raises :class:`DataError` for what is no such file, a table that there is not, and a name given twice.
    """
    if not os.path.lexists(path):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except _Twice as error:
        raise DataError(f"{path}: {error} is named twice") from None
    except OSError as error:
        raise DataError(f"{path}: unreadable: {str(error.strerror).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: expected an object of tables, each an object of columns: {error}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of tables, each an object of columns")
    for table, columns in content.items():
        if table not in TABLES:
            raise DataError(f"{path}: unknown table {table!r}; expected {', '.join(TABLES)}")
        if not isinstance(columns, dict):
            raise DataError(f"{path}: {table}: expected an object of columns, found {columns!r}")
    return content


def _mapped(settings: Settings, path: Path, table: str, columns: Mapping[str, Any]) -> Mapped:
    spec = table_spec(settings, table)
    for name in columns:
        if name not in spec.schema.names:
            raise DataError(f"{path}: {table} has no column {name!r}: {', '.join(spec.schema.names)}")
    sources = {name: _source(f"{path}: {table}.{name}", spec, name, said) for name, said in columns.items()}
    for name, source in sources.items():
        if source.column is None and name in spec.required:
            raise DataError(f"{path}: {table}.{name} is null, but {table} needs it")
    mapped = Mapped(sources)
    # a column that is not named here is read by its own name
    for column, count in Counter(mapped.known(spec)).items():
        if count > 1:
            both = [name for name in spec.schema.names if mapped.source(name).column == column]
            raise DataError(
                f"{path}: {table}: {' and '.join(both)} are both read from {column!r}: name another column "
                "for one of them, or null where you have none"
            )
    return mapped


def _source(where: str, spec: TableSpec, name: str, said: Any) -> Source:
    if said is None or isinstance(said, str):
        return Source(said)
    if not isinstance(said, dict):
        raise DataError(f"{where}: expected a column's name, null or an object, found {said!r}")
    known = ("column", "zone", *_ENTRIES)
    for entry, value in said.items():
        if entry not in known:
            raise DataError(f"{where}: unknown entry {entry!r}; expected {', '.join(known)}")
        if not isinstance(value, str):
            raise DataError(f"{where}.{entry}: expected a text, found {value!r}")
        if entry != "column" and spec.schema.field(name).type != TIMESTAMP:
            raise DataError(f"{where}.{entry}: {entry} is of times, and {name} is none")
        if entry in _ENTRIES and value not in _ENTRIES[entry]:
            raise DataError(f"{where}.{entry}: {value!r} is none of {', '.join(_ENTRIES[entry])}")
        if entry == "of" and name != spec.time:
            raise DataError(f"{where}.of: it is said of {spec.time}")
    zone = said.get("zone")
    if zone is not None and zone != CALENDAR and not is_zone(zone):
        raise DataError(f"{where}.zone: {zone!r} is no zone: a name like Europe/Berlin, UTC, or {CALENDAR}")
    return Source(**{"column": name, **said})


class _Twice(ValueError):
    """A name is in one object twice, of which JSON would take the last."""


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise _Twice(repr(name))
    return dict(pairs)
