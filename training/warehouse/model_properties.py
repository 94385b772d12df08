"""The properties of dbt's models whose columns the settings name: ``models/_from_settings.yml``.

Descriptions, tests and enforced contracts of the columns that signals and profile make, and of the lake's,
because dbt's YAML cannot make columns out of variables. The committed file is that of the default settings,
and a test keeps it so.
"""

import sys
from typing import Any

import yaml

from training.contract.columns import decision_columns, impression_columns, user_columns
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.contract.state import history_columns, session_columns

GENERATED = "models/_from_settings.yml"
_INSTANT = "{{ 'timestamp' if target.type == 'spark' else 'timestamptz' }}"
PROFILE_TYPES = {"numeric": "double", "log": "double", "flag": "bigint", "categorical": "string"}


def properties(settings: Settings) -> str:
    """``models/_from_settings.yml`` for these settings: grain, columns, keys, contracts."""
    signals, profile = settings.signal_names, settings.state.profile
    feedback = [
        _column(f"signal_{s.name}", f"0 or 1, the log's {s.column}; 0 where it has none")
        for s in settings.signals
    ]
    counts = [_column(f"{s}_count", f"shown items with {s}") for s in signals]
    attributes = [
        # quoted: it may be a word of SQL
        {**_column(p.column, f"profile column, {p.kind}", PROFILE_TYPES[p.kind]), "quote": True}
        for p in profile
    ]
    dt = _column("dt", "local day of the request")
    user_id = _column("user_id", "who was shown the list", "bigint", required=True)
    models = [
        _model(
            "stg_impressions",
            "One row per shown item, as landed.",
            [
                _column("request_id", "ranking request that showed the item"),
                _column("served_session_id", "session id as the log gives it, or null"),
                _column("user_id", "who was shown the item"),
                _column("item_id", "what was shown"),
                _column("event_ts", "when the request was answered"),
                _column("feedback_ts", "when its feedback arrived, or null"),
                _column("shown_position", "0 is the top of the list"),
                *feedback,
                *[
                    _column(f"p_{head.name}", f"predicted {head.name}, 0 where it was not given")
                    for head in settings.heads
                ],
                _column("play_ms", "milliseconds played"),
                _column("duration_ms", "length of the item in milliseconds, 0 where unknown"),
                dt,
            ],
            key=["request_id", "item_id"],
        ),
        _model(
            "stg_users",
            "One row per user and day on which his profile was new or changed, as landed.",
            [
                _column("user_id", "whose profile"),
                _column("updated_ts", "from when on it holds"),
                *[_column(p.column, f"profile column, {p.kind}") for p in profile],
                _column("dt", "local day it was landed for"),
            ],
            key=["user_id", "updated_ts", "dt"],
        ),
        _model(
            "int_requests",
            "One row per ranking request: its decision where one was logged, and the sums of the feedback "
            "on what it showed.",
            [
                _column("request_id", "key"),
                _column("user_id", "who asked"),
                _column("served_session_id", "session id as the log gives it, or null"),
                _column("event_ts", "when it was answered", tests=["not_null"]),
                _column("feedback_ts", "when its latest feedback arrived, or null"),
                _column("arm", "arm that served it; unknown without a decision log"),
                _column("policy_version", "policy that served it; unknown without a decision log"),
                _column("has_decision", "a decision was logged"),
                _column("has_feedback", "feedback has arrived; always true without a decision log"),
                _column("impressions", "shown items"),
                *counts,
                _column("play_ms", "milliseconds played"),
                _column("known_durations", "shown items whose duration is known"),
                _column("completion", "sum of min(play / duration, 1) over these"),
                _column("positive_interactions", "shown items with at least one positive interaction"),
                _column("plays", "shown items that were played at all"),
                _column("positive_plays", "plays with at least one positive interaction"),
                _column("watch_reward", "its terms of play time and integrity", tests=["not_null"]),
                _column("reward", "eq. (2) with the settings' weights", tests=["not_null"]),
                _column("item_scores", "predictions of each shown item, one item after the other"),
                _column("item_rewards", "eq. (2) of each shown item"),
                dt,
            ],
            key=["request_id"],
        ),
        _model(
            "fct_user_history",
            f"One row per user and day on which he was shown anything: his last "
            f"{settings.state.history_length} impressions up to the end of that day, point in time.",
            [
                user_id,
                _column(
                    "event_timestamp",
                    "local midnight that ends the day: usable from then on",
                    _INSTANT,
                    required=True,
                ),
                _column("created_timestamp", "the same instant, so that reruns agree", _INSTANT),
                *[
                    _column(name, _HISTORY.get(name, _rate(name)), _history_type(name), required=True)
                    for name in history_columns(signals)
                ],
                _column("hist_last_ts", "last impression of the window", _INSTANT),
                _column("dt", "the day whose end the row describes", "date", required=True),
            ],
            key=["user_id", "dt"],
            part_of=("int_user_days", ["user_id"]),
            contract=True,
        ),
        _model(
            "fct_session_state",
            "One row per request with feedback: sums over the user's session in the order in which "
            "feedback arrived, this request included. Cut as the service cuts them: by session id, and "
            "by an idle gap between feedback.",
            [
                user_id,
                _column("session_id", "session of int_session_requests", "string", required=True),
                _column("request_id", "key: whose feedback it was", "string", required=True),
                _column("event_timestamp", "when the feedback arrived", _INSTANT, required=True),
                *[
                    _column(
                        name,
                        _session(name),
                        "double" if name.endswith("_play_s") else "bigint",
                        required=True,
                    )
                    for name in session_columns(signals)
                ],
                _column("sess_session_id", "session id that requests carry", "string", required=True),
                _column("sess_last_ts", "latest feedback, this one", _INSTANT, required=True),
                _column("dt", "local day of the request", "date", required=True),
            ],
            key=["request_id"],
            part_of=("int_session_requests", ["request_id"]),
            contract=True,
        ),
        _model(
            "fct_user_days",
            "One row per user and day on which he was shown anything: the terms of eq. (2), summed.",
            [
                user_id,
                _column("requests", "requests that showed him anything", "bigint", required=True),
                _column("impressions", "shown items", "bigint", required=True),
                *[_column(f"{s}_count", f"shown items with {s}", "bigint", required=True) for s in signals],
                _column("play_s", "seconds played: his dwell time", "double", required=True),
                _column("capped_play_s", "seconds that count, per item", "double", required=True),
                _column(
                    "integrity",
                    "sum of min(play / duration, 1) where the duration is known",
                    "double",
                    required=True,
                ),
                _column("dt", "local day of the requests", "date", required=True),
            ],
            key=["user_id", "dt"],
            part_of=("int_user_days", ["user_id"]),
            contract=True,
        ),
        _model(
            "dim_users",
            "One row per user and day on which his profile was landed, new or changed.",
            [
                _column("user_id", "whose profile", "bigint", required=True),
                _column(
                    "event_timestamp",
                    "from when on it holds: when it changed, kept within the day that brought it",
                    _INSTANT,
                    required=True,
                ),
                *attributes,
                _column("dt", "local day it was landed for", "date", required=True),
            ],
            key=["user_id", "dt"],
            part_of=("stg_users", ["user_id"]),
            contract=True,
        ),
        _model(
            "dim_user_versions",
            "One row per user and version of his profile: a slowly changing dimension of type 2, whose "
            "versions follow each other without gap or overlap. To join it as of an instant t: "
            "valid_from <= t and (t < valid_to or valid_to is null). Computed from the landed days, not by a "
            "dbt snapshot, which stamps what it sees with the clock and so is wrong for a day that "
            "comes late, twice or out of order.",
            [
                _column("user_id", "whose profile", "bigint", required=True),
                _column("version", "1 for his first one", "int", required=True),
                _column("valid_from", "from when on it holds", _INSTANT, required=True),
                _column("valid_to", "when the next one begins; null for the last", _INSTANT),
                *attributes,
                _column("dt", "local day that brought it", "date", required=True),
            ],
            key=["user_id", "version"],
            part_of=("dim_users", ["user_id"]),
            contract=True,
        ),
    ]
    head = (
        "# Written by training.warehouse.model_properties: columns that depend on the settings. This copy\n"
        "# is that of the default settings; to renew it:\n"
        f"# python -m training.warehouse.model_properties > dbt_project/{GENERATED}"
    )
    described = {"sources": [_source(settings)], "models": models}
    body = yaml.safe_dump(described, sort_keys=False, width=108, allow_unicode=True)
    return f"{head}\nversion: 2\n{body}"


_LAKE_TYPES = {
    "string": "string",
    "int8": "tinyint",
    "int32": "int",
    "int64": "bigint",
    "float": "float",
    "double": "double",
    "list<float>": "{{ 'array<float>' if target.type == 'spark' else 'float[]' }}",
    "timestamp[us, UTC]": _INSTANT,
}
_LAKE = {
    IMPRESSIONS: "One row per shown item, with what the user did. Key (request_id, item_id).",
    DECISIONS: "One row per ranking request, as it was served. Key request_id. Absent for other logs.",
    USERS: "One row per user whose profile is new or changed that day. Optional.",
}


def _source(settings: Settings) -> dict[str, Any]:
    """The lake: each table with the columns of :mod:`training.contract.columns`, held against its files."""
    columns = {
        IMPRESSIONS: impression_columns(settings),
        DECISIONS: decision_columns(),
        USERS: user_columns(settings),
    }
    tables = []
    for table, description in _LAKE.items():
        spark = f"'`' ~ env_var('MTF_LAKE', 'lake') ~ '/{table}`'"
        entry: dict[str, Any] = {
            "name": table,
            "identifier": f"{{{{ {spark} if target.type == 'spark' else '{table}' }}}}",
            "description": description,
            "data_tests": [{"as_declared": {"name": f"{table}_as_declared", "arguments": {"table": table}}}],
            "columns": [
                {
                    **_column(column.name, column.description, _LAKE_TYPES[column.type]),
                    "config": {"meta": {"required": column.required}},
                }
                for column in columns[table]
            ]
            + [_column("dt", "local day of its partition", "date")],
        }
        if table == USERS:
            entry["config"] = {"loaded_at_field": "updated_ts", "freshness": None}
        tables.append(entry)
    return {
        "name": "lake",
        "description": "Landed logs, one Parquet partition a local day, written by training.ingest.",
        "schema": "{{ 'parquet' if target.type == 'spark' else 'lake' }}",
        "config": {
            # `dbt source freshness` compares the newest event with the clock; the daily run does not,
            # because a backfill, a replay or a simulated world lives in another time
            "freshness": {
                "warn_after": {"count": 30, "period": "hour"},
                "error_after": {"count": 54, "period": "hour"},
            },
            "loaded_at_field": "event_ts",
            "meta": {
                "external_location": (
                    "read_parquet('{{ env_var('MTF_LAKE', 'lake') | replace(\"'\", \"''\") }}"
                    "/{name}/dt=*/*.parquet', hive_partitioning = true, union_by_name = true)"
                )
            },
        },
        "tables": tables,
    }


_HISTORY = {
    "hist_count": "impressions in the window",
    "hist_play_s": "mean seconds played of an impression",
    "hist_completion": "mean of min(play / duration, 1) where the duration is known, else 0",
    "hist_sessions": "sessions that the window spans",
    "hist_session_length": "impressions of the window per such session",
    "hist_days_since_last": "whole days from the last impression to event_timestamp",
}


def _rate(name: str) -> str:
    return f"share of the window's impressions with {name.removeprefix('hist_').removesuffix('_rate')}"


def _history_type(name: str) -> str:
    return "bigint" if name in ("hist_count", "hist_sessions", "hist_days_since_last") else "double"


def _session(name: str) -> str:
    """Words for a column such as sess_like_count or last_play_s."""
    scope, _, what = name.partition("_")
    words = {"requests": "requests with feedback", "impressions": "shown items", "play_s": "seconds played"}
    what = words.get(what, f"shown items with {what.removesuffix('_count')}")
    return f"{what}, {'session so far' if scope == 'sess' else 'this request'}"


def _column(
    name: str,
    description: str,
    data_type: str | None = None,
    required: bool = False,
    tests: list[str] | None = None,
) -> dict[str, Any]:
    """A ``required`` column of a contract cannot be null: the table itself refuses it."""
    column: dict[str, Any] = {"name": name, "description": description}
    if data_type:
        column["data_type"] = data_type
    if required:
        column["constraints"] = [{"type": "not_null"}]
    if tests:
        column["data_tests"] = tests
    return column


def _model(
    name: str,
    description: str,
    columns: list[dict[str, Any]],
    key: list[str],
    part_of: tuple[str, list[str]] | None = None,
    contract: bool = False,
) -> dict[str, Any]:
    model: dict[str, Any] = {"name": name, "description": description}
    if contract:
        model["config"] = {"contract": {"enforced": True}}
    tests: list[dict[str, Any]] = [{"primary_key": {"arguments": {"columns": key}}}]
    if part_of:
        to, columns_of_it = part_of
        tests.append({"part_of": {"arguments": {"to": f"ref('{to}')", "columns": columns_of_it}}})
    return {**model, "data_tests": tests, "columns": columns}


if __name__ == "__main__":
    sys.stdout.write(properties(Settings()))
