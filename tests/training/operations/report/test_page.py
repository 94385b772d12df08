"""The day's page tells how the day ended, also when it stopped half-way."""

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from training.contract.files import write_json_atomic, write_text_atomic
from training.contract.records import write_record
from training.contract.settings import Settings
from training.operations.report.index_page import index
from training.operations.report.page import build

DAY = date(2026, 1, 5)
POOL = {
    name: {
        "policy": "x",
        "sha256": "a" * 64,
        "version": f"v-{name}",
        "steps": steps,
        "curves": {},
        "summary": {},
    }
    for name, steps in (("constant", 0), ("batchrl_mtf", 10))
}
SUITE_OK = {"success": True, "evaluated": 12, "failed": []}


def landed(rows: int) -> dict:
    tables = {"impressions": {"rows": rows, "days": [str(DAY)], "duplicates_removed": 3}}
    return {"success": True, "seconds": 1.0, "tables": tables}


def estimate(value: float) -> dict:
    return {
        **{"lower": value - 0.1, "value": value, "upper": value + 0.1},
        **{"alarm": False, "bound_share": 0.02, "action_quantiles": {}, "mean_distance_to_logged": 0.3},
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path)


def read(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_a_refused_day_shows_the_rules_the_estimates_and_the_curves(settings: Settings):
    layout = settings.layout
    write_record(layout, DAY, "land", landed(1200))
    write_record(
        layout,
        DAY,
        "validate_landed",
        {"success": True, "suites": {"impressions": SUITE_OK}, "quarantined": {}},
    )
    write_record(
        layout,
        DAY,
        "train",
        {"success": True, "transitions": 90, "pool": POOL},
    )
    curves = {"step": [1, 2], "critic_loss": [2.0, 1.0]}
    write_json_atomic(layout.model(DAY) / "batchrl_mtf/curves.json", curves)
    write_record(
        layout,
        DAY,
        "evaluate",
        {
            "success": True,
            "chosen": "constant",
            "pool": {"constant": {"lower": -1.25, "value": -1.0, "upper": -0.5}},
            "estimates": {"challenger": estimate(1.0), "static": estimate(2.0)},
        },
    )
    rule = {
        "rule": "estimate",
        "passed": False,
        "observed": 0.9,
        "threshold": 1.9,
        "reason": "lower bound 0.9 is below 1.9",
    }
    write_record(
        layout,
        DAY,
        "gate",
        {"success": True, "decision": "refuse", "rules": [rule], "reasons": [rule["reason"]]},
    )
    page = read(build(settings, DAY))
    assert "Refused" in page.select_one(".outcome").text
    assert "lower bound 0.9 is below 1.9" in page.text
    assert "1,200" in page.text
    assert len(page.find_all("svg")) == 4  # volumes, estimates, the night's gains, curves


def test_a_champion_that_moved_is_warned_of_on_the_page(settings: Settings):
    replayed = {"version": "p1", "day": "2025-12-29", "states": [500, 400]}
    moved = {"moved": {"click": 0.25}, "largest": 0.25, "weights": {"click": [1.38, 1.77]}}
    few = {**replayed, "version": "p2", "skipped": "2026-01-04 has 3 states"}
    steadiness = {"bound": 0.1, "warnings": ["p1 moved"], "policies": [{**replayed, **moved}, few]}
    record = {"success": True, "estimates": {"static": estimate(2.0)}, "steadiness": steadiness}
    write_record(settings.layout, DAY, "evaluate", record)
    page = read(build(settings, DAY))
    rows = page.select('[aria-label="Champions replayed"] tr')
    assert [cell.text.strip() for cell in rows[1].select("td")] == [
        "p1",
        "2025-12-29",
        "0.250",
        "click 1.380 → 1.770",
    ]
    assert "p1 moved" in page.select_one(".held").text and "has 3 states" in rows[2].text


def test_a_day_that_stopped_names_the_stage_and_the_column(settings: Settings):
    fault = {
        "expectation": "e",
        "column": "p_like",
        "severity": "critical",
        "observed": 1.7,
        "unexpected_count": 1,
        "message": "p_like holds 1.7 <script>",
    }
    write_record(settings.layout, DAY, "land", landed(10))
    write_record(
        settings.layout,
        DAY,
        "validate_landed",
        {
            "success": False,
            "suites": {"impressions": {"success": False, "evaluated": 3, "failed": [fault]}},
            "quarantined": {"impressions": 1},
        },
    )
    page = read(build(settings, DAY))
    assert "Stopped at validate_landed: 1 fault, " in page.select_one(".outcome").text
    assert "p_like" in page.select_one("#broken + ol b").text and "mtf day --date 2026-01-05" in page.text
    assert "1 rows of impressions are in quarantine" in page.text
    assert page.find("script") is None  # messages are escaped


def test_a_day_leads_to_the_days_beside_it(settings: Settings):
    days = [date(2026, 1, 4), DAY, date(2026, 1, 6)]
    for day in days:
        write_record(settings.layout, day, "land", landed(5))
        build(settings, day)
    page = read(settings.layout.reports / f"dt={DAY}" / "index.html")
    found = {a["rel"][0]: a["href"] for a in page.select("nav a[rel]")}
    assert found == {"prev": "../dt=2026-01-04/index.html", "next": "../dt=2026-01-06/index.html"}


def test_the_index_leads_to_all_that_shows_something(settings: Settings):
    page = read(index(settings))
    found = {a.text: a["href"] for a in page.select("[aria-label='Elsewhere'] a")}
    assert found["Airflow"] == f"http://127.0.0.1:{settings.orchestration.airflow_port}/"
    assert found["MLflow"] == f"http://127.0.0.1:{settings.orchestration.mlflow_port}/"
    assert found["Service"] == f"http://127.0.0.1:{settings.serving.port}/"
    for name in ("Grafana", "Runbook"):
        assert (settings.layout.reports / found[name]).exists()
    assert "Data Docs" not in found and "nothing yet" in page.text  # none has been written


def test_the_challengers_stand_beside_the_arms_that_are_known(settings: Settings):
    write_record(settings.layout, DAY, "train", {"success": True, "pool": POOL})
    gains = {"constant": {"lower": 1.0, "value": 2.0, "upper": 3.0}}
    evaluate = {"success": True, "chosen": "constant", "pool": gains}
    write_record(settings.layout, DAY, "evaluate", evaluate)
    arms = {
        "static": {"session_return_mean": 24.0, "session_return_ci": [23.0, 25.0]},
        "champion": {"session_return_mean": 25.0, "session_return_ci": [25.0, 25.0]},
    }
    write_record(settings.layout, DAY, "traffic", {"requests": 1, "failures": 0, "arms": arms})
    page = read(build(settings, DAY))
    rows = [row.text for row in page.select('[aria-label="The night\'s policies"] tr')[1:]]
    assert "constant the challenger" in rows[0] and "+2.00 (+1.00 to +3.00)" in rows[0]
    assert "champion" in rows[-1] and "+1.00 (+0.00 to +2.00)" in rows[-1] and "true of" in rows[-1]


def test_a_day_without_any_record_still_has_a_page(settings: Settings):
    assert "Not finished" in read(build(settings, DAY)).text


def test_the_index_lists_every_day_newest_first(settings: Settings):
    for day in (DAY, date(2026, 1, 6)):
        write_record(settings.layout, day, "land", landed(5))
    build(settings, DAY)
    page = read(index(settings))
    assert [row.text for row in page.select("[aria-label='All days'] tbody th")] == [
        "2026-01-06",
        "2026-01-05",
    ]
    # no link to a page that is not there
    assert [a["href"] for a in page.select("[aria-label='All days'] tbody th a")] == [
        "dt=2026-01-05/index.html"
    ]
    assert "no policy has been promoted yet" in page.text


def test_a_day_of_the_past_is_not_one_that_was_not_finished(settings: Settings):
    write_record(settings.layout, DAY, "land", landed(10))
    write_record(settings.layout, DAY, "validate_landed", {"success": True, "suites": {}})
    assert "Not finished: validate_landed was the last stage" in read(index(settings)).text
    write_record(settings.layout, DAY, "traffic", {"past": True})
    for page in (read(index(settings)), read(build(settings, DAY))):
        assert "Of the past that learning starts from" in page.text and "Not finished" not in page.text


def test_the_same_records_give_the_same_page(settings: Settings):
    write_record(settings.layout, DAY, "land", landed(5))
    assert build(settings, DAY).read_bytes() == build(settings, DAY).read_bytes()


def test_drift_is_shown_by_head_and_on_the_index(settings: Settings):
    layout = settings.layout
    ratio = {"value": 1.5, "lower": 1.2, "upper": 1.9}
    head = {"psi": 0.31, "psi_scope": "control", "predicted": 0.03, "observed": 0.02, "calibration": ratio}
    schema = [{"column": "ctr", "change": "new", "since": "2026-01-04", "text": "ctr (float) is new"}]
    write_record(layout, DAY, "land", landed(10))
    write_record(
        layout,
        DAY,
        "drift",
        {"recent_days": ["2026-01-04"], "heads": {"p_like": head, "p_click": {}}, "schema": schema},
    )
    fault = {"column": "p_like", "field": "p_like_psi", "severity": "critical", "message": "it has drifted"}
    docs = "validation/data_docs/validations/impressions_day/x.html"
    write_text_atomic(settings.data / docs, "x")
    suite = {"success": False, "evaluated": 7, "failed": [fault], "page": docs}
    write_record(
        layout,
        DAY,
        "validate_landed",
        {
            "success": False,
            "suites": {"impressions_day": suite},
            "quarantined": {},
            "data_docs": "validation/data_docs/index.html",
        },
    )
    page = read(build(settings, DAY))
    assert "0.3100" in page.text and "1.500 (1.200 to 1.900)" in page.text
    assert "since 2026-01-04 the source's column ctr (float) is new" in page.text
    assert page.select_one("h2#drift")
    overview = read(index(settings, datetime(2026, 1, 6, 4, tzinfo=UTC)))
    row = overview.select("[aria-label='All days'] tbody tr")[0]
    assert "p_like 0.310 drifting" in row.text and "7 checks, 1 stop" in row.text
    assert row.select_one("a.docs")["href"] == f"../{docs}"
    assert [a["href"] for a in row.select("td a:not(.docs)")] == [f"dt={DAY}/index.html#drift"]
    assert "scores have moved: p_like" in overview.select("ol.todo > .stopped")[0].text
    assert overview.select_one("ol.todo").text.count("p_like") == 1  # and not thrice
