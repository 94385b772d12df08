"""Served states against the states that Feast gives for the same instants."""

from collections import Counter
from collections.abc import Iterable
from datetime import date
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import structlog

from training.contract.errors import DataError
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.features.point_in_time import offline_states
from training.ingest import late_users

_log = structlog.get_logger("mtf.features")
ABSOLUTE_TOLERANCE = RELATIVE_TOLERANCE = 1e-4
WORST = 10


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
            "user_id": decisions["user_id"].iloc[[row]].tolist()[0],
            "entry": names[entry],
            "served": _plain(served[row, entry]),
            "offline": _plain(offline[row, entry]),
        }
        for row, entry in worst[:WORST]
    ]
    return record


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
        ((left_out["states"], left_out["users"]),) = connection.execute(
            "SELECT count(*), count(DISTINCT user_id) FROM candidates WHERE is_late"
        ).fetchall()
        sample = connection.execute(
            "SELECT * EXCLUDE (is_late) FROM candidates WHERE NOT is_late"
            " ORDER BY md5(request_id), request_id LIMIT ?",
            [settings.gate.parity_sample],
        ).df()
    return sample, left_out


def _pairs(decisions: pd.DataFrame) -> Iterable[tuple[str, np.ndarray]]:
    return zip(decisions["request_id"], decisions["state"], strict=True)


def _plain(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
