"""The answers that a person asks for first, from the records, the pointer and the served sessions."""

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contract import in_service
from training.contract.files import write_json_atomic
from training.contract.pointer import PolicyPointer, write_pointer
from training.contract.records import write_record
from training.contract.settings import Settings
from training.operations.report.standing import Answer, measured, standing

DAY = date(2026, 1, 5)
NOW = datetime(2026, 1, 6, 4, tzinfo=UTC)
POINTER = PolicyPointer(
    "serving/policies/x.safetensors", "x", "p1", "2026-01-04", "1", "2026-01-05T00:00:00Z"
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path)


def answer(settings: Settings, question: str, now: datetime = NOW) -> Answer:
    [found] = [one for one in standing(settings, now) if question in one.question]
    return found


def serve(settings: Settings, arms: dict[str, list[float]], day: date = DAY) -> None:
    """Two requests a session and two sessions a user; ``arms`` gives the users' session returns."""
    rows = [
        {
            "user_id": 1000 * a + user,
            "session_id": f"{arm}-{user}-{session}",
            "step": step,
            "arm": arm,
            "policy_version": "static" if arm == "static" else "p1",
            "reward": value / 2.0 + (1.0 if session else -1.0) / 2.0,
            "dt": day,
        }
        for a, (arm, values) in enumerate(arms.items())
        for user, value in enumerate(values)
        for session in range(2)
        for step in range(2)
    ]
    path = settings.layout.mart("fct_transitions") / f"dt={day}" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_an_empty_folder_answers_that_nothing_is_known(settings: Settings) -> None:
    answers = standing(settings, NOW)
    assert [one.state for one in answers] == ["open", "open", "open", "good", "open"]
    assert "No day has run yet" in answers[0].text and "Static weights" in answers[1].text


def test_the_day_that_is_due_is_missed_and_a_simulated_one_is_not(settings: Settings) -> None:
    write_record(settings.layout, DAY, "land", {"success": True, "tables": {}})
    assert answer(settings, "today").state == "open"
    later = datetime(2026, 1, 7, 4, tzinfo=UTC)
    missed = answer(settings, "today", later)
    assert (
        missed.state == "stopped"
        and "No: 2026-01-06 is due, and the newest run is of 2026-01-05" in missed.text
    )
    write_record(settings.layout, DAY, "traffic", {"requests": 1})
    assert answer(settings, "today", later).state == "open"


def test_what_is_served_names_the_policy_the_shares_and_the_last_rollback(settings: Settings) -> None:
    write_pointer(settings.layout.champion, POINTER)
    with in_service.changing(settings) as row:
        row.append({"action": "rollback", "reason": "too many slow requests"})
    served = answer(settings, "served")
    assert "p1, since 2026-01-05T00:00:00Z. Shares: champion 0.91, static 0.05" in served.text
    assert "too many slow requests" in served.text and served.day == date(2026, 1, 4)
    with in_service.changing(settings) as row:
        row.append({"action": "promote", "reason": "passed the gate"})
    assert "too many slow requests" not in answer(settings, "served").text  # that is answered


def test_the_served_sessions_say_whether_the_champion_is_better(settings: Settings) -> None:
    rng = np.random.default_rng(0)
    mine, static = rng.normal(5.0, 1.0, 40), rng.normal(3.0, 1.0, 30)
    serve(settings, {"champion": mine.tolist(), "static": static.tolist(), "random": [99.0] * 5})
    write_pointer(settings.layout.champion, POINTER)
    found = measured(settings, POINTER)
    assert found["value"] == pytest.approx(mine.mean() - static.mean())
    # with equally many sessions a user, the clustered interval is that of the users' means
    error = np.sqrt(mine.var(ddof=1) / 40 + static.var(ddof=1) / 30)
    assert found["upper"] - found["value"] == pytest.approx(1.959964 * error, rel=1e-5)
    told = answer(settings, "better")
    assert told.state == "good" and "80 against 60 sessions, 2026-01-05 to 2026-01-05" in told.text


@pytest.mark.parametrize(
    ("champion", "state", "word"),
    [([1.0, 1.1, 0.9], "stopped", "worse"), ([3.0, 1.0, 5.0], "held", "not shown")],
)
def test_worse_and_not_shown_are_said(settings: Settings, champion: list, state: str, word: str) -> None:
    serve(settings, {"champion": champion, "static": [2.9, 3.0, 3.1]})
    write_pointer(settings.layout.champion, POINTER)
    told = answer(settings, "better")
    assert told.state == state and f"Served sessions: {word}" in told.text
    assert "Offline estimate: none yet" in told.text


def test_the_judges_difference_of_the_policy_that_serves_is_shown(settings: Settings) -> None:
    write_pointer(settings.layout.champion, POINTER)
    interval = {"lower": 0.1, "value": 0.5, "upper": 0.9}
    record = {
        "success": True,
        "estimates": {"challenger": {"version": "p1"}, "champion": {"version": "p0"}},
        "differences": {"challenger - static": interval, "champion - static": {**interval, "value": -7.0}},
    }
    write_record(settings.layout, DAY, "evaluate", record)
    told = answer(settings, "better")
    assert told.state == "good"
    assert (
        "better, +0.500 a session (+0.100 to +0.900, 95% interval), judged on 2026-01-05 by session_return"
        in told.text
    )


def test_an_export_that_cannot_be_read_is_said(settings: Settings) -> None:
    serve(settings, {"champion": [1.0, 2.0], "static": [1.0, 2.0]})
    write_pointer(settings.layout.champion, POINTER)
    path = settings.layout.mart("fct_transitions") / f"dt={DAY}" / "part-0.parquet"
    path.write_bytes(b"x")
    told = answer(settings, "better")
    assert told.state == "open" and "Served sessions: cannot be read" in told.text and str(path) in told.text


def test_what_is_tried_is_said_with_what_it_brought_and_what_holds_it(settings: Settings) -> None:
    question = "served, since"
    offline = Settings(data=settings.data, gate={"evidence": "offline"})
    assert "serves everybody until the guardrail" in answer(offline, question).text
    assert "without a canary" not in answer(settings, question).text
    write_pointer(settings.layout.challenger, replace(POINTER, version="p2", sha256="y"))
    assert "p2 is the challenger; its canary has not begun." in answer(settings, question).text
    canary = {
        "sha256": "y",
        "step": 0,
        "share": 0.05,
        "plan": {"reason": "4,300 sessions an arm for 2 %: 3.0 days at this traffic"},
        "paused": {"rule": "negative", "reason": "+0.2 items", "ts": "2026-01-06T00:00:00Z"},
    }
    write_json_atomic(settings.layout.canary, canary)
    arms = {"challenger": {"version": "p2", "evidence": {"reason": "+0.1 (-0.2 to +0.4) a session"}}}
    write_json_atomic(settings.layout.guardrail, {"arms": arms})
    text = answer(settings, question).text
    for words in (
        "p2 is in its canary: step 1 of 3, share 0.05.",
        "4,300 sessions an arm for 2 %: 3.0 days at this traffic.",
        "Challenger less champion: +0.1 (-0.2 to +0.4) a session.",
    ):
        assert words in text
    [todo] = answer(settings, question).todos
    assert "is held since 2026-01-06T00:00:00Z by negative: +0.2 items" in todo.text
    assert todo.state == "stopped" and todo.command == "mtf canary --go-on"


def test_a_state_that_moved_under_an_unchanged_policy_is_drift(settings: Settings) -> None:
    write_record(settings.layout, DAY, "validate_landed", {"success": True, "suites": {}})
    for warnings, state in (([], "open"), (["p1 moved"], "held")):
        record = {"success": True, "steadiness": {"bound": 0.1, "warnings": warnings, "policies": []}}
        write_record(settings.layout, DAY, "evaluate", record)
        assert answer(settings, "drifting").state == state
    assert answer(settings, "drifting").text == f"the state under an unchanged policy on {DAY}."


def test_what_one_user_has_beyond_the_limits_is_named(settings: Settings) -> None:
    left_out = {"over_max_user_requests": 198_000, "over_max_session_requests": 0, "truncated": 3}
    write_record(settings.layout, DAY, "train", {"lineage": {"left_out": left_out}})
    told = answer(settings, "not learnt from")
    assert told.state == "held" and "198,000 beyond learner.max_user_requests." in told.text
    assert "session_requests" not in told.text and told.day == DAY
    left_out["over_max_user_requests"] = 0
    write_record(settings.layout, DAY, "train", {"lineage": {"left_out": left_out}})
    assert not [one for one in standing(settings, NOW) if "not learnt from" in one.question]


def test_profiles_that_moved_are_drift_though_nothing_else_is_warned_of(settings: Settings) -> None:
    moved = {
        "expectation": "ExpectColumnMaxToBeBetween",
        "column": "is_author",
        "field": "profile_is_author",
        "severity": "warning",
        "message": "decisions of 2026-01-05: expected that profile_is_author lies between 0.1 and 0.2",
    }
    suites = {"decisions_day": {"success": False, "evaluated": 9, "failed": [moved]}}
    write_record(settings.layout, DAY, "validate_landed", {"success": True, "suites": suites})
    told = answer(settings, "drifting")
    assert (told.state, told.text) == ("held", f"is_author on {DAY}.")
    [todo] = told.todos
    assert "profiles have moved" in todo.text
