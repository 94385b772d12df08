"""What is a user's state while they are served? Read from Feast's online store, moved by their feedback.

One ``OnlineState`` a process; its methods may be called from several threads. It reads the
configuration and the registry that ``training.features.apply`` wrote, once, when they appear.

It reads and writes through the provider's ``online_read`` and ``online_write_batch``, which take many
users at once and hand over protobuf values: what the SDK's calls for data frames and responses add to
them is most of their time (28 ms a row of a push, 1 ms of a read). Our own store also reads every view at
once and without those values (``WideSqliteOnlineStore.reader``), which take longer than the query.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from feast import FeatureStore, FeatureView, RepoConfig
from feast.infra.provider import Provider, get_provider
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_repo.feast_hooks import redis_client
from feature_repo.online_store import Row, WideSqliteOnlineStore
from serving.state.missing import StoreError, configuration
from serving.state.questions import Feedback, StateRequest, nobody
from training.contract.errors import MtfError
from training.contract.files import locked
from training.contract.session import SessionRules, add_feedback, is_current
from training.contract.settings import Settings
from training.contract.state import context_values, days_since, session_columns

SESSION_VIEW = "user_session"
_Row = tuple[Any, ...]
WRITE_SECONDS = 1.0  # longest wait of feedback for Redis, or for another worker's hold on the user


class _Connection(NamedTuple):
    """Feast's way to the online store, with a connection of its own."""

    provider: Provider
    config: RepoConfig

    def redis(self) -> Any:
        """The client of a store that is Redis."""
        return redis_client(self.provider.online_store, self.config)


_Writer = tuple[_Connection, FeatureView]


class _Reader:
    """Rows of users, and the states that they make.

    ``read`` gives the values of ``names``, the features of every view, a row a user; null where unknown.
    """

    def __init__(
        self, settings: Settings, names: Sequence[str], read: Callable[[Sequence[int | str]], list[_Row]]
    ) -> None:
        self.read = read
        self._spec = settings.state_spec
        self._zone = settings.calendar.zone
        self._gap = settings.session.gap
        place = {name: at for at, name in enumerate(names)}
        self._seen = itemgetter(place["sess_session_id"], place["sess_last_ts"], place["hist_last_ts"])
        self._categories = [(name, place[name]) for name in self._spec.categorical]
        # rows of the specification's matrix: those that a store has, and those of the request's own time
        numbers = self._spec.numbers
        self._stored = [at for at, name in enumerate(numbers) if name in place]
        self._places = [place[numbers[at]] for at in self._stored]
        sums = session_columns(settings.signal_names, settings.head_names)
        self._sums = np.array([at for at, name in enumerate(numbers) if name in sums], dtype=int)
        self._days = numbers.index("hist_days_since_last") if "hist_days_since_last" in numbers else None
        self._context = [(name, numbers.index(name)) for name in self._spec.inputs("context")]

    def states(self, requests: Sequence[StateRequest], rows: Sequence[_Row]) -> np.ndarray:
        """float32[n, d] of n requests, from the rows that were read for their users."""
        numbers = np.zeros((len(self._spec.numbers), len(rows)))
        # null and unknown alike are NaN, which the specification takes for 0
        numbers[self._stored] = np.array([[row[at] for at in self._places] for row in rows], np.float64).T
        seen = [self._seen(row) for row in rows]
        for at, (request, (session_id, session_ts, _)) in enumerate(zip(requests, seen, strict=True)):
            session = {"sess_session_id": session_id, "sess_last_ts": session_ts}
            if not is_current(session, request.session_id, request.event_ts, self._gap):
                numbers[self._sums, at] = 0.0
        if self._days is not None:
            numbers[self._days] = [
                days_since(last, request.event_ts, self._zone)
                for request, (_, _, last) in zip(requests, seen, strict=True)
            ]
        contexts = [context_values(request.event_ts, self._zone) for request in requests]
        for name, at in self._context:
            numbers[at] = [values[name] for values in contexts]
        categories = {name: [row[at] for row in rows] for name, at in self._categories}
        return self._spec.fill(numbers, categories)


class OnlineState:
    """States of users, assembled by the settings' state specification."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.layout.feast.absolute()
        self._spec = settings.state_spec
        self._budget = settings.serving.state_budget_ms / 1000.0
        self._rules = SessionRules.of(settings)
        # two stores, hence two connections: a reader never sees half of what the writer is writing
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._reader: _Reader | None = None
        self._writer: _Writer | None = None
        # but one registry, which says what they hold
        self._definitions: FeatureStore | None = None
        self._definitions_lock = threading.Lock()

    def read(self, requests: Sequence[StateRequest]) -> np.ndarray:
        """States float32[n, d] of n requests, in one read of the store.

        A user never seen gives zeros where nothing is known; so do the session's entries when the
        stored session is another one or has been idle for longer than the gap. Raises
        :class:`StoreError` when the store is missing, fails, or takes longer than
        ``serving.state_budget_ms``.
        """
        if not self._read_lock.acquire(timeout=self._budget):
            raise StoreError(f"the online store was busy for {self._budget * 1000:g} ms")
        try:
            with self._failures():
                if self._reader is None:
                    self._reader = self._open_reader()
                reader = self._reader
                started = time.perf_counter()
                rows = reader.read([request.user_id for request in requests])
                elapsed = time.perf_counter() - started
        finally:
            self._read_lock.release()
        if elapsed > self._budget:
            raise StoreError(
                f"the online store took {elapsed * 1000:.0f} ms, more than serving.state_budget_ms"
            )
        return reader.states(requests, rows)

    def feedback(self, batch: Sequence[Feedback]) -> None:
        """Add what users did to their sessions, in order; their next states hold it.

        :func:`training.contract.session.add_feedback` has the rules. Raises :class:`StoreError` when
        the store did not take it.
        """
        with self._write_lock, self._failures():
            if self._writer is None:
                self._writer = self._open_writer()
            connection, view = self._writer
            users = sorted({feedback.user_id for feedback in batch}, key=str)
            with self._only_writer(connection, users):
                keys = {user_id: _key(user_id) for user_id in users}
                rows = connection.provider.online_read(connection.config, view, list(keys.values()), None)
                sessions = {user: _python(row) for user, (_, row) in zip(users, rows, strict=True)}
                moved = {}
                for feedback in batch:
                    session = add_feedback(
                        sessions[feedback.user_id],
                        self._rules,
                        feedback.session_id,
                        feedback.request_id,
                        feedback.event_ts.astimezone(UTC),
                        feedback.events,
                        feedback.before,
                        feedback.shown,
                        feedback.shown_before,
                    )
                    if session is not None:
                        sessions[feedback.user_id] = moved[feedback.user_id] = session
                if moved:
                    data: list[Row] = [
                        (keys[user_id], _protobuf(session), session["sess_last_ts"], None)
                        for user_id, session in moved.items()
                    ]
                    connection.provider.online_write_batch(connection.config, view, data, None)

    def _open_reader(self) -> _Reader:
        """Of the features that the feature service takes."""
        connection = self._open(self._budget)
        definitions = self._defined(connection.config)
        service = definitions.get_feature_service(f"state_{self._spec.version}")
        views = [
            (definitions.get_feature_view(part.name), [feature.name for feature in part.features])
            for part in service.feature_view_projections
        ]
        store, config = connection.provider.online_store, connection.config
        wide = store if isinstance(store, WideSqliteOnlineStore) else None
        read = _rows(connection, views) if wide is None else wide.reader(config, views)
        read([nobody(self._settings)])  # the first read opens the connection: not what the budget is about
        if wide is not None:
            wide.wait_at_most(config, self._budget)
        return _Reader(self._settings, [name for _, names in views for name in names], read)

    def _open_writer(self) -> _Writer:
        connection = self._open(WRITE_SECONDS)
        return connection, self._defined(connection.config).get_feature_view(SESSION_VIEW)

    def _defined(self, config: RepoConfig) -> FeatureStore:
        """What is registered; it reads and writes no state."""
        with self._definitions_lock:
            if self._definitions is None:
                self._definitions = FeatureStore(config=config)
            return self._definitions

    def _open(self, seconds: float) -> _Connection:
        """A connection to the store; with Redis no call on it waits longer than ``seconds``."""
        path = configuration(self._settings)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        registry = content["registry"]
        # the copy of the registry that is taken may be from the middle of a materialisation
        registry.update(serve_features_while_materializing=True)
        if registry.get("registry_type") != "sql":
            if not Path(registry["path"]).exists():  # Feast would write an empty one
                raise StoreError(f"the feature registry {registry['path']} is missing: run `mtf day` again")
            # never looks at the file again, which a materialisation rewrites in place
            registry.update(cache_mode="thread")
        content["offline_store"] = {"type": "duckdb"}  # nothing is read of it, and Spark's would be imported
        online = content["online_store"]
        if online["type"] != self._settings.store.online_type:
            raise StoreError(
                f"{path} has an online store of type {online['type']}, the settings say "
                f"{self._settings.store.online_type}: materialise a day to bring it in line"
            )
        if online["type"] == "redis":
            online["connection_string"] = _with_password(online["connection_string"])
            online["connection_string"] += f",socket_timeout={seconds},socket_connect_timeout={seconds}"
        config = RepoConfig(**content)
        connection = _Connection(get_provider(config), config)
        if online["type"] == "redis":
            # redis-py would try four times, with seconds of sleep between
            connection.redis().set_retry(Retry(NoBackoff(), 0))
        return connection

    @contextmanager
    def _only_writer(self, connection: _Connection, users: Iterable[int | str]) -> Iterator[None]:
        """Keep the other workers from moving the same users between our read and our write.

        ``users`` are in ascending order, in which every worker locks: none waits for one that waits
        for it.
        """
        if self._settings.store.online == "redis":
            redis = connection.redis()
            with ExitStack() as held:
                for user_id in users:
                    name = f"mtf:feedback:{user_id}"
                    lock = redis.lock(name, timeout=2 * WRITE_SECONDS, blocking_timeout=WRITE_SECONDS)
                    held.enter_context(lock)
                yield
            return
        with locked(self._folder / "feedback.lock"):
            yield

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Whatever the SDK raises (SQLite's, Redis', its own, a registry being written) is one error."""
        try:
            yield
        except MtfError:
            raise
        except Exception as error:
            raise StoreError(f"the online store failed: {type(error).__name__}: {error}") from error


def _with_password(address: str) -> str:
    """An address of ``feature_store.yaml`` with what it takes from the environment, as Feast reads it."""
    whole = os.path.expandvars(address)
    if "${" in whole:
        raise StoreError(f"the online store's address needs a variable that is not set: {address}")
    return whole


def _key(user_id: int | str) -> EntityKey:
    value = Value(string_val=user_id) if isinstance(user_id, str) else Value(int64_val=user_id)
    return EntityKey(join_keys=["user_id"], entity_values=[value])


def _rows(
    connection: _Connection, views: Sequence[tuple[FeatureView, list[str]]]
) -> Callable[[Sequence[int | str]], list[_Row]]:
    """Reads the named features of every view from any store, as ``WideSqliteOnlineStore.reader`` does."""

    def read(users: Sequence[int | str]) -> list[_Row]:
        keys = [_key(user) for user in users]
        parts = []
        for view, names in views:
            # a list of its own: Feast's Redis store adds a name to it at every read
            found = connection.provider.online_read(connection.config, view, keys, list(names))
            parts.append([tuple(map(_python(row).get, names)) for _, row in found])
        return [tuple(chain.from_iterable(rows)) for rows in zip(*parts, strict=True)]

    return read


def _python(row: Mapping[str, Value] | None) -> dict[str, Any]:
    """A row of the store as Python values; empty for a user it does not have."""
    values = {}
    for name, value in (row or {}).items():
        kind = value.WhichOneof("val")
        if kind == "unix_timestamp_val":
            values[name] = feast_value_type_to_python_type(value)
        else:
            values[name] = None if kind is None else getattr(value, kind)
    return values


def _protobuf(session: Mapping[str, Any]) -> dict[str, Value]:
    values = {}
    for name, value in session.items():
        if isinstance(value, str):
            values[name] = Value(string_val=value)
        elif isinstance(value, datetime):
            values[name] = Value(unix_timestamp_val=int(value.timestamp()))
        else:
            values[name] = Value(double_val=value)
    return values
