"""A sample of someone's logs, as it lies there: some rows of some files of each table.

For guessing at settings (:mod:`training.ingest.inferring`), before anything is known of names and kinds.
Files are read by the readers that landing uses; of a long file the first and the last rows.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from training.contract.arrays import Float64Array
from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS, USERS
from training.ingest.csv_files import open_text, refuse_broken_lines, scan, unreadable
from training.ingest.files import PARQUET, SUFFIXES, is_data
from training.ingest.values import EXACT, is_text, typed

FILES, ROWS = 8, 10_000  # of a table that are looked at, and rows from either end of each
LARGE = 256 * 1024 * 1024  # bytes of text of which only the first rows are looked at
_DAY = re.compile(r"dt=(\d{4}-\d{2}-\d{2})")
_OF_USERS = re.compile(r"user|profile|reader|member|customer|account", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """The first and the last rows of one file; of CSV every column is text."""

    path: Path
    day: date | None  # of its delivery
    rows: pa.Table
    in_csv: bool


@dataclass(frozen=True)
class Sample:
    """Some rows of one table."""

    table: str
    parts: tuple[Part, ...]

    @cached_property
    def names(self) -> list[str]:
        """Columns of any of the files, in their order."""
        return list(dict.fromkeys(name for part in self.parts for name in part.rows.column_names if name))

    @property
    def rows(self) -> int:
        return sum(part.rows.num_rows for part in self.parts)

    def columns(self, name: str) -> Iterator[tuple[Part, pa.ChunkedArray]]:
        """The column as each file that has it holds it."""
        for part in self.parts:
            if name in part.rows.column_names:
                yield part, part.rows[name]

    def missing(self, name: str) -> list[Path]:
        """Files without it."""
        return [part.path for part in self.parts if name not in part.rows.column_names]

    def numbers(self, name: str) -> Float64Array | None:
        """Its values, NaN where null, as booleans' 0 and 1 too; None where some are no numbers."""
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, Float64Array | None]:
        found: dict[str, list[Float64Array]] = {name: [] for name in self.names}
        failed: set[str] = set()
        for part in self.parts:
            read = _as_numbers(part, [name for name in part.rows.column_names if name and name not in failed])
            for name in self.names:
                if name in read:
                    found[name].append(read[name])
                elif name in part.rows.column_names:
                    failed.add(name)
                else:
                    found[name].append(np.full(part.rows.num_rows, np.nan))
        return {name: None if name in failed else np.concatenate(found[name]) for name in self.names}

    def texts(self, name: str) -> pd.Series:
        """Its values as text, null where there is none."""
        found = []
        for part in self.parts:
            if name not in part.rows.column_names:
                found.append(pd.Series([None] * part.rows.num_rows, dtype="string"))
                continue
            column = part.rows[name]
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
            if is_text(column.type):
                text = column.to_pandas().astype("string")
                text = text.mask(text.str.lower().isin(["", "null", "\\n"])) if part.in_csv else text
            else:
                text = pd.Series(column.to_pandas().astype("string"))
            found.append(text)
        return pd.concat(found, ignore_index=True)


def _as_numbers(part: Part, names: Sequence[str]) -> dict[str, Float64Array]:
    """Those of the columns whose values are all numbers, or all words for 0 and 1."""
    kinds = {name: part.rows.schema.field(name).type for name in names}
    rows_as = {
        name: _narrow(part.rows[name]) for name in names if is_text(kinds[name]) or _plain(kinds[name])
    }
    content = pa.table(rows_as)
    found: dict[str, Float64Array] = {}
    for target in (pa.float64(), pa.int8()):
        left = {name: target for name in rows_as if name not in found}
        rows, bad = typed(content.select(list(left)), left, part.in_csv)
        for name in left.keys() - bad.keys():
            found[name] = rows[name].to_pandas().to_numpy(dtype=np.float64, na_value=np.nan)
    return found


def _narrow(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """DuckDB reads no decimals of more than 38 digits."""
    return column.cast(pa.float64(), safe=False) if pa.types.is_decimal256(column.type) else column


def refuse_inexact(sample: Sample, name: str) -> None:
    """Raise :class:`DataError` for an id that is a float and no whole number it holds exactly."""
    for part, column in sample.columns(name):
        if not pa.types.is_floating(column.type):
            continue
        values = column.drop_null().to_numpy().astype(np.float64)
        values = values[~np.isnan(values)]
        limit = EXACT.get(str(column.type), 1 << 53)
        odd = values[~((np.abs(values) < limit) & (values == np.floor(values)))]
        if len(odd):
            raise DataError(
                f"{part.path}: column {name} holds the id {odd[0]:g} ({column.type}), and it does "
                f"not hold every whole number from {limit} on, so two may be one: bring int64 or text"
            )


def _plain(found: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(kind(found) for kind in kinds) or pa.types.is_null(found)


def read_samples(place: Path) -> tuple[Path | None, dict[str, Sample]]:
    """By table, a sample of what lies at ``place``: a file, or a folder of logs or of files.

    The first value is the folder of deliveries (``impressions/dt=…``), where there is one. Raises
    :class:`DataError` where nothing is read, or a file cannot be.
    """
    if not place.exists():
        raise DataError(f"there is no {place}")
    folder, by_table = _files(place)
    if not by_table.get(IMPRESSIONS):
        raise DataError(f"{place}: no file of impressions that is read ({', '.join(SUFFIXES)})")
    return folder, {
        table: Sample(table, tuple(_part(path) for path in _spread(paths)))
        for table, paths in by_table.items()
        if paths
    }


def _files(place: Path) -> tuple[Path | None, Mapping[str, Sequence[Path]]]:
    if place.is_file():
        above = [parent for parent in place.parents if parent.name in (IMPRESSIONS, USERS)]
        if above and _DAY.search(str(place)):
            return _files(above[0].parent)[0], {above[0].name: [place]}
        return None, {IMPRESSIONS: [place]}
    if any((place / IMPRESSIONS).glob("dt=*")):
        return place, {table: _data(place / table) for table in (IMPRESSIONS, USERS)}
    found = _data(place)
    of_users = [path for path in found if _OF_USERS.search(str(path.relative_to(place)))]
    return None, {IMPRESSIONS: [path for path in found if path not in of_users], USERS: of_users}


def _data(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and is_data(path))
    return [p for p in paths if not any(part.startswith(("_", ".")) for part in p.relative_to(folder).parts)]


def _spread(paths: Sequence[Path]) -> list[Path]:
    """So many of the files, over all of the days, the first and the last among them."""
    if len(paths) <= FILES:
        return list(paths)
    return [paths[round(n * (len(paths) - 1) / (FILES - 1))] for n in range(FILES)]


def _part(path: Path) -> Part:
    found = _DAY.search(str(path))
    try:
        day = date.fromisoformat(found[1]) if found else None
    except ValueError:
        raise DataError(f"{path}: {found and found[0]} is no day: name the folder dt=YYYY-MM-DD") from None
    if path.name.lower().endswith(PARQUET):
        return Part(path, day, _parquet(path), False)
    with open_text(path, ()) as (plain, header), duckdb.connect() as connection:
        try:
            most = f"limit {ROWS}" if plain.stat().st_size > LARGE else ""
            rows = _ends(connection.sql(f"{scan(plain, header)} {most}").to_arrow_table())
        except duckdb.Error as error:
            raise unreadable(path, error) from error
        refuse_broken_lines(connection, path, plain, header)
    # beside the file's own, DuckDB brings those of folders like dt=2026-01-05
    own = rows.select([f"c{n}" for n in range(len(header.names))])
    return Part(path, day, own.rename_columns(_distinct(header.names)), True)


def _parquet(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            groups = sorted({0, file.num_row_groups - 1})
            rows = _ends(file.read_row_groups(groups if file.num_row_groups else []))
    except (pa.ArrowException, OSError) as error:
        message = f"{path}: unreadable Parquet: {str(error).splitlines()[0]}"
        raise DataError(message, breaks="readable") from error
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in rows.columns
    ]
    return pa.table(columns, names=_distinct(rows.column_names))


def _ends(rows: pa.Table) -> pa.Table:
    if rows.num_rows <= 2 * ROWS:
        return rows
    return pa.concat_tables([rows.slice(0, ROWS), rows.slice(rows.num_rows - ROWS)])


def _distinct(names: Sequence[str]) -> list[str]:
    """A name that is there again is no column of its own to guess at."""
    return [name if name not in names[:place] else "" for place, name in enumerate(names)]
