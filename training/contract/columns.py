"""The lake's tables: column names and types of impressions, decisions and users.

:mod:`training.ingest` turns the types into an Arrow schema. A later version
(:data:`training.contract.log.LAKE_VERSION`) adds columns and keeps reading the old ones.
"""

from training.contract.log import DECISION, Column
from training.contract.settings import Settings


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
    """One row per ranking request, as it was served and logged. Key: request_id."""
    return list(DECISION)


def user_columns(settings: Settings) -> list[Column]:
    """One row per user whose profile is new or changed that day. Key: user_id."""
    types = {
        "numeric": "double",
        "saturating": "double",
        "log": "double",
        "flag": "int8",
        "categorical": "string",
    }
    return [
        Column("user_id", "int64", description="whose profile"),
        Column("updated_ts", "timestamp[us, UTC]", description="from when on it holds"),
        *[
            Column(feature.column, types[feature.kind], False, f"profile column, {feature.kind}")
            for feature in settings.state.profile
        ],
    ]
