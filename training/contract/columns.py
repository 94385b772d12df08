"""The lake's tables: column names and types of impressions, decisions and users.

:mod:`training.ingest` turns the types into an Arrow schema. A later version
(:data:`training.contract.log.LAKE_VERSION`) adds columns and keeps reading the old ones.
"""

from collections.abc import Iterable
from dataclasses import replace

from training.contract.log import DECISION, LINES, Column
from training.contract.settings import IdSettings, Settings

_ANY = IdSettings()


def with_ids(columns: Iterable[Column], ids: IdSettings) -> list[Column]:
    """The columns with the ids' types as ``ids`` says; they are declared for ids that are int64."""
    item = ids.kept("item_id")
    types = {"user_id": ids.kept("user_id"), "item_id": item, "items": f"list<{item}>"}
    found = []
    for column in columns:
        kind = types.get(column.name, column.type)
        found.append(replace(column, type=f"list<{item}>" if kind == "list<int64>" else kind))
    return found


def line_columns(kind: str, ids: IdSettings) -> list[Column]:
    """Fields of a line of the ``decisions`` or the ``feedback``."""
    return with_ids(LINES[kind], ids)


def impression_columns(settings: Settings) -> list[Column]:
    """One row per shown item. Key: (request_id, item_id)."""
    columns = [
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
    return with_ids(columns, settings.ids)


def decision_columns(ids: IdSettings = _ANY) -> list[Column]:
    """One row per ranking request, as it was served and logged. Key: request_id."""
    return with_ids(DECISION, ids)


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
        Column("user_id", settings.ids.kept("user_id"), description="whose profile"),
        Column("updated_ts", "timestamp[us, UTC]", description="from when on it holds"),
        *[
            Column(feature.column, types[feature.kind], False, f"profile column, {feature.kind}")
            for feature in settings.state.profile
        ],
    ]
