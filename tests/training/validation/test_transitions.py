"""Transitions of a day, and the training set of a window."""

from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.validation.rules import reward_range
from training.validation.stages import validate_training_set, validate_transitions

DAYS = (date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7))
DAY = DAYS[-1]


def failures(record: dict[str, Any], severity: str = "critical") -> dict[str, str]:
    found: dict[str, str] = {}
    for suite in record["suites"].values():
        for failed in suite["failed"]:
            if failed["severity"] == severity:
                found[failed["column"]] = found.get(failed["column"], "") + failed["message"]
    return found


def test_good_transitions_pass(days: Any) -> None:
    record = validate_transitions(days.settings, DAY)
    assert record["success"], failures(record)
    assert failures(record, "warning") == {}
    assert record["measures"]["transitions"]["share_of_decisions"] == 1.0
    assert set(record["suites"]) == {"transitions_files", "transitions_rows", "transitions_day"}


def test_bad_transitions_are_named(days: Any) -> None:
    days.set_value("transitions", DAY, "reward", [0], float("nan"))
    days.set_value("transitions", DAY, "reward", [1], 1e5)
    days.set_value("transitions", DAY, "state", [2], [0.0])
    days.set_value("transitions", DAY, "action", [3], [-2.0, 0.0, 0.0])
    days.set_value("transitions", DAY, "next_state", [4], None)
    days.set_value("transitions", DAY, "done", [4], False)
    days.set_value("transitions", DAY, "done", [5], True)
    days.set_value("transitions", DAY, "truncated", [5], True)
    record = validate_transitions(days.settings, DAY)
    found = failures(record)
    assert set(found) == {"reward", "state", "action", "done"}
    assert "eq. (2)" in found["reward"] and "2 of 300 rows" in found["reward"]
    assert "action_click is at least -1" in found["action"]
    assert "2 of 300 rows" in found["done"]
    assert record["quarantined"] == {"transitions": 6}


def test_transitions_lost_or_multiplied_by_a_join_stop_the_day(days: Any) -> None:
    days.damage("transitions", DAY, lambda rows: rows.slice(0, 250))
    assert "each of the 300 decisions" in failures(validate_transitions(days.settings, DAY))["request_id"]
    days.add_day(DAY)
    days.damage("transitions", DAY, lambda rows: pa.concat_tables([rows, rows.slice(0, 30)]))
    found = failures(validate_transitions(days.settings, DAY))["request_id"]
    assert "each of the 300 decisions" in found and "no two rows" in found
    days.path("transitions", DAY).unlink()
    assert "there are Parquet files" in str(failures(validate_transitions(days.settings, DAY)))


def test_a_day_without_states_needs_no_transitions(lake: Any) -> None:
    lake.add_day(DAY)
    for table in ("decisions", "transitions"):
        lake.path(table, DAY).unlink()
    record = validate_transitions(lake.settings, DAY)
    assert record["success"] and record["suites"] == {}
    assert record["not_judged"][0]["why"].startswith("no decision of the day carries a state")


def test_the_training_set_is_the_window(days: Any) -> None:
    days.add_day(date(2026, 1, 1))  # before the window
    record = validate_training_set(days.settings, DAY)
    assert record["success"], failures(record)
    assert failures(record, "warning") == {}
    assert record["measures"]["training_set"]["current_transitions"] == 900


def test_too_few_transitions_of_the_current_specification(days: Any) -> None:
    for day in DAYS:
        days.set_value("transitions", day, "state_spec", list(range(280)), "s0000000000")
    record = validate_training_set(days.settings, DAY)
    assert "at least 200 transitions" in failures(record)["state_spec"]
    assert "at least 90%" in failures(record, "warning")["state_spec"]


def test_what_cannot_be_learnt_from_is_refused_or_reported(days: Any) -> None:
    for day in DAYS:
        days.set_value("transitions", day, "reward", list(range(300)), 1.0)
        days.set_value("transitions", day, "arm", list(range(300)), "static")
    record = validate_training_set(days.settings, DAY)
    assert "a constant reward teaches nothing" in failures(record)["reward"]
    assert "of the random group" in failures(record, "warning")["arm"]


def test_no_transitions_at_all(lake: Any) -> None:
    record = validate_training_set(lake.settings, DAY)
    assert not record["success"]
    assert "there are Parquet files of training_set" in str(failures(record))


def test_reward_range_is_that_of_the_settings(lake: Any) -> None:
    low, high = reward_range(lake.settings)
    assert low == pytest.approx(-2.0)  # a hate
    assert high == pytest.approx(0.1 + 0.5 + 0.02 * 120 + 0.3)


def test_a_head_that_no_action_moves_is_reported(days: Any) -> None:
    for day in DAYS:
        actions = pq.read_table(days.path("transitions", day))["action"].to_pylist()

        def still(rows: pa.Table, actions: list[list[float]] = actions) -> pa.Table:
            fixed = pa.array([[a, 0.1, c] for a, _, c in actions], pa.list_(pa.float32()))
            return rows.set_column(rows.schema.get_field_index("action"), "action", fixed)

        days.damage("transitions", day, still)
    record = validate_training_set(days.settings, DAY)
    assert record["success"]
    assert "the logged actions of like reach 50%" in failures(record, "warning")["action"]
    assert record["measures"]["training_set"]["click_coverage"] == 1.0
    assert record["measures"]["training_set"]["like_coverage"] == 0.1


def test_too_small_a_group_of_exploration_is_reported(days: Any) -> None:
    for day in DAYS:
        days.set_value("transitions", day, "arm", list(range(299)), "champion")
    record = validate_training_set(days.settings, DAY)
    assert "of the transitions are of the random group" in failures(record, "warning")["arm"]


def test_rewards_far_beyond_those_before_the_window_are_reported(days: Any) -> None:
    days.add_day(date(2026, 1, 1))  # before the window
    assert failures(validate_training_set(days.settings, DAY), "warning") == {}
    days.set_value("transitions", date(2026, 1, 1), "reward", list(range(300)), 0.01)
    record = validate_training_set(days.settings, DAY)
    assert (
        record["success"] and "lies within that of the days before" in failures(record, "warning")["reward"]
    )
