"""The embedded online store: SQLite with one row a user and view, a column a feature.

Feast's own SQLite store keeps a row per user *and feature* under two indexes: 21 rows and 4.5 KB a user
for the default state, and a floor of some 5 us for each of them however they are written. This one is
named in ``feature_store.yaml`` by its dotted path, which is how Feast takes stores that are not its own;
what ``feast`` reads from it is what it would read from its own. ``sqlite3 online.db`` shows it in the clear.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import Entity, FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.types import Bool, FeastType, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

# how SQLite keeps a feature, and the member of Feast's Value that it is read into; any other type is kept
# as the bytes of its Value
KINDS: dict[FeastType, tuple[str, str | None]] = {
    Float64: ("REAL", "double_val"),
    Float32: ("REAL", "float_val"),
    Int64: ("INTEGER", "int64_val"),
    Int32: ("INTEGER", "int32_val"),
    Bool: ("INTEGER", "bool_val"),
    String: ("TEXT", "string_val"),
    UnixTimestamp: ("INTEGER", "unix_timestamp_val"),
}
OTHER: tuple[str, str | None] = ("BLOB", None)
_CONVERTED = ("bool_val", "unix_timestamp_val", None)  # members whose values SQLite keeps in another type
ROWS_A_TRANSACTION = 10_000  # what the feedback's own write waits for: 0.06 s of CPU for 14 features
BUSY_MS = 5_000

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
Progress = Callable[[int], Any] | None


class WideSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    type: Literal["feature_repo.online_store.WideSqliteOnlineStore"] = (
        "feature_repo.online_store.WideSqliteOnlineStore"  # type: ignore[assignment]  # Feast's says "sqlite"
    )


class WideSqliteOnlineStore(OnlineStore):
    """Reads and writes as Feast's own store does: values, nulls, whole seconds, the last write wins."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make the views' tables; a feature of another type than before is unknown until written again."""
        connection = self._connected(config)
        # readers go on while a day is written; the mode stays with the file
        connection.execute("PRAGMA journal_mode=WAL")
        for view in tables_to_keep:
            table = _table(config, view)
            with connection:
                if "feature_name" in _columns(connection, table):  # of Feast's own layout
                    connection.execute(f"DROP TABLE {table}")
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} "
                    "(entity_key BLOB PRIMARY KEY, event_ts INTEGER, created_ts INTEGER) WITHOUT ROWID"
                )
                present = _columns(connection, table)
                for field in view.features:
                    kind, _ = KINDS.get(field.dtype, OTHER)
                    if present.get(field.name, kind) != kind:
                        connection.execute(f"ALTER TABLE {table} DROP COLUMN {_quoted(field.name)}")
                        del present[field.name]
                    if field.name not in present:
                        connection.execute(f"ALTER TABLE {table} ADD COLUMN {_quoted(field.name)} {kind}")
        for view in tables_to_delete:
            with connection:
                connection.execute(f"DROP TABLE IF EXISTS {_table(config, view)}")

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Progress
    ) -> None:
        """Write users' values; features that a row does not name keep theirs."""
        members = _members(table)
        groups: dict[tuple[str, ...], list[tuple[Any, ...]]] = defaultdict(list)
        for key, values, event_ts, created_ts in data:
            groups[tuple(values)].append(
                (
                    serialize_entity_key(key, config.entity_key_serialization_version),
                    _seconds(event_ts),
                    None if created_ts is None else _seconds(created_ts),
                    *[_plain(value, members[name]) for name, value in values.items()],
                )
            )
        connection = self._connected(config)
        with connection:
            for names, rows in groups.items():
                connection.executemany(_upsert(_table(config, table), names), rows)
        if progress:
            progress(len(data))

    def write_arrow(self, config: RepoConfig, view: FeatureView, rows: pa.Table) -> None:
        """Write a row a user from Arrow: the view's join keys, features and timestamps, as columns.

        Sorted by key, so that the table grows in its own order, in transactions of
        :data:`ROWS_A_TRANSACTION` users.
        """
        keys = entity_keys(config, view, rows)
        order = np.argsort(np.array(keys, dtype=object), kind="stable")
        rows = rows.take(pa.array(order))
        names = [field.name for field in view.features]
        statement = _upsert(_table(config, view), names)
        source = view.batch_source
        assert source is not None  # a plain view has one
        connection = self._connected(config)
        for first in range(0, len(order), ROWS_A_TRANSACTION):
            part = rows.slice(first, ROWS_A_TRANSACTION)
            created = source.created_timestamp_column
            columns = [
                [keys[place] for place in order[first : first + ROWS_A_TRANSACTION]],
                whole_seconds(part[source.timestamp_field]),
                whole_seconds(part[created]) if created else [None] * len(part),
                *[_column(part[field.name], field.dtype) for field in view.features],
            ]
            with connection:
                connection.executemany(statement, zip(*columns, strict=True))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        members = _members(table)
        names = [name for name in requested_features or members if name in members]
        keys = [serialize_entity_key(key, config.entity_key_serialization_version) for key in entity_keys]
        columns = ", ".join(map(_quoted, ["entity_key", "event_ts", *names]))
        rows = self._connected(config).execute(
            f"SELECT {columns} FROM {_table(config, table)} "  # noqa: S608 -- quoted names and question marks
            f"WHERE entity_key IN ({','.join('?' * len(keys))})",
            keys,
        )
        found = {row[0]: row for row in rows}
        answers: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for key in keys:
            if key not in found:
                answers.append((None, None))
                continue
            _, event_ts, *values = found[key]
            read = {name: _value(value, members[name]) for name, value in zip(names, values, strict=True)}
            answers.append((datetime.fromtimestamp(event_ts, UTC), read))
        return answers

    def reader(
        self, config: RepoConfig, views: Sequence[tuple[FeatureView, Sequence[str]]]
    ) -> Callable[[Sequence[int | str]], list[tuple[Any, ...]]]:
        """Reads the named features of several views, one after the other, as Python values: a row a user.

        What :meth:`online_read` gives, null where the store does not have the user, in one statement and
        without a protobuf message a value: at every request of a service those take longer than the query.
        The views have one join key, the user's id.
        """
        entity = views[0][0].entity_columns[0]
        key = key_of(config, entity.name, entity.dtype.to_value_type())
        columns = [f"v{at}.{_quoted(name)}" for at, (_, names) in enumerate(views) for name in names]
        joins = [
            f"LEFT JOIN {_table(config, view)} v{at} ON v{at}.entity_key = asked.key"
            for at, (view, _) in enumerate(views)
        ]
        selection = f"SELECT asked.place, {', '.join(columns)} FROM asked {' '.join(joins)}"  # noqa: S608
        members = [member for view, names in views for member in map(_members(view).get, names)]
        # SQLite's own values are Python's, but for these
        others = [(at, member) for at, member in enumerate(members) if member in _CONVERTED]

        def read(users: Sequence[int | str]) -> list[tuple[Any, ...]]:
            marks = ",".join(f"({place},?)" for place in range(len(users)))
            rows = self._connected(config).execute(
                f"WITH asked(place, key) AS (VALUES {marks}) {selection}",
                [key(user) for user in users],
            )
            found = sorted(rows, key=itemgetter(0))  # they come in this order, which SQL does not promise
            return [_converted(row[1:], others) for row in found]

        return read

    def wait_at_most(self, config: RepoConfig, seconds: float) -> None:
        """Let this connection wait no longer than this for another's lock."""
        self._connected(config).execute(f"PRAGMA busy_timeout={round(seconds * 1000)}")

    def purge(self, config: RepoConfig, view: FeatureView, before: datetime) -> int:
        """Remove the users whose row of a view is stamped before an instant; how many they were."""
        connection = self._connected(config)
        with connection:
            return connection.execute(
                f"DELETE FROM {_table(config, view)} WHERE event_ts < ?",  # noqa: S608
                [_seconds(before)],
            ).rowcount

    def forget(self, config: RepoConfig, key: bytes) -> int:
        """Remove a user by their key from every table, and every byte of them from the file; how many rows
        they had. Nobody else may have the file open."""
        connection = self._connected(config)
        connection.execute("PRAGMA secure_delete=ON")
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        with connection:
            removed = sum(
                connection.execute(f"DELETE FROM {_quoted(name)} WHERE entity_key = ?", [key]).rowcount  # noqa: S608
                for (name,) in tables
                if "entity_key" in _columns(connection, _quoted(name))
            )
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        _path(config).unlink(missing_ok=True)

    def _connected(self, config: RepoConfig) -> sqlite3.Connection:
        if self._connection is None:
            path = _path(config)
            path.parent.mkdir(exist_ok=True)
            # its users take turns by locks of their own
            self._connection = sqlite3.connect(path, check_same_thread=False)
            # no flush to disk a commit: a power cut may cost the last of them, which the log and the
            # exports have, and never the file
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        return self._connection


def entity_keys(config: RepoConfig, view: FeatureView, rows: pa.Table) -> list[bytes]:
    """The users' keys as Feast serialises them, for a table with the view's join keys."""
    version = config.entity_key_serialization_version
    columns = [(entity.name, entity.dtype.to_value_type()) for entity in view.entity_columns]
    if [kind for _, kind in columns] == [ValueType.INT64]:
        name = columns[0][0]
        before = _before_number(config, name)
        values = rows[name].to_numpy().astype("<i8")
        whole = np.empty((len(values), len(before) + 8), dtype=np.uint8)
        whole[:, :-8] = np.frombuffer(before, np.uint8)
        whole[:, -8:] = values.view(np.uint8).reshape(-1, 8)
        return sliced(whole)
    names = [name for name, _ in columns]
    protos = [python_values_to_proto_values(rows[name].to_pylist(), kind) for name, kind in columns]
    return [
        serialize_entity_key(EntityKey(join_keys=names, entity_values=values), version)
        for values in zip(*protos, strict=True)
    ]


def key_of(config: RepoConfig, name: str, kind: ValueType) -> Callable[[Any], bytes]:
    """The key of a user, as Feast serialises it."""
    if kind == ValueType.INT64:
        before = _before_number(config, name)
        return lambda user: before + user.to_bytes(8, "little", signed=True)
    # of a text: its type, its length in four bytes, and its bytes
    empty = EntityKey(join_keys=[name], entity_values=[Value(string_val="")])
    start = serialize_entity_key(empty, config.entity_key_serialization_version)[:-4]

    def text_key(user: str) -> bytes:
        content = user.encode()
        return start + len(content).to_bytes(4, "little") + content

    return text_key


def _before_number(config: RepoConfig, name: str) -> bytes:
    """What the keys of all entities with one integer key begin with; its eight bytes, low first, follow."""
    zero = EntityKey(join_keys=[name], entity_values=[Value(int64_val=0)])
    return serialize_entity_key(zero, config.entity_key_serialization_version)[:-8]


def sliced(rows: np.ndarray) -> list[bytes]:
    """The rows of a uint8[n, w] as bytes."""
    buffer, width = rows.tobytes(), rows.shape[1]
    return [buffer[at : at + width] for at in range(0, len(buffer), width)]


def whole_seconds(column: pa.ChunkedArray) -> list[int | None]:
    """Instants as seconds since 1970, towards zero as Feast takes them; null where there is none."""
    micros = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return pc.divide(micros, 1_000_000).to_pylist()


def _column(column: pa.ChunkedArray, dtype: FeastType) -> list[Any]:
    """A feature's values as SQLite takes them; it makes null of not-a-number, as Feast does."""
    kind, member = KINDS.get(dtype, OTHER)
    if member is None:
        values = python_values_to_proto_values(column.to_numpy(zero_copy_only=False), dtype.to_value_type())
        return [value.SerializeToString() for value in values]
    if dtype is UnixTimestamp:
        return whole_seconds(column)
    if kind == "REAL":
        width = pa.float32() if dtype is Float32 else pa.float64()
        return column.cast(width).to_numpy(zero_copy_only=False).tolist()
    if column.null_count == 0 and kind == "INTEGER":
        return column.to_numpy(zero_copy_only=False).tolist()
    return column.to_pylist()


def _columns(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    return {row[1]: row[2] for row in connection.execute(f"PRAGMA table_info({table})")}


def _members(view: FeatureView) -> dict[str, str | None]:
    return {field.name: KINDS.get(field.dtype, OTHER)[1] for field in view.features}


def _plain(value: Value, member: str | None) -> Any:
    if member is None:
        return value.SerializeToString()
    return getattr(value, member) if value.WhichOneof("val") == member else None


def _converted(row: tuple[Any, ...], others: Sequence[tuple[int, str | None]]) -> tuple[Any, ...]:
    """The row with the values at these places, of these members, as Feast gives them in Python."""
    if not others:
        return row
    values = list(row)
    for place, member in others:
        stored = values[place]
        if stored is None:
            continue
        if member == "unix_timestamp_val":
            values[place] = datetime.fromtimestamp(stored, UTC)
        elif member == "bool_val":
            values[place] = bool(stored)
        else:
            values[place] = feast_value_type_to_python_type(Value.FromString(stored))
    return tuple(values)


def _value(stored: Any, member: str | None) -> Value:
    if stored is None:
        return Value()
    if member is None:
        return Value.FromString(stored)
    field: dict[str, Any] = {member: bool(stored) if member == "bool_val" else stored}
    return Value(**field)


def _upsert(table: str, names: Iterable[str]) -> str:
    columns = [_quoted(name) for name in ("entity_key", "event_ts", "created_ts", *names)]
    changed = ", ".join(f"{name} = excluded.{name}" for name in columns[1:])
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({','.join('?' * len(columns))}) "  # noqa: S608
        f"ON CONFLICT(entity_key) DO UPDATE SET {changed}"
    )


def _path(config: RepoConfig) -> Path:
    return Path(config.repo_path or "") / config.online_store.path


def _table(config: RepoConfig, view: FeatureView) -> str:
    name = compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
    return _quoted(name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _seconds(instant: datetime) -> int:
    """Naive instants are UTC, as everywhere in Feast."""
    return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp())
