"""A user's state while he is served: read from Feast's online store, moved by his feedback.

One ``OnlineState`` a process; its methods may be called from several threads. It reads the
configuration and the registry that ``training.features.apply`` wrote, once, when they appear.

What Feast's own push does with a data frame takes 28 ms a row, so feedback is written through the
same provider's ``online_write_batch``, which takes protobuf values: under 1 ms.
"""

import fcntl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from feast import FeatureService, FeatureStore, FeatureView, RepoConfig
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis.backoff import NoBackoff
from redis.retry import Retry

from training.contract.errors import MtfError
from training.contract.session import add_feedback, is_current
from training.contract.settings import Settings
from training.contract.state import context_values, days_since, history_columns, session_columns

SESSION_VIEW = "user_session"
WRITE_SECONDS = 1.0  # longest wait of feedback for Redis, or for another worker's hold on the user


class StoreError(MtfError):
    """The online store gave no state, or took none: missing, failing, or too slow."""


class OnlineState:
    """States of users, assembled by the settings' state specification."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.layout.feast.absolute()
        self._spec = settings.state_spec
        self._budget = settings.serving.state_budget_ms / 1000.0
        self._gap = timedelta(minutes=settings.session.gap_minutes)
        self._signals = {signal.name: signal.column for signal in settings.signals}
        self._sums = session_columns(settings.signal_names)
        self._categories = {p.column for p in settings.state.profile if p.kind == "categorical"}
        self._stored = [
            *[p.column for p in settings.state.profile],
            *history_columns(settings.signal_names),
            *self._sums,
        ]
        self._session_refs = [
            f"{SESSION_VIEW}:{name}"
            for name in (*self._sums, "sess_session_id", "sess_last_ts", "request_id")
        ]
        # two stores, hence two connections: a reader never sees half of what the writer is writing
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._reader: tuple[FeatureStore, FeatureService] | None = None
        self._writer: tuple[FeatureStore, FeatureView] | None = None
        # but one registry: Feast keeps resolved features for one registry a process, and with two of
        # them each call would throw away what the other resolved, 5 ms a read
        self._registry: BaseRegistry | None = None
        self._registry_lock = threading.Lock()

    def read(self, user_id: int, session_id: str, event_ts: datetime) -> np.ndarray:
        """State float32[d] of a request at ``event_ts`` (timezone-aware).

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
                store, service = self._reader
                started = time.perf_counter()
                values = store.get_online_features(service, [{"user_id": user_id}]).to_dict()
                elapsed = time.perf_counter() - started
        finally:
            self._read_lock.release()
        if elapsed > self._budget:
            raise StoreError(
                f"the online store took {elapsed * 1000:.0f} ms, more than serving.state_budget_ms"
            )
        stored = {name: column[0] for name, column in values.items()}
        raw: dict[str, Any] = {
            name: [stored[name]] if name in self._categories else _number(stored[name])
            for name in self._stored
        }
        if not is_current(stored, session_id, event_ts, self._gap):
            raw.update(dict.fromkeys(self._sums, _number(0.0)))
        offset = self._settings.calendar.utc_offset_hours
        raw["hist_days_since_last"] = _number(days_since(stored["hist_last_ts"], event_ts, offset))
        for name, value in context_values(event_ts, offset).items():
            raw[name] = _number(value)
        return self._spec.assemble(raw)[0]

    def feedback(
        self,
        user_id: int,
        session_id: str,
        request_id: str,
        event_ts: datetime,
        events: Iterable[Mapping[str, Any]],
    ) -> None:
        """Add what the user did with one request to his session; his next state holds it.

        ``events`` has one mapping per shown item, with the signals' 0/1 columns and ``play_time_ms``;
        :func:`training.contract.session.add_feedback` has the rules. Raises :class:`StoreError` when
        the store did not take it.
        """
        with self._write_lock, self._failures():
            if self._writer is None:
                self._writer = self._open_writer()
            store, view = self._writer
            with self._only_writer(store, user_id):
                values = store.get_online_features(self._session_refs, [{"user_id": user_id}]).to_dict()
                session = add_feedback(
                    {name: column[0] for name, column in values.items()},
                    self._signals,
                    session_id,
                    request_id,
                    event_ts.astimezone(UTC),
                    events,
                    self._gap,
                )
                if session is not None:
                    key = EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user_id)])
                    row = (key, _protobuf(session), session["sess_last_ts"], None)
                    store.provider.online_write_batch(store.config, view, [row], None)

    def _open_reader(self) -> tuple[FeatureStore, FeatureService]:
        store = self._open(self._budget)
        service = store.get_feature_service(f"state_{self._spec.version}")
        # the first call loads the registry and opens the connection: not what the budget is about
        store.get_online_features(service, [{"user_id": -1}])
        return store, service

    def _open_writer(self) -> tuple[FeatureStore, FeatureView]:
        store = self._open(WRITE_SECONDS)
        return store, store.get_feature_view(SESSION_VIEW)

    def _open(self, seconds: float) -> FeatureStore:
        """A store of its own connection; with Redis no call on it waits longer than ``seconds``."""
        path = self._folder / "feature_store.yaml"
        if not path.exists():
            raise StoreError(f"there is no feature store yet: {path} is written by the first `mtf day`")
        configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
        registry = configuration["registry"]
        if not Path(registry["path"]).exists():  # Feast would write an empty one
            raise StoreError(f"the feature registry {registry['path']} is missing: run `mtf day` again")
        # "thread" never looks at the file again, which a materialisation rewrites in place; and the
        # copy may have been taken in the middle of one
        registry.update(cache_mode="thread", serve_features_while_materializing=True)
        online = configuration["online_store"]
        if online["type"] != self._settings.store.online:
            raise StoreError(
                f"{path} has an online store of type {online['type']}, the settings say "
                f"{self._settings.store.online}: materialise a day to bring it in line"
            )
        if online["type"] == "redis":
            online["connection_string"] += f",socket_timeout={seconds},socket_connect_timeout={seconds}"
        store = FeatureStore(config=RepoConfig(**configuration))
        with self._registry_lock:
            if self._registry is None:
                self._registry = store.registry
            store._registry = self._registry
        if online["type"] == "redis":
            # redis-py would try four times, with seconds of sleep between
            _redis(store).set_retry(Retry(NoBackoff(), 0))
        else:
            # no flush to disk a commit: a power cut may cost the last feedback of running sessions, of
            # which the log has all, and never the file
            store.provider.online_store._get_conn(store.config).execute("PRAGMA synchronous=NORMAL")
        return store

    @contextmanager
    def _only_writer(self, store: FeatureStore, user_id: int) -> Iterator[None]:
        """Keep the other workers from moving the same user between our read and our write."""
        if self._settings.store.online == "redis":
            name = f"mtf:feedback:{user_id}"
            with _redis(store).lock(name, timeout=2 * WRITE_SECONDS, blocking_timeout=WRITE_SECONDS):
                yield
            return
        with (self._folder / "feedback.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file, or dying, releases it
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


def _redis(store: FeatureStore) -> Any:
    """The client of the online store; Feast has no public name for it."""
    return store.provider.online_store._get_client(store.config.online_store)


def _number(value: float | None) -> np.ndarray:
    return np.array([np.nan if value is None else value], dtype=np.float64)


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
