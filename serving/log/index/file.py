"""How is the index's file opened, and made?

Every part of the index has a connection of its own to the one file, which is in WAL mode: readers never wait
for a writer. Nothing is flushed to disk a commit.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from training.contract.errors import MtfError

_SCHEMA_VERSION = 6
_TEXT_USERS = 1000  # is added to the version where users' ids are text
# SQLite makes a number of a text of digits in a column of numbers, and so one id of 007 and 7. Ids have no
# declared type, but where a user's is the row's own number, for speed.
_USER_ROW = "user_id INTEGER PRIMARY KEY"


class IndexUnreachable(MtfError):
    """The index is behind a network, and did not answer or refused."""


FAILURES = (sqlite3.Error, IndexUnreachable)


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; a transaction is begun by name."""
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def prepare(connection: sqlite3.Connection, tables: Iterable[str], text_users: bool) -> None:
    """Make the tables; those of another version are dropped, for an index may be lost."""
    connection.execute("BEGIN IMMEDIATE")
    wanted = _SCHEMA_VERSION + (_TEXT_USERS if text_users else 0)
    with connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != wanted:
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                connection.execute(f'DROP TABLE "{table}"')
            for statement in ";".join(tables).split(";"):
                if text_users:
                    statement = statement.replace(_USER_ROW, "user_id TEXT PRIMARY KEY")
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {wanted}")
