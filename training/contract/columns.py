"""The log's contracts, version 2: column names and types of impressions, decisions and users.

Types are named as Parquet writers name them (``int64``, ``float``, ``list<float>``,
``timestamp[us, UTC]``); :mod:`training.ingest` turns them into an Arrow schema. A later version adds
columns and keeps reading the old ones. Version 2 added ``features_until`` to the decisions.
"""

from dataclasses import dataclass

from training.contract.settings import Settings

CONTRACT_VERSION = 2


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    required: bool = True  # a required column has no nulls
    description: str = ""


def impression_columns(settings: Settings) -> list[Column]:
    """One row per shown item. Key: (request_id, item_id)."""
    return [
        Column("request_id", "string", description="one ranking request"),
        Column("session_id", "string", False, "null: cut later by the session gap"),
        Column("user_id", "int64", description="who was shown the item"),
        Column("item_id", "int64", description="what was shown"),
        Column("event_ts", "timestamp[us, UTC]", description="when the request was answered"),
        Column("feedback_ts", "timestamp[us, UTC]", False, "when its feedback arrived, if known"),
        Column("position", "int32", description="0 is the top of the list"),
        *[
            Column(f"p_{head.name}", "float", False, f"predicted {head.name}, as ranked")
            for head in settings.heads
        ],
        *[Column(signal.column, "int8", description="0 or 1") for signal in settings.signals],
        Column("play_time_ms", "int64", description="milliseconds played"),
        Column("duration_ms", "int64", description="length of the item in milliseconds, 0: unknown"),
    ]


def decision_columns() -> list[Column]:
    """One row per ranking request, as it was served. Key: request_id."""
    return [
        Column("request_id", "string", description="one ranking request"),
        Column("session_id", "string", description="as it was served"),
        Column("user_id", "int64", description="who asked"),
        Column("event_ts", "timestamp[us, UTC]", description="when it was answered"),
        Column("policy_version", "string", description="'static' when no policy was used"),
        Column("arm", "string", description="of training.contract.shares.ARMS"),
        Column("state", "list<float>", False, "as served; null when the store gave none"),
        Column("action", "list<float>", description="served action in [-1, 1]"),
        Column("action_mean", "list<float>", description="mean of the action's distribution"),
        Column("log_density", "double", False, "of the action; null when it was not drawn"),
        Column("fallback", "string", False, "why static weights were served, else null"),
        Column("state_spec", "string", description="version of the state specification"),
        Column(
            "features_until",
            "timestamp[us, UTC]",
            False,
            "up to when profiles and histories were materialised that it was served with; null: not known",
        ),
    ]


def user_columns(settings: Settings) -> list[Column]:
    """One row per user whose profile is new or changed that day. Key: user_id."""
    types = {"numeric": "double", "log": "double", "flag": "int8", "categorical": "string"}
    return [
        Column("user_id", "int64", description="whose profile"),
        Column("updated_ts", "timestamp[us, UTC]", description="from when on it holds"),
        *[
            Column(feature.column, types[feature.kind], False, f"profile column, {feature.kind}")
            for feature in settings.state.profile
        ],
    ]
