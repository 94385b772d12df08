"""Bring a day's profiles and histories into the online store."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb

from training.contract.files import read_json, write_json_atomic
from training.contract.settings import Settings
from training.features.store import (
    HISTORY,
    PUSHED,
    export_of,
    open_store,
    quiet,
    readable,
    state_service,
    usable,
)

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

# a rerun also takes what late rows changed this long before the day
LOOK_BACK = timedelta(days=1)


def materialise(settings: Settings, day: date) -> dict[str, Any]:
    """Bring profiles and histories up to the end of local day ``day`` into the online store.

    The window starts at what was materialised last, less :data:`LOOK_BACK`; it ends with the day, or
    with a later day that was materialised before, so that running an earlier day again corrects what
    its rows changed and never puts an old row over a newer one. ``user_session`` is left alone.
    Returns ``{"until", "views": {name: {"rows", "users"}}, "purged": {name: users}}``, the day's own rows
    and, for SQLite, the users whose rows of a view had ended. Raises
    :class:`DataError` naming the mart that cannot be read.
    """
    store = open_store(settings)
    start, end = settings.day_start(day), settings.day_start(day + timedelta(days=1))
    record: dict[str, Any] = {"until": end.isoformat(), "views": {}}
    for view in _batch_views(settings, store):
        done, until = view.most_recent_end_time, usable(view.name, end)
        first = datetime.fromtimestamp(0, UTC) if done is None else min(done, start) - LOOK_BACK
        with readable(view), quiet():
            store.materialize(first, until if done is None else max(until, done), feature_views=[view.name])
            record["views"][view.name] = _count(view, usable(view.name, start), until)
    if settings.store.online == "sqlite":
        record["purged"] = _purge(settings, store, end)
    _note_until(settings, end)
    return record


def _batch_views(settings: Settings, store: "FeatureStore") -> list["FeatureView"]:
    service = state_service(settings, store)
    return [store.get_feature_view(p.name) for p in service.feature_view_projections if p.name != PUSHED]


def _purge(settings: Settings, store: "FeatureStore", end: datetime) -> dict[str, int]:
    """Remove what no state is made of any more: ended sessions, and histories past their ttl."""
    ends = {PUSHED: end - LOOK_BACK - settings.session.gap}
    if settings.store.history_ttl_days:
        ends[HISTORY] = end - timedelta(days=settings.store.history_ttl_days)
    online: Any = store.provider.online_store  # of SQLite it is our own, which can purge
    return {
        name: online.purge(store.config, store.get_feature_view(name), before)
        for name, before in ends.items()
    }


def _note_until(settings: Settings, end: datetime) -> None:
    """Tell the service how old its features are; an earlier day run again does not set it back."""
    path = settings.layout.materialised
    if path.exists():
        end = max(end, datetime.fromisoformat(read_json(path)["until"]))
    write_json_atomic(path, {"until": end.isoformat()})


def _count(view: "FeatureView", start: datetime, end: datetime) -> Mapping[str, int]:
    source = export_of(view)
    with duckdb.connect() as connection:
        ((rows, users),) = connection.execute(
            f"SELECT count(*), count(DISTINCT user_id) FROM read_parquet(?)"  # noqa: S608
            f" WHERE {source.timestamp_field} > ? AND {source.timestamp_field} <= ?",
            [source.path, start, end],
        ).fetchall()
    return {"rows": rows, "users": users}
