"""Bring a day's profiles and histories into the online store."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from training.contract.files import read_json, write_json_atomic
from training.contract.settings import Settings
from training.features.offline import counted, session
from training.features.store import (
    HISTORY,
    MICROSECOND,
    PUSHED,
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
    with session(settings):
        for view in _batch_views(settings, store):
            done, until = view.most_recent_end_time, usable(view.name, end)
            first = datetime.fromtimestamp(0, UTC) if done is None else min(done, start) - LOOK_BACK
            last = until if done is None else max(until, done)
            with readable(view), quiet():
                store.materialize(first, last, feature_views=[view.name])
                record["views"][view.name] = _count(store, view, usable(view.name, start), until)
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


def _count(store: "FeatureStore", view: "FeatureView", start: datetime, end: datetime) -> Mapping[str, int]:
    """The rows after ``start``, up to ``end``, as the offline store reads them."""
    source = view.batch_source
    assert source is not None  # every view of ours has one
    job = store.provider.offline_store.pull_all_from_table_or_query(
        config=store.config,
        data_source=source,
        join_key_columns=view.join_keys,
        feature_name_columns=[],
        timestamp_field=source.timestamp_field,
        start_date=start + MICROSECOND,
        end_date=end,
    )
    return counted(job)
