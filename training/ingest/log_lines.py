"""The lines of the service's log as files hold them: which are whole, and what is wrong with one that is not.

DuckDB reads the lines (:mod:`training.ingest.service_log`); where it refuses, the first bad one is looked for
here, and named by file, line and field.
"""

import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from training.contract.columns import line_columns
from training.contract.errors import DataError
from training.contract.log import LEFT_TO_VALIDATION, LINE_VERSION, LINE_VERSIONS, LINES, Column
from training.contract.settings import IdSettings

_LIVE_SECONDS = 60.0  # a file written to more recently than this may grow while it is read
DUCKDB_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "timestamp[us, UTC]": "TIMESTAMPTZ",
    "list<float>": "FLOAT[]",
    "list<int64>": "BIGINT[]",
    "list<string>": "VARCHAR[]",
}


def optional_field(column: Column) -> bool:
    return not column.required or column.name in LEFT_TO_VALIDATION


def whole_lines(path: Path, scratch: Path) -> tuple[Path, bool]:
    """A file that ends with a newline and holds still: ``path``, or a copy of its whole lines.

    A last line without its newline was never acknowledged (a kill, a full disk): it is left out, and
    the second value says so.
    """
    stat = path.stat()
    with path.open("rb") as file:
        end = _end_of_last_line(file, stat.st_size)
        torn = end < stat.st_size
        if not torn and time.time() - stat.st_mtime > _LIVE_SECONDS:
            return path, False
        scratch.mkdir(exist_ok=True)
        copy = scratch / path.name
        with copy.open("wb") as target:
            file.seek(0)
            while end > 0:
                block = file.read(min(end, 1 << 20))
                target.write(block)
                end -= len(block)
    return copy, torn


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def refuse_unknown_fields(kind: str, path: Path, whole: Path) -> None:
    """Raise :class:`DataError` for a field that the contract does not know, which would be lost.

    The first line speaks for its file: one process wrote all of it. (To look at every line would nearly
    double the time that reading takes.)
    """
    with whole.open("rb") as file:
        fault = _unknown_field(kind, file.readline())
    if fault is not None:
        raise DataError(f"{path}, line 1: {fault}", breaks="columns")


def _unknown_field(kind: str, raw: bytes) -> str | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None  # said of the line by _fault
    known = [column.name for column in LINES[kind]]
    unknown = [name for name in line if name not in known] if isinstance(line, dict) else []
    if not unknown:
        return None
    return f"{unknown[0]} is no field of a line of version {LINE_VERSION}: {', '.join(known)}"


def name_bad_line(kind: str, path: Path, whole: Path, ids: IdSettings) -> None:
    """Raise :class:`DataError` naming the first line of a file that is not a line of its kind."""
    with whole.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            fault = _fault(kind, raw, ids)
            if fault is not None:
                raise DataError(f"{path}, line {number}: {fault}", breaks="types")


def _fault(kind: str, raw: bytes, ids: IdSettings) -> str | None:
    try:
        line = json.loads(raw)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(line, dict):
        return "not a JSON object"
    if line.get("v") not in LINE_VERSIONS:
        return f"its version v is {line.get('v')!r}, this code reads {LINE_VERSIONS[0]} to {LINE_VERSION}"
    for column in line_columns(kind, ids):
        if column.type in DUCKDB_TYPES:
            fault = _value_fault(line.get(column.name), DUCKDB_TYPES[column.type], optional_field(column))
            if fault is not None:
                setting = {"user_id": " (ids.users)", "items": " (ids.items)", "shown": " (ids.items)"}
                return f"{column.name} {fault}{setting.get(column.name, '')}"
    return _scores_fault(line) if kind == "decisions" else _events_fault(line, ids)


def _value_fault(value: Any, type_: str, optional: bool) -> str | None:
    if value is None:
        return None if optional else "is missing"
    expected: dict[str, type | tuple[type, ...]] = {
        "VARCHAR": str,
        "TIMESTAMPTZ": str,
        "DOUBLE": (int, float),
    }
    wanted = list if type_.endswith("[]") else expected.get(type_, int)
    if not isinstance(value, wanted) or isinstance(value, bool):
        return f"is {value!r:.80}, expected {type_}"
    if type_ == "TIMESTAMPTZ":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return f"is {value!r:.80}, expected an ISO-8601 time"
    if wanted is list:
        entry_type = type_.removesuffix("[]").replace("FLOAT", "DOUBLE")
        for index, entry in enumerate(value):
            fault = _value_fault(entry, entry_type, optional=False)
            if fault is not None:
                return f"[{index}] {fault}"
    return None


def _scores_fault(line: Mapping[str, Any]) -> str | None:
    scores = line.get("scores") or {}
    if not isinstance(scores, dict):
        return f"scores is {scores!r:.80}, expected an object of one list a head"
    for head, values in scores.items():
        fault = _value_fault(values, "FLOAT[]", optional=True)
        if fault is None and values is not None and len(values) != len(line["items"]):
            fault = f"has {len(values)} values for {len(line['items'])} items"
        if fault is not None:
            return f"scores.{head} {fault}"
    return None


def _events_fault(line: Mapping[str, Any], ids: IdSettings) -> str | None:
    events = line.get("events")
    if not isinstance(events, list):
        return f"events is {events!r:.80}, expected a list"
    for index, event in enumerate(events):
        if not isinstance(event, dict):
            return f"events[{index}] is {event!r:.80}, expected an object"
        for name, value in event.items():
            type_ = DUCKDB_TYPES[ids.kept("item_id")] if name == "item_id" else "BIGINT"
            fault = _value_fault(value, type_, optional=name != "item_id")
            if fault is not None:
                return f"events[{index}].{name} {fault}"
        if "item_id" not in event:
            return f"events[{index}].item_id is missing"
    return None
