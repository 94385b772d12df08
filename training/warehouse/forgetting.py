"""Taking a user out of the warehouse: the tables, of which no byte of theirs is left, and the exports."""

# ruff: noqa: S608 -- SQL is composed of the database's own names; values are bound

from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from training.contract.errors import MtfError
from training.contract.files import write_atomic
from training.contract.log import Id
from training.contract.settings import Settings

_OWN = "cast(user_id as varchar) = ?"


def forget(settings: Settings, user: Id) -> int:
    """Take a user's rows out of every table and export; how many there were in the tables.

    DuckDB keeps deleted rows in the file, so it is written anew and changes places. What the rows of all
    users make together is as it was: the next transform makes it anew, of the lake as it then is. Raises
    :class:`MtfError` where the warehouse is open elsewhere.
    """
    removed = 0
    if settings.layout.warehouse.exists():
        removed = _forget_rows(settings.layout.warehouse, user)
        write_atomic(settings.layout.warehouse, lambda fresh: _copy(settings.layout.warehouse, fresh))
    removed += _forget_in_files(settings.layout.spark_tables, user)
    _forget_in_files(settings.layout.marts, user)
    return removed


def _forget_rows(warehouse: Path, user: Id) -> int:
    try:
        with duckdb.connect(str(warehouse)) as connection:
            tables = connection.execute(
                "select schema_name, table_name from duckdb_columns() join duckdb_tables() "
                "using (database_name, schema_name, table_name) where column_name = 'user_id'"
            ).fetchall()
            connection.execute("begin")
            removed = 0
            for schema, table in sorted(tables):
                name = f'"{schema}"."{table}"'
                removed += connection.execute(f"delete from {name} where {_OWN}", [str(user)]).fetchall()[0][
                    0
                ]
            connection.execute("commit")
            connection.execute("checkpoint")
    except duckdb.IOException as error:
        raise MtfError(
            f"the warehouse is open elsewhere: run this again when dbt is done ({error})"
        ) from error
    return removed


def _copy(warehouse: Path, fresh: Path) -> None:
    fresh.unlink()  # DuckDB makes its file itself
    with duckdb.connect() as connection:
        connection.execute(f"attach {_text(warehouse)} as kept (read_only)")
        connection.execute(f"attach {_text(fresh)} as fresh")
        connection.execute("copy from database kept to fresh")
        connection.execute("detach fresh")


def _forget_in_files(tables: Path, user: Id) -> int:
    paths = sorted(tables.glob("*/dt=*/*.parquet"))
    return sum(_forget_in_file(path, user) for path in paths if "user_id" in pq.read_schema(path).names)


def _forget_in_file(path: Path, user: Id) -> int:
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        source = f"read_parquet({_text(path)}, hive_partitioning = false)"
        found = connection.execute(f"select count(*) from {source} where {_OWN}", [str(user)]).fetchall()
        if found == [(0,)]:
            return 0

        def write(temporary: Path) -> None:
            rows = f"select * from {source} where not coalesce({_OWN}, false)"
            target = f"{_text(temporary)} (format parquet, compression zstd)"
            connection.execute(f"copy ({rows}) to {target}", [str(user)])

        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)  # Spark's, of the old bytes
        write_atomic(path, write)
    return found[0][0]


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
