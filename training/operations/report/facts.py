"""A day in numbers, off the lake and the transitions: means with intervals, by arm and of all.

Each mean is a ratio of sums over users (returns over sessions, seconds over users, clicks over items), and
its interval takes users as clusters: what one user does on a day is no independent draw. The facts of a day
are kept beside its page, so that charts over days read them, and are found anew when the day's files change.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from scipy.stats import norm

from training.contract.files import read_json, write_json_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.log import EXPLORING, NO_POLICY
from training.contract.settings import Settings

VERSION = 1
CONFIDENCE = 0.95
UNKNOWN = "unknown"  # the arm of a request without a decision
FILE = "facts.json"
ENDS = ("lower", "value", "upper")
Mean = dict[str, Any]  # value, lower, upper; the ends are None where a single user tells nothing of them

# sums of a user by what they are divided by
_OF_SHOWN = ("play_s", "positive_plays", "plays", "items")
_OF_DECIDED = ("requests", "fallbacks", "explored")


def of_day(settings: Settings, day: date) -> dict[str, Any] | None:
    """The facts of a landed day; None where there is no log, or it cannot be read.

    ``arms`` holds a row an arm and policy version: counts, and as means ``session_return``, ``adtime_s``,
    ``upirate`` and ``weights`` by head; ``signals`` the day's rates; ``requests``, ``explored`` and
    ``fallbacks`` (those before a first policy aside) counts; ``without_feedback`` the share of the requests
    that nothing came back for.
    """
    layout = settings.layout
    places = {table: _files(layout.partition(table, day)) for table in (DECISIONS, IMPRESSIONS)}
    places["sessions"] = _files(layout.mart("fct_transitions") / f"dt={day.isoformat()}")
    if not places[DECISIONS] and not places[IMPRESSIONS]:
        return None
    path = layout.reports / f"dt={day.isoformat()}" / FILE
    key = _key(settings, places)
    if path.exists():
        kept = read_json(path)
        if kept.get("key") == key:
            return dict(kept["facts"])
    try:
        with duckdb.connect() as connection:
            facts = _measured(settings, connection, places)
    except (duckdb.Error, OSError):
        return None  # validation says what is wrong with the files
    write_json_atomic(path, {"key": key, "facts": facts})
    return facts


def mean(over: np.ndarray, under: np.ndarray) -> Mean | None:
    """sum(over) / sum(under), entries being users, with its interval; None of nothing."""
    total = float(under.sum())
    if not total:
        return None
    value, users = float(over.sum()) / total, int(np.count_nonzero(under))
    if users < 2:
        return {"value": value, "lower": None, "upper": None}
    error = float(np.sqrt(((over - value * under) ** 2).sum() * users / (users - 1))) / total
    half = float(norm.ppf(0.5 + CONFIDENCE / 2.0)) * error
    return {"value": value, "lower": value - half, "upper": value + half}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mean:
    """One mean less another of other users."""
    value = one["value"] - other["value"]
    if None in (one["upper"], other["upper"]):
        return {"value": value, "lower": None, "upper": None}
    half = float(np.hypot(one["upper"] - one["value"], other["upper"] - other["value"]))
    return {"value": value, "lower": value - half, "upper": value + half}


def _files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.parquet"))


def _key(settings: Settings, places: Mapping[str, Sequence[str]]) -> str:
    stats = [
        (path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns)
        for paths in places.values()
        for path in paths
    ]
    heads = [[head.name, head.low, head.high] for head in settings.heads]
    signals = [[signal.name, signal.column, signal.positive_interaction] for signal in settings.signals]
    return hashlib.sha256(json.dumps([VERSION, heads, signals, stats]).encode()).hexdigest()


def _read(connection: Any, name: str, paths: Sequence[str]) -> set[str]:
    """Make a view of files; returns its columns, none where there are no files."""
    if not paths:
        return set()
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    connection.execute(
        f"create view {name} as select * "
        f"from read_parquet([{listed}], hive_partitioning = false, union_by_name = true)"
    )
    return {row[0] for row in connection.execute(f"describe {name}").fetchall()}


def _measured(settings: Settings, connection: Any, places: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    decided = _read(connection, "decided", places[DECISIONS])
    shown = _read(connection, "shown", places[IMPRESSIONS])
    sessions = _read(connection, "transitions", places["sessions"])
    found: dict[str, Any] = {"arms": [], "signals": {}, "without_feedback": None}
    rows: dict[tuple[str, str], dict[str, Any]] = {}

    def row(arm: str, version: str) -> dict[str, Any]:
        return rows.setdefault((arm, version), {"arm": arm, "version": version})

    if decided:
        _of_decided(settings, connection, row, found)
    if shown:
        _of_shown(settings, connection, shown, bool(decided), row, found)
    if sessions:
        _of_sessions(connection, row)
    found["arms"] = [rows[key] for key in sorted(rows)]
    return found


def _of_decided(settings: Settings, connection: Any, row: Any, found: dict[str, Any]) -> None:
    """Requests, fallbacks and served weights."""
    fusion = settings.fusion
    actions = ", ".join(f"sum(action[{i}]) as a{i}" for i in range(1, len(settings.heads) + 1))
    users = connection.execute(
        f"select arm, policy_version as version, user_id, count(*) as requests, {actions}, "
        f"count(*) filter (where fallback is not null and fallback <> '{NO_POLICY}') as fallbacks, "
        f"count(*) filter (where arm in {EXPLORING!r} and log_density is not null) as explored "
        "from decided group by all order by all"
    ).fetchnumpy()
    for arm, version, chosen in _policies(users):
        one = row(arm, version)
        under = users["requests"][chosen].astype(float)
        one |= {name: int(users[name][chosen].sum()) for name in _OF_DECIDED}
        one["users"] = int(chosen.sum())
        ends = []
        for i in range(1, len(settings.heads) + 1):
            action = mean(np.ma.filled(users[f"a{i}"], 0.0)[chosen].astype(float), under)
            at = action["value"] if action else 0.0
            ends.append([at if not action or action[end] is None else action[end] for end in ENDS])
        lower, value, upper = (fusion.to_weights(np.clip(end, -1.0, 1.0)) for end in np.array(ends).T)
        one["weights"] = {
            head.name: {"value": float(value[i]), "lower": float(lower[i]), "upper": float(upper[i])}
            for i, head in enumerate(settings.heads)
        }
    found |= {name: int(users[name].sum()) for name in _OF_DECIDED}


def _of_shown(
    settings: Settings, connection: Any, columns: set[str], decided: bool, row: Any, found: dict[str, Any]
) -> None:
    """Seconds and positive plays by arm, rates of the signals, and what nothing came back for."""
    positive = " or ".join(f'"{s.column}" > 0' for s in settings.signals if s.positive_interaction) or "false"
    signals = ", ".join(f'sum("{s.column}")::double as "s_{s.name}"' for s in settings.signals)
    arm, version = ("coalesce(arm, $none)", "coalesce(policy_version, $none)") if decided else ("$none",) * 2
    join = "left join (select request_id, arm, policy_version from decided) using (request_id)"
    users = connection.execute(
        f"select {arm} as arm, {version} as version, user_id, {signals}, count(*) as items, "
        "sum(play_time_ms)::double / 1000.0 as play_s, count(*) filter (where play_time_ms > 0) as plays, "
        f"count(*) filter (where play_time_ms > 0 and ({positive})) as positive_plays "
        f"from shown {join if decided else ''} group by all order by all",
        {"none": UNKNOWN},
    ).fetchnumpy()
    sums = {name: np.ma.filled(users[name], 0.0).astype(float) for name in (*_OF_SHOWN, *_signals(settings))}
    for name, of, chosen in _policies(users):
        one = row(name, of)
        one.setdefault("users", int(chosen.sum()))
        one["adtime_s"] = mean(sums["play_s"][chosen], np.ones(int(chosen.sum())))
        one["upirate"] = mean(sums["positive_plays"][chosen], sums["plays"][chosen])
    found["signals"] = {
        signal.name: mean(sums[f"s_{signal.name}"], sums["items"]) for signal in settings.signals
    }
    if "feedback_ts" in columns:
        lacking, requests = connection.execute(
            "select count(*) filter (where n = 0), count(*) from "
            "(select count(feedback_ts) as n from shown group by request_id)"
        ).fetchone()
        # files need not say when feedback came
        found["without_feedback"] = lacking / requests if requests and lacking < requests else None


def _of_sessions(connection: Any, row: Any) -> None:
    users = connection.execute(
        "select arm, version, user_id, count(*) as sessions, sum(r) as r from ("
        "  select user_id, arg_min(arm, step) as arm, arg_min(policy_version, step) as version,"
        "    sum(reward) as r from transitions group by user_id, session_id"
        ") group by all order by all"
    ).fetchnumpy()
    for arm, version, chosen in _policies(users):
        under = users["sessions"][chosen].astype(float)
        one = row(arm, version)
        one["sessions"] = int(under.sum())
        one["session_return"] = mean(users["r"][chosen].astype(float), under)


def _signals(settings: Settings) -> list[str]:
    return [f"s_{signal.name}" for signal in settings.signals]


def _policies(users: Mapping[str, Any]) -> list[tuple[str, str, np.ndarray]]:
    """Each arm and version, and which of the users' rows are theirs."""
    arms = np.asarray(users["arm"]).astype(str)
    versions = np.asarray(users["version"]).astype(str)
    return [
        (arm, version, (arms == arm) & (versions == version))
        for arm, version in sorted(set(zip(arms.tolist(), versions.tolist(), strict=True)))
    ]
