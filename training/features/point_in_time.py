"""Feature values and states as a request at an instant saw them, read from the marts' exports."""

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from training.contract.errors import DataError
from training.contract.session import is_current
from training.contract.settings import Settings
from training.contract.state import context_values, days_since, history_columns, session_columns
from training.features.offline import session
from training.features.store import PUSHED, open_store, readable, state_service, usable

if TYPE_CHECKING:
    from feast import FeatureStore


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
    store = open_store(settings)
    service = state_service(settings, store)
    references = {
        p.name: [f"{p.name}:{feature.name}" for feature in p.features]
        for p in service.feature_view_projections
    }
    instants = entity_df["event_timestamp"].dt.tz_convert("UTC").dt.as_unit("us")
    days = instants.dt.tz_convert(settings.calendar.zone).dt.tz_localize(None).dt.floor("D")
    starts = {day: settings.day_start(day.date()) for day in days.unique()}
    midnights = days.map(starts).astype(instants.dtype)
    if "features_until" in entity_df:
        until = entity_df["features_until"].dt.tz_convert("UTC").dt.as_unit("us")
        midnights = midnights.where(~(until < midnights), until)
    users = entity_df["user_id"].to_numpy(np.int64 if settings.ids.kept("user_id") == "int64" else object)
    with session(settings):
        parts = [
            _point_in_time(store, users, usable(name, midnights), features)
            for name, features in references.items()
            if name != PUSHED
        ]
        if "request_id" in entity_df:
            latest = _point_in_time(store, users, instants, [f"{PUSHED}:request_id"])["request_id"]
            own = latest.to_numpy() == entity_df["request_id"].to_numpy()
            instants = instants - pd.to_timedelta(own.astype(np.int64), unit="us")
        parts.append(_point_in_time(store, users, instants, references[PUSHED]))
    return pd.concat([entity_df.reset_index(drop=True), *parts], axis=1)


def offline_states(settings: Settings, decisions: pd.DataFrame) -> np.ndarray:
    """States float32[n, d] of requests as the exports give them.

    ``decisions`` has ``request_id``, ``user_id``, ``session_id``, ``event_ts`` and, if known,
    ``features_until`` (both timezone-aware).
    """
    columns = ["request_id", "user_id", "session_id", "event_ts", "features_until"]
    known = decisions[[name for name in columns if name in decisions]]
    raw = historical(settings, known.rename(columns={"event_ts": "event_timestamp"}))
    gap = settings.session.gap
    zone = settings.calendar.zone
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
    for name in session_columns(settings.signal_names, settings.head_names):
        inputs[name] = np.where(current, raw[name].to_numpy(np.float64, na_value=np.nan), 0.0)
    inputs["hist_days_since_last"] = np.array(
        [
            days_since(last, event_ts, zone)
            for last, event_ts in zip(_instants(raw["hist_last_ts"]), instants, strict=True)
        ]
    )
    for name in settings.state_spec.inputs("context"):
        inputs[name] = np.array([context_values(event_ts, zone)[name] for event_ts in instants])
    return settings.state_spec.assemble(inputs)


def _point_in_time(
    store: "FeatureStore", users: np.ndarray, instants: pd.Series, references: list[str]
) -> pd.DataFrame:
    """Features of users as of instants, in the order given, without the keys."""
    rows = pd.DataFrame({"user_id": users, "event_timestamp": instants.array, "row": np.arange(len(users))})
    with contextlib.ExitStack() as stack:
        for name in sorted({reference.split(":")[0] for reference in references}):
            stack.enter_context(readable(store.get_feature_view(name)))
        found = store.get_historical_features(entity_df=rows, features=references).to_df()
    for name in found.select_dtypes("datetime"):  # Spark gives UTC without saying so
        found[name] = found[name].dt.tz_localize("UTC").dt.as_unit("us")
    return found.sort_values("row", ignore_index=True).drop(columns=list(rows.columns))


def _instants(column: pd.Series) -> list[datetime | None]:
    return [None if pd.isna(value) else value.to_pydatetime() for value in column]
