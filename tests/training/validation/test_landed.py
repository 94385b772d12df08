"""Landed days: good ones pass, and each kind of damage stops the day with a name to it."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from training.contract.files import write_json_atomic
from training.contract.log import DECISION
from training.contract.records import read_record, write_record
from training.contract.settings import Settings
from training.contract.transitions import OF_SOME_LEARNERS, TRANSITION
from training.validation import rules
from training.validation.stages import validate_landed

PAST = (date(2026, 1, 5), date(2026, 1, 6))
DAY = date(2026, 1, 7)


def failures(record: dict[str, Any], severity: str = "critical") -> list[dict[str, Any]]:
    return [
        failed | {"suite": name}
        for name, suite in record["suites"].items()
        for failed in suite["failed"]
        if failed["severity"] == severity
    ]


def text_of(lake: Any, page: str) -> str:
    """What a page says, without its markup."""
    content = (lake.settings.data / page).read_text(encoding="utf-8")
    return " ".join(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", content, flags=re.DOTALL).split())


def test_a_good_day_passes_and_every_suite_has_its_page(days: Any) -> None:
    record = validate_landed(days.settings, DAY)
    assert record["success"], failures(record)
    assert failures(record, "warning") == []
    assert record["quarantined"] == {}
    assert record["not_judged"] == []
    assert set(record["suites"]) == {
        f"{table}_{part}"
        for table in ("impressions", "decisions", "users")
        for part in ("files", "rows", "day")
    }
    assert record["measures"]["impressions"]["rows"] == 1800
    index = (days.settings.data / record["data_docs"]).read_text()
    for name, suite in record["suites"].items():
        assert suite["evaluated"] > 0
        assert (days.settings.data / suite["page"]).is_file()
        assert f">{name}</a>" in index
    json.dumps(record, allow_nan=False)


def test_the_first_day_judges_no_volume_and_says_so(lake: Any) -> None:
    lake.add_day(DAY)
    record = validate_landed(lake.settings, DAY)
    assert record["success"]
    why = {(entry["suite"], entry["what"]): entry["why"] for entry in record["not_judged"]}
    assert "no recent day" in why["impressions_day", "volume and rates"]
    assert "rows_to_recent_median" not in record["measures"]["impressions"]


def test_a_missing_column_is_named_and_the_rest_is_still_checked(shown: Any) -> None:
    shown.damage("impressions", DAY, lambda rows: rows.drop_columns(["p_click"]))
    record = validate_landed(shown.settings, DAY)
    assert not record["success"]
    [failed] = failures(record)
    assert (failed["suite"], failed["column"]) == ("impressions_files", "p_click")
    assert failed["message"] == f"impressions of {DAY}: the column p_click is missing"
    assert record["suites"]["impressions_rows"]["evaluated"] > 20
    assert "a column p_click of type float" in text_of(shown, record["suites"]["impressions_files"]["page"])


def test_a_missing_key_column_does_not_break_the_others(shown: Any) -> None:
    shown.damage("impressions", DAY, lambda rows: rows.drop_columns(["request_id"]))
    shown.set_value("impressions", DAY, "is_like", [0], 9)
    record = validate_landed(shown.settings, DAY)
    assert {failed["column"] for failed in failures(record)} == {"request_id", "is_like"}
    assert record["quarantined"] == {"impressions": 1}


def test_a_column_of_another_type_is_named(shown: Any) -> None:
    def text(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("p_like")
        return table.set_column(index, "p_like", pc.cast(table["p_like"], pa.string()))

    shown.damage("impressions", DAY, text)
    [failed] = failures(validate_landed(shown.settings, DAY))
    assert (failed["column"], failed["observed"]) == ("p_like", ["string"])
    assert "of type float" in failed["message"]


def test_a_score_out_of_range_is_counted_and_quarantined(shown: Any) -> None:
    shown.set_value("impressions", DAY, "p_click", [3, 9], 1.7)
    record = validate_landed(shown.settings, DAY)
    [failed] = failures(record)
    assert (failed["suite"], failed["column"]) == ("impressions_rows", "p_click")
    assert failed["observed"] == pytest.approx(1.7)
    assert failed["unexpected_count"] == 2
    assert "p_click, is at most 1" in failed["message"] and "2 of 1800 rows" in failed["message"]
    page = text_of(shown, record["suites"]["impressions_rows"]["page"])
    assert "p_click, is at most 1: 2 rows break it" in page
    assert "p_click, is at most 1: 2 rows break it" in text_of(shown, record["data_docs"])
    kept = pq.read_table(shown.settings.layout.quarantine("impressions", DAY) / "validation.parquet")
    assert kept.num_rows == record["quarantined"]["impressions"] == 2
    assert set(kept["reason"].to_pylist()) == {"expected: the predicted click, p_click, is at most 1"}
    assert kept["item_id"].to_pylist() == [3, 9]


def test_each_bad_value_of_impressions_is_named(shown: Any) -> None:
    early = pq.read_table(shown.path("impressions", PAST[0]))["event_ts"][0].as_py()
    bad = {
        "is_like": (2, "is_like, a 0/1 signal, is at most 1"),
        "is_hate": (-1, "is_hate, a 0/1 signal, is at least 0"),
        "play_time_ms": (-5, "play_time_ms is at least 0"),
        "user_id": (None, "user_id is there in every row"),
        "is_click": (None, "is_click is there in every row"),
        "p_play_time": (36_001.0, "p_play_time, is at most 36000"),
        "p_click": (float("nan"), "found not a finite number"),
        "p_like": (float("-inf"), "found not a finite number"),
        "event_ts": (early, f"event_ts lies in the local day {DAY}"),
    }
    for row, (column, (value, _)) in enumerate(bad.items()):
        shown.set_value("impressions", DAY, column, [row], value)
    record = validate_landed(shown.settings, DAY)
    # a row of another day is also one of a request that has two times: that of the row comes first
    found = {failed["column"]: failed for failed in reversed(failures(record))}
    assert set(found) == set(bad)
    for column, (_, what) in bad.items():
        assert found[column]["unexpected_count"] == 1
        assert what in found[column]["message"]
    assert record["quarantined"] == {"impressions": len(bad)}


def test_times_that_no_table_can_sum_stop_the_day(shown: Any) -> None:
    shown.set_value("impressions", DAY, "play_time_ms", [3, 4, 5], 2**62)
    shown.set_value("impressions", DAY, "duration_ms", [7], 366 * 86_400_000 + 1)
    record = validate_landed(shown.settings, DAY)
    found = {failed["column"]: failed for failed in failures(record)}
    assert {column: failed["unexpected_count"] for column, failed in found.items()} == {
        "play_time_ms": 3,
        "duration_ms": 1,
    }
    for column, failed in found.items():
        assert f"{column} is at most a year, 31622400000" in failed["message"]
    assert record["quarantined"] == {"impressions": 4}


@pytest.mark.parametrize(("verdict", "severity"), [("fail", "critical"), ("warn", "warning")])
def test_feedback_from_before_its_request_is_judged(shown: Any, verdict: str, severity: str) -> None:
    verdicts = shown.settings.validation.verdicts.model_copy(update={"feedback_times": verdict})
    validation = shown.settings.validation.model_copy(update={"verdicts": verdicts})
    settings = shown.settings.model_copy(update={"validation": validation})
    asked = pq.read_table(shown.path("impressions", DAY))["event_ts"].to_pylist()
    shown.set_value("impressions", DAY, "feedback_ts", [4], asked[4] - timedelta(microseconds=1))
    shown.set_value("impressions", DAY, "feedback_ts", [5], asked[5])
    record = validate_landed(settings, DAY)
    [failed] = failures(record, severity)
    assert (failed["column"], failed["unexpected_count"]) == ("feedback_ts", 1)
    assert "feedback comes after its request" in failed["message"]
    assert record["success"] == (severity == "warning")
    assert record["quarantined"] == ({"impressions": 1} if severity == "critical" else {})


@pytest.mark.parametrize("orphans", [0, 3])
def test_feedback_on_items_that_were_not_ranked_is_told(shown: Any, orphans: int) -> None:
    landed = {"tables": {"impressions": {"orphan_feedback": orphans}}}
    write_record(shown.settings.layout, DAY, "land", landed)
    record = validate_landed(shown.settings, DAY)
    warned = [failed["observed"] for failed in failures(record, "warning")]
    assert (record["success"], warned) == (True, [orphans] if orphans else [])
    assert record["measures"]["impressions"]["orphan_feedback"] == orphans


def test_duplicated_requests_are_counted_and_every_copy_is_kept(days: Any) -> None:
    for table in ("impressions", "decisions"):
        days.damage(table, DAY, lambda rows: pa.concat_tables([rows, rows.slice(0, 12)]))
    record = validate_landed(days.settings, DAY)
    found = {failed["suite"]: failed for failed in failures(record)}
    assert set(found) == {"impressions_day", "decisions_day"}
    assert found["impressions_day"]["column"] == "request_id, item_id"
    assert found["decisions_day"]["observed"] == found["decisions_day"]["unexpected_count"] == 12
    assert record["quarantined"] == {"impressions": 24, "decisions": 24}
    page = text_of(days, record["suites"]["impressions_day"]["page"])
    assert "no two rows have the same request_id, item_id: 12 rows break it" in page


def test_half_the_usual_rows_stop_the_day(days: Any) -> None:
    days.damage("impressions", DAY, lambda rows: rows.slice(0, rows.num_rows // 2))
    record = validate_landed(days.settings, DAY)
    [failed] = failures(record)
    assert (failed["column"], failed["observed"]) == ("rows", 0.5)
    assert "900 rows are between 0.6 and 2.5 times the median of the last 2 days, 1800" in failed["message"]
    [warned] = failures(record, "warning")  # half of the decisions have lost their impressions
    assert (warned["suite"], warned["column"]) == ("decisions_day", "request_id")


def test_a_day_that_failed_is_no_measure_for_the_next(shown: Any) -> None:
    shown.damage("impressions", PAST[1], lambda rows: rows.slice(0, 600))
    failed = validate_landed(shown.settings, PAST[1])
    assert not failed["success"]
    write_record(shown.settings.layout, PAST[1], "validate_landed", failed)
    record = validate_landed(shown.settings, DAY)
    assert record["success"]
    assert record["measures"]["impressions"]["recent_median_rows"] == 1800


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garble(content: bytes) -> bytes:
    """Damage every page, leave the footer."""
    footer = int.from_bytes(content[-8:-4], "little") + 8
    return content[:4] + bytes(len(content) - footer - 4) + content[-footer:]


@pytest.mark.parametrize("damage", [truncate, garble])
def test_a_broken_file_is_named_and_nothing_crashes(days: Any, damage: Callable[[bytes], bytes]) -> None:
    path = days.path("impressions", DAY)
    path.write_bytes(damage(path.read_bytes()))
    record = validate_landed(days.settings, DAY)
    [failed] = failures(record)
    assert (failed["suite"], failed["column"]) == ("impressions_files", "readable")
    assert "part-0.parquet" in failed["message"]
    assert "part-0.parquet" in text_of(days, record["suites"]["impressions_files"]["page"])
    assert {"impressions_rows", "impressions_day"}.isdisjoint(record["suites"])
    assert any(entry["why"] == "a file cannot be read" for entry in record["not_judged"])
    assert record["suites"]["decisions_rows"]["success"]


def test_broken_files_among_the_recent_days_are_left_out(shown: Any) -> None:
    for day, damage in zip(PAST, (truncate, garble), strict=True):
        path = shown.path("impressions", day)
        path.write_bytes(damage(path.read_bytes()))
    record = validate_landed(shown.settings, DAY)
    assert record["success"]
    assert {entry["what"] for entry in record["not_judged"]} == {
        f"{PAST[1]} as a recent day",
        "volume and rates",
    }


def test_a_day_without_files_stops(days: Any) -> None:
    for table in ("impressions", "decisions"):
        days.path(table, DAY).unlink()
        days.path(table, DAY).parent.rmdir()
    record = validate_landed(days.settings, DAY)
    messages = [failed["message"] for failed in failures(record)]
    assert any("there are Parquet files of impressions" in message for message in messages)
    assert any("there are Parquet files of decisions" in message for message in messages)


def test_an_action_outside_its_bounds_is_named(days: Any) -> None:
    days.set_value("decisions", DAY, "action", [4], [0.0, 1.5, 0.0])
    days.set_value("decisions", DAY, "action_mean", [5], [0.0, 0.0, -7.0])
    record = validate_landed(days.settings, DAY)
    found = {failed["column"]: failed for failed in failures(record)}
    assert {(column, failed["observed"]) for column, failed in found.items()} == {
        ("action", 1.5),
        ("action_mean", -7.0),
    }
    assert "action_like is at most 1" in found["action"]["message"]
    assert "action_like is at most 1" in text_of(days, record["suites"]["decisions_rows"]["page"])
    assert record["quarantined"] == {"decisions": 2}


def test_states_actions_and_densities_of_decisions(days: Any) -> None:
    arms = pq.read_table(days.path("decisions", DAY))["arm"].to_pylist()
    drawn = arms.index("random")
    days.set_value("decisions", DAY, "log_density", [drawn], None)
    days.set_value("decisions", DAY, "state", [0], [0.0, 1.0])
    days.set_value("decisions", DAY, "action", [1], [0.5])
    days.set_value("decisions", DAY, "arm", [arms.index("champion")], "chamipon")
    record = validate_landed(days.settings, DAY)
    by_column: dict[str, str] = {}
    for failed in failures(record):
        by_column[failed["column"]] = by_column.get(failed["column"], "") + failed["message"]
    assert set(by_column) == {"log_density", "state", "action", "arm"}
    assert "drawn by an exploring arm" in by_column["log_density"]
    assert (
        f"of {days.settings.state_spec.version} is at least {days.settings.state_spec.width}"
        in by_column["state"]
    )
    assert "the length of action is at least 3" in by_column["action"]
    assert "arm is one of champion" in by_column["arm"]


def test_a_state_of_an_older_specification_may_have_another_length(days: Any) -> None:
    days.set_value("decisions", DAY, "state", [0], [0.0, 1.0])
    days.set_value("decisions", DAY, "state_spec", [0], "s0000000000")
    assert validate_landed(days.settings, DAY)["success"]


def test_logs_without_predictions_pass_and_partly_null_ones_are_reported(lake: Any) -> None:
    for day in (*PAST, DAY):
        lake.add_day(day, predictions=False)
    record = validate_landed(lake.settings, DAY)
    assert record["success"]
    left_out = [entry for entry in record["not_judged"] if entry["suite"] == "impressions_rows"]
    assert "p_click" in left_out[0]["what"] and left_out[0]["why"] == "no row has a value"
    lake.set_value("impressions", DAY, "p_click", list(range(900)), 0.5)
    record = validate_landed(lake.settings, DAY)
    assert record["success"]
    [warned] = failures(record, "warning")
    assert (warned["column"], warned["observed"]) == ("p_click", 0.5)


def test_rates_that_move_are_reported_and_one_that_vanishes_stops(shown: Any) -> None:
    shown.set_value("impressions", DAY, "is_like", list(range(1200)), 1)
    shown.set_value("impressions", DAY, "is_click", list(range(1800)), 0)
    record = validate_landed(shown.settings, DAY)
    assert [failed["column"] for failed in failures(record)] == ["is_click"]
    # p_like, which said nothing of these likes, no longer comes true
    assert {f["field"] for f in failures(record, "warning")} == {"is_like", "is_click", "p_like_calibration"}


def test_a_partition_changed_after_landing_is_reported(shown: Any) -> None:
    write_json_atomic(shown.path("impressions", DAY).with_name("_landed.json"), {"rows": 1801})
    record = validate_landed(shown.settings, DAY)
    [warned] = failures(record, "warning")
    assert record["success"] and "the 1801 rows that were landed" in warned["message"]


def test_a_second_run_takes_the_place_of_the_first(shown: Any) -> None:
    shown.set_value("impressions", DAY, "p_click", [3], 1.7)
    assert validate_landed(shown.settings, DAY)["quarantined"] == {"impressions": 1}
    shown.add_day(DAY)
    first = validate_landed(shown.settings, DAY)
    second = validate_landed(shown.settings, DAY)
    assert first == second and first["success"]
    assert not list((shown.settings.data / "lake" / "quarantine").rglob("*.parquet"))
    layout = shown.settings.layout
    pages = sorted(
        path.parent.parent.parent.name for path in layout.validation.glob("data_docs/validations/**/*.html")
    )
    assert pages == sorted(first["suites"])
    # suites that a broken file leaves nothing for lose their pages of the earlier run
    shown.path("impressions", DAY).write_bytes(b"PAR1")
    broken = validate_landed(shown.settings, DAY)
    assert not list(layout.validation.glob("data_docs/validations/impressions_rows/**/*.html"))
    assert ">impressions_rows</a>" not in (shown.settings.data / broken["data_docs"]).read_text()


def test_other_days_stay_in_data_docs(shown: Any) -> None:
    for day in (PAST[0], DAY):
        record = validate_landed(shown.settings, day)
    index = text_of(shown, record["data_docs"])
    assert str(PAST[0]) in index and index.index(str(DAY)) < index.index(str(PAST[0]))


def test_pages_and_runs_need_no_network(days: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("validation opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    record = validate_landed(days.settings, DAY)
    for path in days.settings.layout.validation.glob("data_docs/**/*.html"):
        assert not re.findall(r"""(?:src|href)=["']https?:""", path.read_text()), path
    page = days.settings.data / record["suites"]["users_rows"]["page"]
    for link in re.findall(r'href="([^"#]+)"', page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_quarantine_is_capped(lake: Any) -> None:
    small = lake.settings.validation.model_copy(update={"quarantine_rows": 5})
    lake.settings = lake.settings.model_copy(update={"validation": small})
    lake.add_day(DAY)
    lake.set_value("impressions", DAY, "p_click", list(range(50)), 1.7)
    record = validate_landed(lake.settings, DAY)
    assert record["quarantined"] == {"impressions": 5}
    assert failures(record)[0]["unexpected_count"] == 50


def test_flags_and_keys_of_users(days: Any) -> None:
    flag = next(f.column for f in days.settings.state.profile if f.kind == "flag")
    days.set_value("users", DAY, flag, [2], -124)
    days.damage("users", DAY, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))
    record = validate_landed(days.settings, DAY)
    assert {(failed["suite"], failed["column"]) for failed in failures(record)} == {
        ("users_rows", flag),
        ("users_day", "user_id"),
    }


def replace_scores(lake: Any, day: date, column: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    def changed(rows: pa.Table) -> pa.Table:
        values = change(rows[column].to_numpy()).astype(np.float32)
        return rows.set_column(rows.schema.get_field_index(column), column, pa.array(values))

    lake.damage("impressions", day, changed)


def test_scores_spread_otherwise_stop_the_day_and_are_recorded_by_head(days: Any) -> None:
    replace_scores(days, DAY, "p_click", np.square)
    record = validate_landed(days.settings, DAY)
    [failed] = failures(record)
    assert (failed["suite"], failed["field"], failed["column"]) == (
        "impressions_day",
        "p_click_psi",
        "p_click",
    )
    drift = read_record(days.settings.layout, DAY, "drift")
    assert drift["recent_days"] == [str(day) for day in PAST]
    assert drift["heads"]["p_click"]["psi"] == failed["observed"] > 0.25
    assert drift["heads"]["p_like"]["psi"] < 0.1
    assert drift["heads"]["p_click"]["calibration_change"]["upper"] < 1.0
    assert "static arm's scores p_click" not in failed["message"]  # 20 % of 1800 are too few of them


def test_the_static_arm_is_what_drift_is_read_off_where_it_has_enough_scores(days: Any) -> None:
    limits = days.settings.validation.model_copy(update={"min_drift_rows": 200})
    days.settings = days.settings.model_copy(update={"validation": limits})
    others = [
        request
        for request, arm in zip(
            *(pq.read_table(days.path("decisions", DAY))[name].to_pylist() for name in ("request_id", "arm")),
            strict=True,
        )
        if arm != "static"
    ]

    def promoted(rows: pa.Table) -> pa.Table:
        """Another policy shows other items: its requests' scores rise, the static arm's do not."""
        chosen = pc.is_in(rows["request_id"], pa.array(others))
        raised = pc.if_else(chosen, pc.sqrt(rows["p_like"]), rows["p_like"])
        return rows.set_column(rows.schema.get_field_index("p_like"), "p_like", raised)

    days.damage("impressions", DAY, promoted)
    record = validate_landed(days.settings, DAY)
    assert record["success"], failures(record)
    drift = read_record(days.settings.layout, DAY, "drift")["heads"]["p_like"]
    assert drift["psi_scope"] == "control" and drift["psi"] < 0.25


def test_the_verdict_on_drift_is_the_settings(days: Any) -> None:
    verdicts = days.settings.validation.verdicts.model_copy(
        update={"score_drift": "warn", "calibration": "fail"}
    )
    limits = days.settings.validation.model_copy(update={"verdicts": verdicts})
    days.settings = days.settings.model_copy(update={"validation": limits})
    replace_scores(days, DAY, "p_click", np.square)
    record = validate_landed(days.settings, DAY)
    assert [failed["field"] for failed in failures(record)] == []
    assert "p_click_psi" in {failed["field"] for failed in failures(record, "warning")}
    replace_scores(days, DAY, "p_click", lambda scores: scores * 0.3)
    record = validate_landed(days.settings, DAY)
    assert [failed["field"] for failed in failures(record)] == ["p_click_calibration"]


def test_a_head_that_is_predicted_no_more_stops_the_day(shown: Any) -> None:
    shown.set_value("impressions", DAY, "p_like", list(range(1800)), None)
    record = validate_landed(shown.settings, DAY)
    [failed] = failures(record)
    assert (failed["field"], failed["column"]) == ("p_like_gone", "p_like")


def test_a_band_is_learnt_once_there_are_enough_days(lake: Any) -> None:
    past = [date(2026, 1, day) for day in range(1, 7)]
    for one in (*past, DAY):
        lake.add_day(one)
    for table in ("decisions", "users"):
        shutil.rmtree(lake.settings.layout.table(table))
    limits = lake.settings.validation.model_copy(update={"band_alarm_rate": 0.01})
    lake.settings = lake.settings.model_copy(update={"validation": limits})
    before = validate_landed(lake.settings, DAY)
    assert before["success"] and "is_click" not in {f["field"] for f in failures(before, "warning")}
    band = before["bands"]["impressions"]["is_click"]
    assert band["learnt"] and band["days"] == 6 and band["low"] < 0.3 < band["high"] < 0.4
    # a third more clicks and some: within half of the mean, beyond what these days have shown
    zeros = [
        i for i, v in enumerate(pq.read_table(lake.path("impressions", DAY))["is_click"].to_pylist()) if not v
    ]
    lake.set_value("impressions", DAY, "is_click", zeros[:200], 1)
    record = validate_landed(lake.settings, DAY)
    assert record["success"]
    assert {"is_click"} <= {failed["field"] for failed in failures(record, "warning")}
    few = validate_landed(lake.settings, past[2])
    assert not few["bands"]["impressions"]["is_click"]["learnt"]


def test_a_recent_day_is_measured_again_when_its_rows_changed(shown: Any) -> None:
    first = validate_landed(shown.settings, DAY)["bands"]["impressions"]["is_like"]
    assert validate_landed(shown.settings, DAY)["bands"]["impressions"]["is_like"] == first
    shown.set_value("impressions", PAST[0], "is_like", list(range(900)), 0)
    again = validate_landed(shown.settings, DAY)["bands"]["impressions"]["is_like"]
    assert again["middle"] < first["middle"]


def test_a_profile_that_moved_under_the_served_states_is_warned_of(lake: Any) -> None:
    first = lake.settings.state_spec.entry_names[0]

    def served(share: float) -> Any:
        def change(rows: pa.Table) -> pa.Table:
            states = rows["state"].to_pylist()
            for n, state in enumerate(states):
                state[0] = float(n < share * len(states))
            place = rows.schema.get_field_index("state")
            return rows.set_column(place, rows.schema.field(place), pa.array(states, rows["state"].type))

        return change

    for back in range(6, -1, -1):
        lake.add_day(day := DAY - timedelta(days=back))
        lake.damage("decisions", day, served(0.5 + 0.01 * (back % 2)))
    field = f"profile_{first}"
    assert field not in {f["field"] for f in failures(validate_landed(lake.settings, DAY), "warning")}
    lake.damage("decisions", DAY, served(0.9))
    record = validate_landed(lake.settings, DAY)
    [warned] = [f for f in failures(record, "warning") if f["field"] == field]
    assert warned["column"] == first and record["bands"]["decisions"][field]["value"] == pytest.approx(0.9)


def test_a_source_whose_columns_changed_is_judged_by_what_changed(shown: Any) -> None:
    note = {
        "rows": 1800,
        "source": "files",
        "columns": {"request_id": "string", "p_like": "float", "x": "int64"},
    }
    write_json_atomic(shown.path("impressions", PAST[1]).with_name("_landed.json"), note)
    now = note | {"columns": {"request_id": "large_string", "p_liked": "float"}}
    write_json_atomic(shown.path("impressions", DAY).with_name("_landed.json"), now)
    record = validate_landed(shown.settings, DAY)
    [failed] = failures(record)  # the contract reads p_like; nobody reads x
    assert (failed["suite"], failed["field"]) == ("impressions_day", "p_like_gone_from_source")
    assert "p_like (float) is gone" in failed["message"] and str(PAST[1]) in failed["message"]
    warned = {f["field"] for f in failures(record, "warning")}
    assert warned == {"p_liked_new_in_source", "request_id_retyped_in_source"}
    changes = read_record(shown.settings.layout, DAY, "drift")["schema"]
    assert {c["column"] for c in changes} == {"p_like", "p_liked", "request_id", "x"}


def test_every_declared_field_has_its_type_checked_and_nulls_refused_where_there_are_none() -> None:
    for judged, declared in (
        (rules.decisions(Settings(), DAY), DECISION),
        (rules.transitions(Settings()), [c for c in TRANSITION if c.name not in (*OF_SOME_LEARNERS, "dt")]),
    ):
        assert [*judged.types] == [column.name for column in declared]
        assert all(column.type in judged.types[column.name] for column in declared)
        refused = {
            check.column
            for check in judged.checks
            if check.expectation == "ExpectColumnProportionOfNonNullValuesToBeBetween"
        }
        assert {column.name for column in declared if column.required} <= refused
