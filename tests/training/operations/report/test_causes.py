"""Broken expectations in groups, each with what is done about it: what it names is there."""

import re
from pathlib import Path

import pytest

from training.contract.settings import Settings
from training.operations.report.causes import CAUSES, Cause, cause_of, groups, short
from training.operations.report.outcome import outcome

OPERATING = (Path(__file__).parents[4] / "docs/operating.md").read_text()
ANCHORS = {
    re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-")
    for heading in re.findall(r"^#+ (.*)$", OPERATING, re.MULTILINE)
}


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_the_section_and_the_setting_that_a_cause_names_are_there(cause: Cause) -> None:
    assert cause.section in ANCHORS
    place = ""
    for name in filter(None, cause.setting.split(", ")):
        *path, last = name.split(".")
        place = path or place  # the second of two is of the same section
        found = Settings()
        for part in (*place, last):
            assert hasattr(found, part), name
            found = getattr(found, part)


@pytest.mark.parametrize(
    ("suite", "field", "expectation", "name"),
    [
        ("impressions_rows", "is_like", "ExpectColumnProportionOfNonNullValuesToBeBetween", "values missing"),
        ("impressions_rows", "p_like", "ExpectColumnMaxToBeBetween", "values out of range"),
        ("impressions_files", "p_like", "ExpectColumnToExist", "columns missing or of another type"),
        ("impressions_files", "readable", "ExpectColumnValuesToBeInSet", "files cannot be read"),
        ("impressions_day", "p_like_psi", "ExpectColumnMaxToBeBetween", "scores have moved"),
        ("impressions_day", "p_like_p90", "ExpectColumnMaxToBeBetween", "measures outside their band"),
        (
            "impressions_day",
            "p_like_gone_from_source",
            "ExpectColumnMaxToBeBetween",
            "the source lost a column",
        ),
        ("impressions_day", "rows_to_recent_median", "ExpectColumnMaxToBeBetween", "volume"),
        ("decisions_day", "profile_is_author", "ExpectColumnMaxToBeBetween", "profiles have moved"),
        ("training_set_day", "random_share", "ExpectColumnMaxToBeBetween", "too little exploration"),
        ("training_set_day", "click_coverage", "ExpectColumnMaxToBeBetween", "too little exploration"),
        ("training_set_day", "current_spec_share", "ExpectColumnMaxToBeBetween", "too few transitions"),
        (
            "training_set_day",
            "reward_std",
            "ExpectColumnMaxToBeBetween",
            "rewards that do not differ, or by far more than before",
        ),
        ("impressions_day", "is_click_rate", "ExpectColumnMaxToBeBetween", "a signal that never occurs"),
        ("impressions_day", "is_click", "ExpectColumnMaxToBeBetween", "measures outside their band"),
        ("decisions_day", "rows", "ExpectColumnMaxToBeBetween", "no rows"),
        (
            "decisions_rows",
            "state_of_served",
            "ExpectColumnMinToBeBetween",
            "ranked by a policy, and no state logged",
        ),
        ("transitions_rows", "end_known", "ExpectColumnMinToBeBetween", "requests contradict themselves"),
    ],
)
def test_a_fault_finds_its_cause(suite: str, field: str, expectation: str, name: str) -> None:
    assert cause_of(suite, {"field": field, "column": field, "expectation": expectation}).name == name


def fault(column: str, severity: str, rows: int) -> dict:
    return {
        "expectation": "ExpectColumnProportionOfNonNullValuesToBeBetween",
        "column": column,
        "field": column,
        "severity": severity,
        "unexpected_count": rows,
        "message": f"impressions of 2026-01-05: expected that {column} is there",
    }


def test_many_faults_of_one_cause_are_one_short_line() -> None:
    failed = [fault(f"c{n}", "critical", n) for n in range(12)] + [fault("d", "warning", 3)]
    suites = {"impressions_rows": {"success": False, "evaluated": 20, "failed": failed}}
    records = {"validate_landed": {"success": False, "suites": suites}}
    stops, warns = groups(records)
    assert stops.text == "values missing: c0, c1, c2, c3 and 8 more, up to 11 rows each"
    assert (stops.stops, warns.stops) == (True, False)
    assert outcome(records)["text"] == "Stopped at validate_landed: 12 faults, values missing"


def test_a_stage_that_failed_without_a_suite_is_its_message_in_short() -> None:
    error = "no log of the day: " + "expected a file " * 30
    [group] = groups({"land": {"success": False, "error": error}})
    assert group.cause.section == "landing-failed" and group.text == short(error)
    assert len(group.text) < 170 and group.text.endswith(" …")


@pytest.mark.parametrize(
    ("failed", "champion", "state", "text"),
    [
        (
            ["champion"],
            "p1",
            "good",
            "p1 serves on: no better policy was shown, by the gate's rule champion.",
        ),
        (["static", "champion"], "p1", "good", "p1 serves on: no better policy was shown"),
        (["bounds", "champion"], "p1", "held", "Refused by the gate's rules bounds, champion"),
        (["static"], None, "held", "Refused by the gate's rule static"),
    ],
)
def test_a_night_without_a_better_policy_is_no_fault(
    failed: list[str], champion: str | None, state: str, text: str
) -> None:
    rules = [
        {"rule": name, "passed": name not in failed} for name in ("data", "bounds", "static", "champion")
    ]
    serves = champion and {"version": champion}
    found = outcome({"gate": {"success": True, "decision": "refuse", "rules": rules, "champion": serves}})
    assert found["state"] == state and found["text"].startswith(text)
