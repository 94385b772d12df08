"""What lies in a day's partition: its files, batches made of its rows, measures, bad rows.

DuckDB reads the Parquet files; nothing here knows Great Expectations.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from training.contract.files import write_atomic
from training.validation.checks import Check, Field


@dataclass(frozen=True)
class ParquetFile:
    """One file of a partition; ``error`` says why it cannot be read, and is None when it can."""

    path: Path
    error: str | None
    rows: int
    types: Mapping[str, str]


def parquet_files(folders: Sequence[Path]) -> list[Path]:
    """Parquet files of some partitions, in order; names starting with a dot are not landed yet."""
    return [
        path
        for folder in folders
        for path in sorted(folder.glob("*.parquet"))
        if not path.name.startswith(".")
    ]


def inspect(paths: Sequence[Path], every_page: bool = False) -> list[ParquetFile]:
    """Read the footer of each file, or all of it, noting what is wrong instead of raising."""
    return [_inspect(path, every_page) for path in paths]


def _inspect(path: Path, every_page: bool) -> ParquetFile:
    try:
        with pq.ParquetFile(path) as file:
            if every_page:
                for group in range(file.num_row_groups):
                    file.read_row_group(group)
            types = {entry.name: type_name(entry.type) for entry in file.schema_arrow}
            return ParquetFile(path, None, file.metadata.num_rows, types)
    except (OSError, pa.ArrowException) as error:
        return ParquetFile(path, f"{type(error).__name__}: {error}".strip()[:300], 0, {})


def type_name(arrow: pa.DataType) -> str:
    """The contract's name of an Arrow type: ``timestamp[us, UTC]``, ``list<float>``, ``string``."""
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow):
        return f"list<{type_name(arrow.value_type)}>"
    if pa.types.is_timestamp(arrow) and arrow.tz:
        return f"timestamp[{arrow.unit}, {arrow.tz}]"
    if pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return "string"
    if pa.types.is_dictionary(arrow):
        return type_name(arrow.value_type)
    return str(arrow)


def manifest(files: Sequence[ParquetFile], root: Path) -> pd.DataFrame:
    """A batch of one row a file: path, readable, error, rows, and the type of each column it holds."""
    names = list(dict.fromkeys(name for file in files for name in file.types))
    rows = [
        {
            "path": str(file.path.relative_to(root)),
            "readable": "yes" if file.error is None else "no",
            "error": file.error,
            "rows": file.rows,
        }
        | {name: None if file.error else file.types.get(name, "missing") for name in names}
        for file in files
    ]
    return pd.DataFrame(rows, columns=["path", "readable", "error", "rows", *names])


class Partition:
    """The readable files of one table and one or more days, as one DuckDB relation.

    Every method raises ``duckdb.Error`` when a page of a file is broken.
    """

    def __init__(self, files: Sequence[ParquetFile]) -> None:
        good = [file for file in files if file.error is None]
        self.columns = set.intersection(*(set(file.types) for file in good)) if good else set()
        self._paths = [str(file.path) for file in good]
        self._only = ""
        self._connection = duckdb.connect()
        self._connection.execute("SET TimeZone = 'UTC'")

    @property
    def empty(self) -> bool:
        return not self._paths

    def _from(self) -> str:
        return f"(FROM {self._files()} {self._only})" if self._only else self._files()

    def _files(self) -> str:
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in self._paths)
        return f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"

    def batch(self, fields: Sequence[Field]) -> pd.DataFrame:
        """The rows, with the given fields as columns."""
        selected = ", ".join(f'{entry.sql} AS "{entry.name}"' for entry in fields)
        table = self._connection.sql(f"SELECT {selected} FROM {self._from()}").to_arrow_table()  # noqa: S608
        return table.to_pandas(split_blocks=True, self_destruct=True)

    def measures(self, expressions: Mapping[str, str]) -> dict[str, Any]:
        """One value for each SQL aggregate."""
        if not expressions:
            return {}
        selected = ", ".join(expressions.values())
        [row] = self._connection.sql(f"SELECT {selected} FROM {self._from()}").fetchall()  # noqa: S608
        return dict(zip(expressions, row, strict=True))

    def repeated(self, key: Sequence[str]) -> int:
        """Rows beyond the first of their key.

        Counted on 64-bit hashes; only where these say that some repeat are the keys compared.
        """
        hashed = f"count(*) - count(DISTINCT hash({', '.join(key)}))"
        exact = f"count(*) - count(DISTINCT ({', '.join(key)}))"
        if self.measures({"repeated": hashed})["repeated"] == 0:
            return 0
        return self.measures({"repeated": exact})["repeated"]

    def counts(self, expression: str, where: str) -> dict[Any, int]:
        """Rows by value of an expression."""
        query = f"SELECT {expression} AS k, count(*) FROM {self._from()} WHERE {where} GROUP BY k ORDER BY k"  # noqa: S608
        return dict(self._connection.sql(query).fetchall())

    def grouped(
        self, key: str, inner: Mapping[str, str], outer: Sequence[str], where: str
    ) -> tuple[Any, ...]:
        """The ``outer`` aggregates over the ``inner`` ones of each group."""
        selected = ", ".join(f"{sql} AS {name}" for name, sql in inner.items())
        groups = f"SELECT {selected} FROM {self._from()} WHERE {where} GROUP BY {key}"  # noqa: S608
        return self._connection.sql(f"SELECT {', '.join(outer)} FROM ({groups})").fetchall()[0]  # noqa: S608

    def users_by_arm(
        self, since: datetime, until: datetime, epoch: int, cohorts: Sequence[int]
    ) -> dict[str, int]:
        """Users of the decisions by the arm of the first session that they began in [since, until).

        Sessions that began in another epoch count for nothing, and neither do users whose state once was
        missing or above ½ at one of the places ``cohorts``.
        """
        apart = " OR ".join(["state IS NULL", *(f"state[{place + 1}] > 0.5" for place in cohorts)])
        own = "epoch IS NULL OR epoch = ?" if "epoch" in self.columns else "? IS NOT NULL"
        query = (
            "SELECT arm, count(*) FROM (SELECT arg_min(arm, began) AS arm FROM "  # noqa: S608
            "(SELECT user_id, arg_min(arm, event_ts) AS arm, min(event_ts) AS began, "
            f"bool_or({apart if cohorts else 'false'}) AS apart FROM {self._from()} WHERE {own} "
            "GROUP BY user_id, session_id) WHERE began >= ? AND began < ? GROUP BY user_id "
            "HAVING NOT bool_or(apart)) GROUP BY arm"
        )
        rows = self._connection.execute(query, [epoch, since, until]).fetchall()
        return {arm: count for arm, count in rows if arm is not None}

    def matching(self, other: "Partition", column: str, where: str) -> "Partition":
        """The rows whose ``column`` is that of a row of ``other`` where ``where`` holds."""
        found = copy.copy(self)
        chosen = f"(SELECT {column} FROM {other._from()} WHERE {where})"  # noqa: S608
        found._only = f"SEMI JOIN {chosen} AS chosen USING ({column})"
        return found

    def unmatched(self, other: "Partition", column: str) -> int:
        """Rows whose ``column`` has no equal in the other partition."""
        query = (
            f"SELECT count(*) FROM {self._from()} AS mine "  # noqa: S608
            f"ANTI JOIN {other._from()} AS theirs ON mine.{column} = theirs.{column}"
        )
        return self._connection.sql(query).fetchall()[0][0]

    def contradicting(self, other: "Partition", key: str, column: str) -> int:
        """Values of ``key`` in both partitions with different values of ``column``."""
        query = (
            f"SELECT count(DISTINCT mine.{key}) FROM {self._from()} AS mine "  # noqa: S608
            f"JOIN {other._from()} AS theirs USING ({key}) WHERE mine.{column} <> theirs.{column}"
        )
        return self._connection.sql(query).fetchall()[0][0]

    def write_bad_rows(
        self, path: Path, checks: Sequence[Check], key: Sequence[str], limit: int, repeated: str | None
    ) -> int:
        """Write the rows that break any of the checks, with a ``reason`` column; returns how many.

        ``repeated`` is the reason given to every copy of a repeated key, or None when none repeats.
        At most ``limit`` rows are written, the first by key.
        """
        source = self._from()
        cases = [f"CASE WHEN {check.bad} THEN {_quoted(check.text)} END" for check in checks if check.bad]
        keys = ", ".join(f'"{column}"' for column in key)
        if repeated:
            source = f"(SELECT *, count(*) OVER (PARTITION BY {keys}) AS _copies FROM {source})"  # noqa: S608
            cases.append(f"CASE WHEN _copies > 1 THEN {_quoted(repeated)} END")
        if not cases:
            return 0
        # a check's text says what must hold, so its negation is what is wrong with the row
        reason = f"'expected: ' || nullif(concat_ws('; ', {', '.join(cases)}), '')"
        excluded = "EXCLUDE (_copies)" if repeated else ""
        query = (
            f"SELECT * {excluded}, {reason} AS reason FROM {source} "  # noqa: S608
            f"WHERE reason IS NOT NULL ORDER BY {keys} LIMIT {limit}"
        )
        table = self._connection.sql(query).to_arrow_table()
        if table.num_rows:
            write_atomic(path, lambda temporary: pq.write_table(table, temporary))
        return table.num_rows


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
