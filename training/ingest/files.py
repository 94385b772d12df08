"""One file of a delivery, read under the contract: which of its columns are which, and what its values mean.

A column of the contract is found by its name, or by the one that ``columns.json`` gives it. A name that is
almost one that is missing is a mistake until the mapping says that it is not; a column that is read must be
there once. Folders like ``country=DE`` around a file are columns, too.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.contract.errors import DataError
from training.contract.layout import USERS
from training.contract.settings import IdKind, Settings
from training.ingest import times, values
from training.ingest.aside import read_parquet
from training.ingest.columns_file import CALENDAR, COLUMNS_FILE, Mapped, Source
from training.ingest.csv_files import open_text, read_text
from training.ingest.schema import TIMESTAMP, TableSpec

PARQUET = (".parquet", ".pq")
TEXT = tuple(f"{name}{packed}" for name in (".csv", ".tsv") for packed in ("", ".gz", ".zst", ".bz2"))
SUFFIXES = (*PARQUET, *TEXT)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_ALIKE = 0.85  # of two names, from which on one may be a slip for the other
_AHEAD = timedelta(days=366)
_OLDEST_PROFILE = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Asked:
    """What a file is read for: a table of a day's delivery, under the settings and the folder's mapping."""

    settings: Settings
    table: str
    spec: TableSpec
    day: date
    mapped: Mapped

    def span(self, name: str) -> times.Span:
        """The instants that a column's times may have."""
        start = self.settings.day_start(self.day)
        late = timedelta(days=self.settings.logs.max_late_days)
        first = _OLDEST_PROFILE if self.table == USERS else start - late
        return times.Span(first, start + _AHEAD, self.day.isoformat())

    def kind(self, name: str) -> IdKind:
        """What the ids of a column are."""
        return self.settings.ids.kind(name)

    def zone(self, source: Source) -> str | None:
        return self.settings.calendar.timezone if source.zone == CALENDAR else source.zone


@dataclass(frozen=True)
class FileRows:
    """A file's rows under the contract, and what of it was not read.

    ``types`` are its columns' under the contract's names, as it has them; ``unread`` columns that nobody
    asked for, ``absent`` the contract's that it lacks, which are null.
    """

    path: Path
    rows: pa.Table
    types: Mapping[str, str]
    unread: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass
class _Found:
    """Columns of a file by the contract's names, and the names that are left."""

    columns: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def is_data(path: Path) -> bool:
    """Whether a file's name says that it is read."""
    return path.name.lower().endswith(SUFFIXES)


def read_file(asked: Asked, path: Path, delivery: Path) -> FileRows:
    """The file's rows under the contract's names and types, in its order; ``delivery`` is its folder.

    Raises :class:`DataError` naming the file, and the row, the value and what to do where there are some: for
    one that is broken or of another encoding; a column that is missing, there twice, or named almost right; a
    value that is none of its column's; a time without a zone, in another unit, or years away.
    """
    folders = _folder_columns(path, delivery)
    if path.name.lower().endswith(PARQUET):
        with _opened(path) as file:
            names, types = file.schema_arrow.names, {f.name: str(f.type) for f in file.schema_arrow}
            found = _find(asked, path, names, folders)
            rows = read_parquet(path, list(found.columns.values()))
        source = rows.rename_columns(list(found.columns))
    else:
        _refuse_lists(asked, path)
        header, rows = read_text(path, asked.mapped.known(asked.spec))
        types = dict.fromkeys(header.names, "text")
        found = _find(asked, path, header.names, folders)
        places = [header.names.index(column) for column in found.columns.values()]
        source = pa.table([rows.column(n) for n in places], names=list(found.columns))
    for name in [n for n in found.absent if asked.mapped.source(n).column in folders]:
        found.absent.remove(name)
        value = folders[asked.mapped.source(name).column or name]
        source = source.append_column(name, _repeated(value, source.num_rows))
    ours = {column: name for name, column in found.columns.items()}
    rows = _under_contract(asked, path, source)
    for name, column in found.columns.items():
        if column in folders:
            place, value = source.column_names.index(name), _repeated(folders[column], source.num_rows)
            if not _under_contract(asked, path, source.set_column(place, name, value)).equals(rows):
                raise DataError(
                    _twice(path, column, "a folder around the file and its column differ"), breaks="columns"
                )
    return FileRows(
        path,
        rows,
        {ours.get(name, name): kind for name, kind in types.items()},
        tuple(found.unread),
        tuple(found.absent),
    )


def _folder_columns(path: Path, delivery: Path) -> dict[str, str | None]:
    """Columns that the folders around a file are, as Hive writes them: escaped, and with a name for null."""
    found: dict[str, str | None] = {}
    for part in path.relative_to(delivery).parts[:-1]:
        name, is_column, value = part.partition("=")
        if is_column:
            name, content = unquote(name), None if value == _HIVE_NULL else unquote(value)
            if found.setdefault(name, content) != content:
                raise DataError(_twice(path, name, "folders around the file differ"), breaks="columns")
    return found


def _repeated(value: str | None, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), rows)


def _twice(path: Path, column: str, told: str) -> str:
    return f"{path}: column {column} is there 2 times, for {told}: which of them is meant?"


def column_types(asked: Asked, path: Path) -> dict[str, str]:
    """The file's columns under the contract's names, with their types there; a text file's are ``text``."""
    ours = {asked.mapped.source(name).column: name for name in asked.spec.schema.names}
    if path.name.lower().endswith(PARQUET):
        with _opened(path) as file:
            return {ours.get(f.name, f.name): str(f.type) for f in file.schema_arrow}
    with open_text(path, asked.mapped.known(asked.spec)) as (_, header):
        return {ours.get(name, name): "text" for name in header.names}


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        message = f"{path}: unreadable Parquet: {str(error).splitlines()[0]}"
        raise DataError(message, breaks="readable") from error


def _refuse_lists(asked: Asked, path: Path) -> None:
    lists = [f.name for f in asked.spec.schema if pa.types.is_list(f.type) and f.name in asked.spec.required]
    if lists:
        message = f"{path}: column {lists[0]} is a list, which CSV cannot hold: bring Parquet"
        raise DataError(message, breaks="types")


def _find(asked: Asked, path: Path, names: Sequence[str], folders: Mapping[str, str | None]) -> _Found:
    found = _Found()
    spec, counts = asked.spec, Counter(names)
    for name in spec.schema.names:
        column = asked.mapped.source(name).column
        if column is not None and counts[column] > 1:
            raise DataError(
                f"{path}: column {column} is there {counts[column]} times: which of them is meant?",
                breaks="columns",
            )
        if column is not None and counts[column]:
            found.columns[name] = column
        elif name in asked.mapped.sources and column is not None and column not in folders:
            told = f"{path}: missing column {column}, which {COLUMNS_FILE} names as {name}; it has "
            raise DataError(told + ", ".join(names), breaks="columns")
        else:
            found.absent.append(name)
    read = set(found.columns.values())
    found.unread = [name for name in counts if name not in read and name]
    missing = [n for n in found.absent if n in spec.required and asked.mapped.source(n).column not in folders]
    if missing:
        almost = slips(missing, found.unread)
        told = "".join(f"; is {theirs} your {name}?" for name, theirs in almost)
        others = [name for name in found.unread if name not in [theirs for _, theirs in almost]]
        if others:  # a renamed column is for a person to recognise
            told += f"; unknown to the contract, a new name perhaps: {', '.join(others)}"
        raise DataError(
            f"{path}: missing column {', '.join(missing)}; it has {', '.join(names) or 'none'}{told}. "
            f"Give your names in {COLUMNS_FILE}",
            breaks="columns",
        )
    unsaid = [name for name in found.absent if name not in asked.mapped.sources]
    for name, theirs in slips(unsaid, found.unread):
        raise DataError(
            f"{path}: it has a column {theirs} and no {name}: say in {COLUMNS_FILE} "
            f'{{"{asked.table}": {{"{name}": "{theirs}"}}}} where it is meant, or null where you have none',
            breaks="columns",
        )
    return found


def slips(wanted: Sequence[str], given: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a name that is wanted and one that is given and almost the same."""
    pairs = []
    for name in wanted:
        bare = {_bare(theirs): theirs for theirs in given}
        close = (
            [_bare(name)] if _bare(name) in bare else difflib.get_close_matches(_bare(name), bare, 1, _ALIKE)
        )
        pairs += [(name, bare[one]) for one in close]
    return pairs


def _bare(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _under_contract(asked: Asked, path: Path, source: pa.Table) -> pa.Table:
    spec, source = asked.spec, _plain(path, source)
    types = {f.name: f.type for f in spec.schema if f.name in source.column_names and f.type != TIMESTAMP}
    # kept by its digits, which an unsigned number has one way to write
    types |= {name: pa.uint64() for name in types if name in values.IDS and asked.kind(name) == "uint64"}
    rows, bad = values.typed(source, types)
    values.refuse_bad(path, source, types, bad, lambda name: _called(asked, name))
    columns = {name: rows[name].cast(spec.schema.field(name).type) for name in types}
    for field_ in spec.schema:
        if field_.name not in source.column_names:
            columns[field_.name] = pa.nulls(source.num_rows, field_.type)
        elif field_.type == TIMESTAMP:
            columns[field_.name] = _times(asked, path, field_.name, source[field_.name])
    return pa.table([columns[name] for name in spec.schema.names], schema=spec.schema)


def _times(asked: Asked, path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    of, span = asked.mapped.source(name), asked.span(name)
    zone = asked.zone(of)
    read, bad = times.read(column, of, zone, span)
    if (row := pc.index(bad, True).as_py()) >= 0:
        why = times.advice(column[row], of, zone, span)
        raise DataError(
            f"{path}, row {row + 1}: column {_called(asked, name)} is {values.shown(column[row])}, "
            f"expected a time: {why} ({pc.sum(bad).as_py()} of {len(bad)} rows)",
            breaks="times",
        )
    if name == asked.spec.time and read.null_count:
        row = pc.index(read.is_null(), True).as_py()
        message = f"{path}: column {name}, row {row + 1} is null: it belongs to no day"
        raise DataError(message, breaks="times")
    return read


def _called(asked: Asked, name: str) -> str:
    theirs = asked.mapped.source(name).column
    return name if theirs == name else f"{name} (your {theirs})"


def _plain(path: Path, source: pa.Table) -> pa.Table:
    """Without dictionaries, with text that its writer did not mark as such, and decimals of 38 digits."""
    columns = []
    for name in source.column_names:
        column = source[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_decimal(column.type) and not pa.types.is_decimal128(column.type):
            try:
                column = column.cast(pa.decimal128(38, column.type.scale))
            except (pa.ArrowException, ValueError) as error:
                message = f"{path}: column {name} is {column.type} and holds more than 38 digits: bring fewer"
                raise DataError(message, breaks="types") from error
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            try:
                column = column.cast(pa.string())
            except pa.ArrowInvalid as error:
                message = f"{path}: column {name} holds bytes that are no UTF-8: bring text or numbers"
                raise DataError(message, breaks="types") from error
        columns.append(column)
    return pa.table(columns, names=source.column_names)
