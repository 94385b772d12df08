"""What the service logs is what landing finds: any decision that the contract allows, and its feedback."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serving.http.schema import MAXIMUM_ID_LENGTH, MAXIMUM_MS
from serving.log.day_files import DayFiles, encode
from serving.log.times import timestamp
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.log import ARMS, DECISION, DECISION_LINE, FALLBACKS, decision_line, feedback_line
from training.contract.settings import Settings
from training.ingest import land_service_log

DAY = date(2026, 1, 5)
MIDNIGHT = datetime(2026, 1, 5, tzinfo=UTC)  # at which DAY starts
DEFAULT = Settings()

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=MAXIMUM_ID_LENGTH)
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=12)
VECTORS = FLOATS.map(lambda values: np.array(values, dtype=np.float32))
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1), timezones=st.just(UTC))
IN_DAY = st.integers(0, 86_400_000_000 - 1).map(lambda us: MIDNIGHT + timedelta(microseconds=us))
VALUES = {  # of each type, but where the contract says more of a field
    "string": NAMES,
    "int64": INT64,
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "list<float>": VECTORS,
    "timestamp[us, UTC]": TIMES,
}
NARROWER = {"arm": st.sampled_from(ARMS), "fallback": st.sampled_from(FALLBACKS), "event_ts": IN_DAY}


@st.composite
def decisions(draw: st.DrawFn) -> dict[str, Any]:
    fields = {}
    for column in DECISION:
        value = NARROWER.get(column.name, VALUES.get(column.type))
        fields[column.name] = draw(value if column.required else st.none() | value)
    items = draw(st.lists(INT64, min_size=1, max_size=6, unique=True))
    heads = draw(st.sets(st.sampled_from(DEFAULT.fusion.names)))
    scores = st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=len(items), max_size=len(items)
    )
    return {
        **fields,
        "items": np.array(items, dtype=np.int64),
        "shown": draw(st.integers(0, len(items))),
        "scores": {head: draw(scores) for head in sorted(heads)},
    }


@st.composite
def days(draw: st.DrawFn) -> list[tuple[dict[str, Any], dict[int, dict[str, int]], list[int] | None]]:
    """Decisions of one day, for some of their items an event, and what feedback says was shown."""
    signals = [signal.column for signal in DEFAULT.signals]
    milliseconds = st.integers(0, MAXIMUM_MS)
    event = st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(signals, st.integers(0, 1)),
            **dict.fromkeys(("play_time_ms", "duration_ms"), milliseconds),
        },
    )
    found = draw(st.lists(decisions(), min_size=1, max_size=4, unique_by=lambda one: one["request_id"]))
    return [
        (
            one,
            {item: draw(event) for item in one["items"].tolist() if draw(st.booleans())},
            draw(st.none() | st.lists(st.sampled_from(one["items"].tolist()), unique=True)),
        )
        for one in found
    ]


def written(value: Any) -> Any:
    return timestamp(value) if isinstance(value, datetime) else value


def rows(settings: Settings, table: str) -> list[dict[str, Any]]:
    return pq.ParquetFile(settings.layout.partition(table, DAY) / "part-0.parquet").read().to_pylist()


@hypothesis_settings(max_examples=60, deadline=None)
@given(day=days())
def test_what_is_logged_is_landed_to_equal_values(
    tmp_path_factory: pytest.TempPathFactory, day: list
) -> None:
    settings = Settings(data=tmp_path_factory.mktemp("data"))
    arrival = MIDNIGHT + timedelta(hours=20)
    for kind in ("decisions", "feedback"):
        files = DayFiles(settings.layout.serving_log / kind, "w1")
        for decided, events, said in day:
            line = (
                decision_line(**{name: written(value) for name, value in decided.items()})
                if kind == "decisions"
                else feedback_line(
                    request_id=decided["request_id"],
                    user_id=decided["user_id"],
                    event_ts=written(arrival),
                    events=[{"item_id": item, **event} for item, event in events.items()],
                    shown=said,
                    shown_top=None,
                )
            )
            files.write([(str(DAY), encode(line))])
        files.close()
    land_service_log(settings, DAY)

    found = {row["request_id"]: row for row in rows(settings, DECISIONS)}
    assert found.keys() == {decided["request_id"] for decided, *_ in day}
    for decided, *_ in day:
        row = found[decided["request_id"]]
        for column in DECISION:
            want = decided[column.name]
            assert row[column.name] == (want.tolist() if isinstance(want, np.ndarray) else want), column.name

    shown = {(row["request_id"], row["item_id"]): row for row in rows(settings, IMPRESSIONS)}
    for decided, events, said in day:
        for position, item in enumerate(decided["items"].tolist()):
            by_default = said is None and position < decided["shown"]
            row = shown.pop((decided["request_id"], item), None)
            assert (row is not None) == (by_default or item in events or item in (said or ()))
            if row is None:
                continue
            for name in ("session_id", "user_id", "event_ts"):
                assert row[name] == decided[name]
            assert row["position"] == position
            assert row["feedback_ts"] == (None if by_default and item not in events else arrival)
            event = events.get(item, {})
            for name in (*(signal.column for signal in settings.signals), "play_time_ms", "duration_ms"):
                assert row[name] == event.get(name, 0), name
            for head in settings.fusion.names:
                want = decided["scores"].get(head)
                assert row[f"p_{head}"] == (None if want is None else want[position]), head
    assert not shown


def test_every_declared_type_is_tried() -> None:
    assert {column.type for column in DECISION} <= VALUES.keys()
    assert {column.name for column in DECISION_LINE} == {
        *("v", "items", "shown", "scores"),
        *(c.name for c in DECISION),
    }
