"""How is the index's file opened, and made?

Every part of the index has a connection of its own to the one file, which is in WAL mode: readers never wait
for a writer. Nothing is flushed to disk a commit.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

_SCHEMA_VERSION = 5


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; a transaction is begun by name."""
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def prepare(connection: sqlite3.Connection, tables: Iterable[str]) -> None:
    """Make the tables; those of another version are dropped, for an index may be lost."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != _SCHEMA_VERSION:
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                connection.execute(f'DROP TABLE "{table}"')
            for statement in ";".join(tables).split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
