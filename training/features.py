"""Feature values: register their definitions, materialise a day, read them as of an instant.

Point in time: profile and history rows reach the online store when their day is materialised, at the
local midnight that ends it. A request on day D is therefore answered with what the days before D gave:
histories stamped up to D's midnight (which is when the last of them became usable), profiles changed
before it. :func:`historical` reads them as of that midnight, and the session as of the request itself,
because feedback moves it at once. Until the night's run is done, and when a day's log is late, the store is
not that far: a decision says up to when it was (``features_until``), and is then read as of that.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
import yaml

from training.contract import databases
from training.contract.errors import DataError
from training.contract.files import read_json, write_atomic, write_json_atomic, write_text_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.session import is_current
from training.contract.settings import Settings
from training.contract.state import context_values, days_since, history_columns, session_columns
from training.ingest import late_users

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore, FeatureView

Instants = TypeVar("Instants", datetime, pd.Series)

_log = structlog.get_logger("mtf.features")
PROJECT = "mtf"
# never materialised: its online row is pushed by the service and is at least as new as the batch row
PUSHED = "user_session"
HISTORY = "user_history"
CHANGED = "user_profile"  # its rows are stamped when they changed, on the day that brings them
MICROSECOND = timedelta(microseconds=1)
# a rerun also takes what late rows changed this long before the day
LOOK_BACK = timedelta(days=1)
EMPTY_DAY = date(1970, 1, 1)
ABSOLUTE_TOLERANCE = RELATIVE_TOLERANCE = 1e-4
WORST = 10


def apply(settings: Settings) -> dict[str, Any]:
    """Register every definition of ``feature_repo`` and make the online store ready to be read.

    Idempotent. It writes ``feature_store.yaml``, the one configuration that Feast's own command line
    and the service read too, and an empty partition for each mart, so that features can be read
    before the first day was transformed. A view whose columns changed or whose rows live longer than
    before is materialised anew, and so are all of them in another online store.
    Returns ``{"project", "service", "views": {name: columns}}``.
    """
    from feast import FeatureStore

    from feature_repo import data_sources, entities, feature_services, features

    folder = settings.layout.feast.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = _configuration(settings, folder)
    _drop_broken(folder / "registry.db")
    if _place(folder / "feature_store.yaml") not in (None, _online(configuration)):
        before = FeatureStore(repo_path=str(folder))
        for view in before.list_feature_views():  # how far it was materialised is true of that store only
            before.registry.delete_feature_view(view.name, PROJECT)
    write_text_atomic(folder / "feature_store.yaml", yaml.safe_dump(configuration))
    store = FeatureStore(repo_path=str(folder))
    views = features.views(settings)
    service = feature_services.state(settings)
    for view in views:
        _write_empty_partition(settings, view)
    registered = {view.name: view for view in store.list_feature_views()}
    for view in views:
        known = registered.get(view.name)
        if known is not None and (_columns(known) != _columns(view) or _outlives(view.ttl, known.ttl)):
            # forgets how far it was materialised: what is new is wanted for all days
            store.registry.delete_feature_view(view.name, PROJECT)
    with _quiet():
        store.apply([entities.user, data_sources.session_push(settings), *views, service])
    return {
        "project": PROJECT,
        "service": service.name,
        "views": {view.name: _columns(view) for view in views},
    }


def materialise(settings: Settings, day: date) -> dict[str, Any]:
    """Bring profiles and histories up to the end of local day ``day`` into the online store.

    The window starts at what was materialised last, less :data:`LOOK_BACK`; it ends with the day, or
    with a later day that was materialised before, so that running an earlier day again corrects what
    its rows changed and never puts an old row over a newer one. ``user_session`` is left alone.
    Returns ``{"until", "views": {name: {"rows", "users"}}, "purged": {name: users}}``, the day's own rows
    and, for SQLite, the users whose rows of a view had ended. Raises
    :class:`DataError` naming the mart that cannot be read.
    """
    store = _store(settings)
    start, end = settings.day_start(day), settings.day_start(day + timedelta(days=1))
    record: dict[str, Any] = {"until": end.isoformat(), "views": {}}
    for view in _batch_views(settings, store):
        done, until = view.most_recent_end_time, _usable(view.name, end)
        first = datetime.fromtimestamp(0, UTC) if done is None else min(done, start) - LOOK_BACK
        with _readable(view), _quiet():
            store.materialize(first, until if done is None else max(until, done), feature_views=[view.name])
            record["views"][view.name] = _count(view, _usable(view.name, start), until)
    if settings.store.online == "sqlite":
        record["purged"] = _purge(settings, store, end)
    _note_until(settings, end)
    return record


def _purge(settings: Settings, store: "FeatureStore", end: datetime) -> dict[str, int]:
    """Remove what no state is made of any more: ended sessions, and histories past their ttl."""
    ends = {PUSHED: end - LOOK_BACK - timedelta(minutes=settings.session.gap_minutes)}
    if settings.store.history_ttl_days:
        ends[HISTORY] = end - timedelta(days=settings.store.history_ttl_days)
    return {
        name: store.provider.online_store.purge(store.config, store.get_feature_view(name), before)
        for name, before in ends.items()
    }


def _note_until(settings: Settings, end: datetime) -> None:
    """Tell the service how old its features are; an earlier day run again does not set it back."""
    path = settings.layout.materialised
    if path.exists():
        end = max(end, datetime.fromisoformat(read_json(path)["until"]))
    write_json_atomic(path, {"until": end.isoformat()})


def historical(settings: Settings, entity_df: pd.DataFrame) -> pd.DataFrame:
    """Raw features of (``user_id``, ``event_timestamp``) rows, as a request at that instant saw them.

    ``event_timestamp`` must be timezone-aware. Returns the rows in the order given, with their own
    columns, every profile, history and session input of the state specification, ``hist_last_ts``,
    ``sess_session_id`` and ``sess_last_ts``; null where nothing was known. No value is later than the
    row's timestamp. Feedback at that very instant counts, except, where the rows have a
    ``request_id``, the feedback of the request itself. Where they have ``features_until``, profile and
    history are of that instant if it is before the row's midnight.
    """
    for column in ("user_id", "event_timestamp"):
        if column not in entity_df:
            raise DataError(f"the entity rows lack the column {column}")
    if entity_df["event_timestamp"].dt.tz is None:
        raise DataError("event_timestamp of the entity rows has no time zone")
    store = _store(settings)
    service = _service(settings, store)
    references = {
        p.name: [f"{p.name}:{feature.name}" for feature in p.features]
        for p in service.feature_view_projections
    }
    instants = entity_df["event_timestamp"].dt.tz_convert("UTC").dt.as_unit("us")
    offset = pd.Timedelta(hours=settings.calendar.utc_offset_hours)
    midnights = ((instants + offset).dt.floor("D") - offset).dt.as_unit("us")
    if "features_until" in entity_df:
        until = entity_df["features_until"].dt.tz_convert("UTC").dt.as_unit("us")
        midnights = midnights.where(~(until < midnights), until)
    users = entity_df["user_id"].to_numpy(np.int64)
    parts = [
        _point_in_time(store, users, _usable(name, midnights), features)
        for name, features in references.items()
        if name != PUSHED
    ]
    if "request_id" in entity_df:
        latest = _point_in_time(store, users, instants, [f"{PUSHED}:request_id"])["request_id"]
        own = latest.to_numpy() == entity_df["request_id"].to_numpy()
        instants = instants - pd.to_timedelta(own.astype(np.int64), unit="us")
    parts.append(_point_in_time(store, users, instants, references[PUSHED]))
    return pd.concat([entity_df.reset_index(drop=True), *parts], axis=1)


def parity(settings: Settings, day: date) -> dict[str, Any]:
    """Compare served states of ``day`` with the states that Feast gives for the same instants.

    A sample of ``gate.parity_sample`` decisions with a state of the current specification, drawn by a
    hash of the request id, so the same on every run. Left out, and counted, are decisions of users of
    whose earlier days rows were landed anew since the state was served (:func:`training.ingest.late_users`):
    the exports hold these rows, and the state could not. Whether dbt has run over them yet, and in which
    order days are run, changes no verdict.

    Returns ``{"compared", "mismatched", "share", "behind", "left_out_states", "left_out_users",
    "entries": {entry name: rows that differ}, "worst": [{"request_id", "user_id", "entry", "served",
    "offline"}, …]}``; ``behind`` counts compared states that were served before the store was up to the
    day's beginning, ``worst`` holds each differing request's largest difference.
    """
    spec = settings.state_spec
    decisions, left_out = _sample(settings, day)
    behind = 0 if decisions.empty else int((decisions["features_until"] < settings.day_start(day)).sum())
    if left_out["states"] or behind:
        _log.warning("parity", day=day.isoformat(), compared=len(decisions), behind=behind, left_out=left_out)
    record: dict[str, Any] = {
        "state_spec": spec.version,
        "compared": len(decisions),
        "behind": behind,
        "left_out_states": left_out["states"],
        "left_out_users": left_out["users"],
        "mismatched": 0,
        "share": 0.0,
        "entries": {},
        "worst": [],
    }
    if decisions.empty:
        return record
    misshapen = [request for request, state in _pairs(decisions) if len(state) != spec.width]
    if misshapen:
        raise DataError(
            f"decision {misshapen[0]} of {day} has a state of another width than its specification "
            f"{spec.version}, which has {spec.width} entries ({len(misshapen)} such decisions)"
        )
    served = np.stack(decisions["state"].to_list()).astype(np.float32)
    offline = offline_states(settings, decisions)
    difference = np.abs(served - offline)
    allowed = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(offline)
    wrong = ~(difference <= allowed)  # True for NaN
    rows = np.flatnonzero(wrong.any(axis=1))
    names = spec.entry_names
    entries = Counter(
        {name: int(count) for name, count in zip(names, wrong.sum(axis=0), strict=True) if count}
    )
    worst = sorted(
        ((row, int(np.argmax(np.nan_to_num(difference[row], nan=np.inf)))) for row in rows),
        key=lambda place: (-float(np.nan_to_num(difference[place], nan=np.inf)), place),
    )
    record["mismatched"] = len(rows)
    record["share"] = len(rows) / len(decisions)
    record["entries"] = dict(entries.most_common(WORST))
    record["worst"] = [
        {
            "request_id": str(decisions["request_id"].iloc[row]),
            "user_id": int(decisions["user_id"].iloc[row]),
            "entry": names[entry],
            "served": _plain(served[row, entry]),
            "offline": _plain(offline[row, entry]),
        }
        for row, entry in worst[:WORST]
    ]
    return record


def offline_states(settings: Settings, decisions: pd.DataFrame) -> np.ndarray:
    """States float32[n, d] of requests as the exports give them.

    ``decisions`` has ``request_id``, ``user_id``, ``session_id``, ``event_ts`` and, if known,
    ``features_until`` (both timezone-aware).
    """
    columns = ["request_id", "user_id", "session_id", "event_ts", "features_until"]
    known = decisions[[name for name in columns if name in decisions]]
    raw = historical(settings, known.rename(columns={"event_ts": "event_timestamp"}))
    gap = timedelta(minutes=settings.session.gap_minutes)
    offset = settings.calendar.utc_offset_hours
    instants = [ts.to_pydatetime() for ts in raw["event_timestamp"]]
    current = np.array(
        [
            is_current({"sess_session_id": stored, "sess_last_ts": last}, session_id, event_ts, gap)
            for stored, last, session_id, event_ts in zip(
                raw["sess_session_id"],
                _instants(raw["sess_last_ts"]),
                raw["session_id"],
                instants,
                strict=True,
            )
        ]
    )
    inputs: dict[str, np.ndarray] = {}
    for profile in settings.state.profile:
        values = raw[profile.column]
        inputs[profile.column] = (
            values.astype(object).where(values.notna(), None).to_numpy()
            if profile.kind == "categorical"
            else values.to_numpy(np.float64, na_value=np.nan)
        )
    for name in history_columns(settings.signal_names):
        inputs[name] = raw[name].to_numpy(np.float64, na_value=np.nan)
    for name in session_columns(settings.signal_names):
        inputs[name] = np.where(current, raw[name].to_numpy(np.float64, na_value=np.nan), 0.0)
    inputs["hist_days_since_last"] = np.array(
        [
            days_since(last, event_ts, offset)
            for last, event_ts in zip(_instants(raw["hist_last_ts"]), instants, strict=True)
        ]
    )
    for name in settings.state_spec.inputs("context"):
        inputs[name] = np.array([context_values(event_ts, offset)[name] for event_ts in instants])
    return settings.state_spec.assemble(inputs)


def _configuration(settings: Settings, folder: Path) -> dict[str, Any]:
    # not by its name alone: who follows the imports (dags/sources.py) sees what Feast will load
    from training.materialisation import ArrowComputeEngineConfig

    online: dict[str, Any] = {"type": settings.store.online_type, "path": str(folder / "online.db")}
    if settings.store.online == "redis":
        # skip_dedup: a row corrected by late data keeps its timestamp and must still be written;
        # going backwards is prevented by the window of materialise() and by the session rules
        online = {
            "type": "redis",
            "connection_string": databases.redis(settings),
            "skip_dedup": True,
        }
        if settings.store.redis_key_ttl_days:
            online["key_ttl_seconds"] = settings.store.redis_key_ttl_days * 86_400
    registry = {"path": str(folder / "registry.db"), "cache_ttl_seconds": 0}  # never expires
    if "feast" in settings.postgres.uses:
        registry |= {"registry_type": "sql", "path": settings.postgres.url("feast")}
    return {
        "project": PROJECT,
        "provider": "local",
        "registry": registry,
        "offline_store": {"type": "duckdb"},
        "online_store": online,
        "entity_key_serialization_version": 3,
        "batch_engine": {"type": ArrowComputeEngineConfig().type},
    }


def _online(configuration: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and place of a configuration's online store."""
    online = configuration["online_store"]
    place = online["path"] if "path" in online else online["connection_string"].split(",")[0]
    return online["type"], place


def _place(file: Path) -> tuple[str, str] | None:
    return _online(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.exists() else None


def _outlives(ttl: timedelta | None, before: timedelta | None) -> bool:
    """Whether rows live longer than before; no ttl is for ever."""
    return bool(before) and (not ttl or ttl > before)


def _store(settings: Settings) -> "FeatureStore":
    from feast import FeatureStore

    folder = settings.layout.feast.absolute()
    if not (folder / "feature_store.yaml").exists():
        raise DataError(f"{folder} holds no feature store yet: training.features.apply makes it")
    return FeatureStore(repo_path=str(folder))


def _batch_views(settings: Settings, store: "FeatureStore") -> list["FeatureView"]:
    service = _service(settings, store)
    return [store.get_feature_view(p.name) for p in service.feature_view_projections if p.name != PUSHED]


def _usable(view: str, midnight: Instants) -> Instants:
    """The last stamp of a view's rows that a day beginning at ``midnight`` is served with."""
    return midnight - MICROSECOND if view == CHANGED else midnight


def _service(settings: Settings, store: "FeatureStore") -> "FeatureService":
    return store.get_feature_service(f"state_{settings.state_spec.version}")


def _drop_broken(registry: Path) -> None:
    """Remove a registry that a kill left half-written: it is made again from the definitions."""
    from feast.protos.feast.core.Registry_pb2 import Registry
    from google.protobuf.message import DecodeError

    if registry.exists():
        try:
            Registry.FromString(registry.read_bytes())
        except DecodeError:
            registry.unlink()


def _columns(view: "FeatureView") -> dict[str, str]:
    return {field.name: str(field.dtype) for field in view.features}


def _write_empty_partition(settings: Settings, view: "FeatureView") -> None:
    """A partition without rows, first in the order of days, that fixes the mart's column types."""
    from feast.types import Float64, Int64, String, UnixTimestamp

    instant = pa.timestamp("us", "UTC")
    types = {Float64: pa.float64(), Int64: pa.int64(), String: pa.string(), UnixTimestamp: instant}
    source = view.batch_source
    schema = pa.schema(
        [
            pa.field("user_id", pa.int64()),
            pa.field(source.timestamp_field, instant),
            *[pa.field(field.name, types[field.dtype]) for field in view.features],
        ]
    )
    path = settings.layout.mart(source.name) / f"dt={EMPTY_DAY.isoformat()}" / "part-0.parquet"
    if not path.exists() or pq.read_schema(path) != schema:
        write_atomic(path, lambda temporary: pq.write_table(schema.empty_table(), temporary))


def _point_in_time(
    store: "FeatureStore", users: np.ndarray, instants: pd.Series, references: list[str]
) -> pd.DataFrame:
    """Features of users as of instants, in the order given, without the keys."""
    rows = pd.DataFrame({"user_id": users, "event_timestamp": instants.array, "row": np.arange(len(users))})
    with contextlib.ExitStack() as stack:
        for name in sorted({reference.split(":")[0] for reference in references}):
            stack.enter_context(_readable(store.get_feature_view(name)))
        found = store.get_historical_features(entity_df=rows, features=references).to_df()
    return found.sort_values("row", ignore_index=True).drop(columns=list(rows.columns))


def _instants(column: pd.Series) -> list[datetime | None]:
    return [None if pd.isna(value) else value.to_pydatetime() for value in column]


def _sample(settings: Settings, day: date) -> tuple[pd.DataFrame, dict[str, int]]:
    """Decisions with a current state, and how many ``states`` of ``users`` are left out for late rows.

    The columns are request_id, session_id, user_id, event_ts, state and features_until, which partitions
    that older code landed lack.
    """
    path = settings.layout.partition(DECISIONS, day) / "part-0.parquet"
    left_out = {"states": 0, "users": 0}
    if not path.exists():
        return pd.DataFrame(), left_out
    until = "features_until"
    if until not in pq.read_schema(path).names:
        until = "NULL::TIMESTAMPTZ AS features_until"
    late = late_users(settings, (IMPRESSIONS, USERS), before=day)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("late", late)
        connection.execute(
            "CREATE TEMP TABLE candidates AS"  # noqa: S608 -- one of two constants
            " SELECT served.*, coalesce(late.until >= coalesce(features_until, ?), FALSE) AS is_late FROM"
            f" (SELECT request_id, session_id, user_id, event_ts, state, {until} FROM read_parquet(?)"
            "  WHERE state IS NOT NULL AND state_spec = ?) AS served LEFT JOIN late USING (user_id)",
            [settings.day_start(day), str(path), settings.state_spec.version],
        )
        left_out["states"], left_out["users"] = connection.execute(
            "SELECT count(*), count(DISTINCT user_id) FROM candidates WHERE is_late"
        ).fetchone()
        sample = connection.execute(
            "SELECT * EXCLUDE (is_late) FROM candidates WHERE NOT is_late"
            " ORDER BY md5(request_id), request_id LIMIT ?",
            [settings.gate.parity_sample],
        ).df()
    return sample, left_out


def _pairs(decisions: pd.DataFrame) -> Iterable[tuple[str, np.ndarray]]:
    return zip(decisions["request_id"], decisions["state"], strict=True)


def _count(view: "FeatureView", start: datetime, end: datetime) -> Mapping[str, int]:
    source = view.batch_source
    with duckdb.connect() as connection:
        rows, users = connection.execute(
            f"SELECT count(*), count(DISTINCT user_id) FROM read_parquet(?)"  # noqa: S608
            f" WHERE {source.timestamp_field} > ? AND {source.timestamp_field} <= ?",
            [source.path, start, end],
        ).fetchone()
    return {"rows": rows, "users": users}


@contextlib.contextmanager
def _readable(view: "FeatureView"):
    try:
        yield
    except duckdb.Error as error:
        raise DataError(
            f"cannot read the export of {view.batch_source.name} ({view.batch_source.path}): {error}"
        ) from error


def _quiet():
    """Feast prints what it does; a stage's account of itself is its record."""
    return contextlib.redirect_stdout(io.StringIO())


def _plain(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
