"""Planted defects are caught by the expectation that is about them; harmless variations raise nothing.

Planted in landed partitions and exported transitions; the table of ``docs/validation.md`` names each
defect with what catches it, and is held against the list here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from training.validation.stages import validate_landed, validate_training_set, validate_transitions

DAYS = (date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7))
DAY = DAYS[-1]
STAGES = {
    "landed": validate_landed,
    "transitions": validate_transitions,
    "training_set": validate_training_set,
}
PAGE = Path(__file__).parents[3] / "docs" / "validation.md"

Change = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Defect:
    name: str
    stage: str
    table: str
    change: Change
    suite: str
    field: str  # of the expectation that must fail: its column in the batch


def put(column: str, row: int, value: Any) -> Change:
    def change(rows: pa.Table) -> pa.Table:
        values = rows[column].to_pylist()
        values[row] = value
        place = rows.schema.get_field_index(column)
        return rows.set_column(place, rows.schema.field(place), pa.array(values, rows[column].type))

    return change


def a_second_later(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.add(values, pa.scalar(timedelta(seconds=1), pa.duration("us")))


def every(column: str, function: Callable[[pa.ChunkedArray], Any]) -> Change:
    def change(rows: pa.Table) -> pa.Table:
        values = function(rows[column])
        return rows.set_column(rows.schema.get_field_index(column), column, values)

    return change


def drop(column: str) -> Change:
    return lambda rows: rows.drop_columns([column])


def as_float(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.ChunkedArray], pa.Array]:
    return lambda values: pa.array(function(values.to_numpy()).astype(np.float32))


def repeated(rows: pa.Table) -> pa.Table:
    return pa.concat_tables([rows, rows.slice(0, 12)])


def put_of_arm(arm: str, column: str, value: Any) -> Change:
    return lambda rows: put(column, rows["arm"].to_pylist().index(arm), value)(rows)


SHOWN, D, U, T = "impressions", "decisions", "users", "transitions"
DEFECTS = [
    Defect(
        "a prediction column is missing", "landed", SHOWN, drop("p_click"), "impressions_files", "p_click"
    ),
    Defect(
        "the key column is missing", "landed", SHOWN, drop("request_id"), "impressions_files", "request_id"
    ),
    Defect(
        "scores written as text",
        "landed",
        SHOWN,
        every("p_like", lambda v: pc.cast(v, pa.string())),
        "impressions_files",
        "p_like",
    ),
    Defect("a probability above 1", "landed", SHOWN, put("p_like", 3, 1.7), "impressions_rows", "p_like"),
    Defect("a negative probability", "landed", SHOWN, put("p_click", 3, -0.1), "impressions_rows", "p_click"),
    Defect(
        "a score that is not a number",
        "landed",
        SHOWN,
        put("p_click", 3, float("nan")),
        "impressions_rows",
        "p_click",
    ),
    Defect(
        "an infinite score", "landed", SHOWN, put("p_like", 3, float("inf")), "impressions_rows", "p_like"
    ),
    Defect(
        "play time predicted in milliseconds",
        "landed",
        SHOWN,
        every("p_play_time", as_float(lambda v: v * 1000.0)),
        "impressions_rows",
        "p_play_time",
    ),
    Defect("a signal of 2", "landed", SHOWN, put("is_like", 3, 2), "impressions_rows", "is_like"),
    Defect("a negative signal", "landed", SHOWN, put("is_hate", 3, -1), "impressions_rows", "is_hate"),
    Defect(
        "negative play time", "landed", SHOWN, put("play_time_ms", 3, -5), "impressions_rows", "play_time_ms"
    ),
    Defect("a user without an id", "landed", SHOWN, put("user_id", 3, None), "impressions_rows", "user_id"),
    Defect(
        "a row of another day",
        "landed",
        SHOWN,
        lambda rows: put("event_ts", 3, rows["event_ts"][3].as_py() - timedelta(days=2))(rows),
        "impressions_rows",
        "event_ts_local_hour",
    ),
    Defect(
        "feedback from before its request",
        "landed",
        SHOWN,
        lambda rows: put("feedback_ts", 3, rows["event_ts"][3].as_py() - timedelta(seconds=1))(rows),
        "impressions_rows",
        "seconds_to_feedback",
    ),
    Defect(
        "impressions written twice with other ids",
        "landed",
        SHOWN,
        repeated,
        "impressions_day",
        "repeated_rows",
    ),
    Defect(
        "half of the rows lost",
        "landed",
        SHOWN,
        lambda rows: rows.slice(0, rows.num_rows // 2),
        "impressions_day",
        "rows_to_recent_median",
    ),
    Defect(
        "three times the rows",
        "landed",
        SHOWN,
        lambda rows: pa.concat_tables(
            [rows, *(every("item_id", lambda v, k=k: pc.add(v, k))(rows) for k in (10_000, 20_000))]
        ),
        "impressions_day",
        "rows_to_recent_median",
    ),
    Defect(
        "a signal that no longer occurs",
        "landed",
        SHOWN,
        every("is_click", lambda v: pc.multiply(v, pa.scalar(0, pa.int8()))),
        "impressions_day",
        "is_click_rate",
    ),
    Defect(
        "a head that is predicted no more",
        "landed",
        SHOWN,
        every("p_like", lambda v: pa.nulls(len(v), pa.float32())),
        "impressions_day",
        "p_like_gone",
    ),
    Defect(
        "a head whose scores drifted",
        "landed",
        SHOWN,
        every("p_click", as_float(np.square)),
        "impressions_day",
        "p_click_psi",
    ),
    Defect("decisions written twice", "landed", D, repeated, "decisions_day", "repeated_rows"),
    Defect(
        "an action out of bounds",
        "landed",
        D,
        put("action", 4, [0.0, 1.5, 0.0]),
        "decisions_rows",
        "action_like",
    ),
    Defect(
        "an action of another length", "landed", D, put("action", 4, [0.5]), "decisions_rows", "action_length"
    ),
    Defect(
        "a state of another length",
        "landed",
        D,
        put("state", 4, [0.0, 1.0]),
        "decisions_rows",
        "state_length",
    ),
    Defect(
        "a drawn action without its density",
        "landed",
        D,
        put_of_arm("random", "log_density", None),
        "decisions_rows",
        "log_density_of_drawn",
    ),
    Defect(
        "a unit of exploration that nobody knows",
        "landed",
        D,
        put("exploration_unit", 4, "user"),
        "decisions_rows",
        "exploration_unit_known",
    ),
    Defect("an arm that nobody knows", "landed", D, put("arm", 4, "chamipon"), "decisions_rows", "arm_known"),
    Defect(
        "a user's flag of -124", "landed", U, put("is_video_author", 2, -124), "users_rows", "is_video_author"
    ),
    Defect(
        "a user twice",
        "landed",
        U,
        lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]),
        "users_day",
        "repeated_rows",
    ),
    Defect(
        "transitions lost by a join",
        "transitions",
        T,
        lambda rows: rows.slice(0, 250),
        "transitions_day",
        "share_of_decisions",
    ),
    Defect(
        "a reward beyond what eq. (2) can give",
        "transitions",
        T,
        put("reward", 1, 1e5),
        "transitions_rows",
        "reward_per_impression",
    ),
    Defect(
        "a transition both done and truncated",
        "transitions",
        T,
        lambda rows: put("truncated", 0, True)(put("done", 0, True)(rows)),
        "transitions_rows",
        "end_known",
    ),
    Defect(
        "a reward that never differs",
        "training_set",
        T,
        every("reward", lambda v: pa.array([1.0] * len(v))),
        "training_set_day",
        "reward_std",
    ),
]


def critical(record: dict[str, Any]) -> set[tuple[str, str]]:
    return {
        (suite, failed["field"])
        for suite, result in record["suites"].items()
        for failed in result["failed"]
        if failed["severity"] == "critical"
    }


FAST = ("a probability above 1", "a head whose scores drifted", "a reward beyond what eq. (2) can give")


@pytest.mark.parametrize(
    "defect",
    [pytest.param(d, marks=[] if d.name in FAST else pytest.mark.slow, id=d.name) for d in DEFECTS],
)
def test_a_defect_is_caught_by_the_expectation_that_is_about_it(days: Any, defect: Defect) -> None:
    for day in DAYS if defect.stage == "training_set" else (DAY,):
        days.damage(defect.table, day, defect.change)
    record = STAGES[defect.stage](days.settings, DAY)
    assert not record["success"]  # the stages after it do not run: nothing reaches training
    assert (defect.suite, defect.field) in critical(record), critical(record)


def shuffled(rows: pa.Table) -> pa.Table:
    return rows.take(np.random.default_rng(0).permutation(rows.num_rows))


def fewer(rows: pa.Table) -> pa.Table:
    return rows.slice(0, rows.num_rows * 9 // 10)


def drawn_higher(values: np.ndarray) -> np.ndarray:
    return values * 0.97


HARMLESS: dict[str, tuple[str, Change]] = {
    "impressions in another order": (SHOWN, shuffled),
    "decisions in another order": (D, shuffled),
    "users in another order": (U, shuffled),
    "transitions in another order": (T, shuffled),
    "new item ids": (SHOWN, every("item_id", lambda v: pc.add(v, 5_000_000))),
    "slightly lower scores": (SHOWN, every("p_click", as_float(drawn_higher))),
    "a column more in the files": (SHOWN, lambda rows: rows.append_column("note", pa.nulls(rows.num_rows))),
    "columns in another order": (SHOWN, lambda rows: rows.select(rows.column_names[::-1])),
    "a tenth fewer users landed": (U, fewer),
    "another policy's version": (D, every("policy_version", lambda v: pa.array(["p2"] * len(v)))),
    "sessions unknown to the log": (SHOWN, every("session_id", lambda v: pa.nulls(len(v), pa.string()))),
    "feedback times unknown": (SHOWN, every("feedback_ts", lambda v: pa.nulls(len(v), v.type))),
    "durations unknown on some rows": (SHOWN, put("duration_ms", 3, 0)),
    "a play that took an hour": (SHOWN, put("play_time_ms", 3, 3_600_000)),
    "events a second later": (
        SHOWN,
        lambda rows: every("event_ts", a_second_later)(every("feedback_ts", a_second_later)(rows)),
    ),
    "a state of an older specification": (
        D,
        lambda rows: put("state_spec", 0, "s0000000000")(put("state", 0, [0.0])(rows)),
    ),
    "one decision that fell back": (D, put("fallback", 3, "store")),
    "a probability of exactly 1": (SHOWN, put("p_like", 3, 1.0)),
    "a probability of exactly 0": (SHOWN, put("p_like", 3, 0.0)),
    "a profile column without a value": (U, put("fans_user_num", 3, None)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "new item ids" else pytest.mark.slow) for n in HARMLESS],
)
def test_a_harmless_variation_raises_no_alarm(days: Any, name: str) -> None:
    table, change = HARMLESS[name]
    days.damage(table, DAY, change)
    for stage in (validate_landed, validate_transitions, validate_training_set):
        record = stage(days.settings, DAY)
        assert record["success"], critical(record)
        assert [f["message"] for suite in record["suites"].values() for f in suite["failed"]] == []


def test_the_docs_name_every_defect_and_what_catches_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(DEFECTS) >= 30 and len(HARMLESS) >= 20
    for d in DEFECTS:
        assert f"| {d.name} | validate_{d.stage} | {d.suite} | {d.field} |" in page
    for name in HARMLESS:
        assert f"- {name}\n" in page
