"""Nights on which nothing ran: their days are found missing, named, and run once and in order."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dags import stages
from dags.command_line.main import app
from dags.earlier_days import run_missed
from tests.end_to_end import small_days
from tests.end_to_end.same_tables import deliver
from training.contract.records import read_record, write_record
from training.contract.settings import SETTINGS_VARIABLE, Settings
from training.operations.missed import missed, missing_days, spans, unfinished_days
from training.operations.report.standing import standing

DAYS = small_days.days(6)
FIRST, LAST = DAYS[0], DAYS[-1]
SMALL = {
    "world": {"users": 40, "requests_per_day": 60},
    # so few rows differ from day to day
    "validation": {"min_drift_rows": 100_000, "min_volume_ratio": 0.01, "max_volume_ratio": 100.0},
}


def ran(settings: Settings, *days: date) -> None:
    for day in days:
        write_record(settings.layout, day, "land", {"success": True, "tables": {}})


def night_after(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC) + timedelta(days=1)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = small_days.write_settings(tmp_path, SMALL)
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    return settings


def test_days_between_and_since_those_that_ran_are_missing_and_no_others(settings: Settings):
    assert missing_days(settings, LAST) == []  # nothing has run, so nothing was missed
    write_record(settings.layout, FIRST - timedelta(days=1), "traffic", {"past": True})  # landed, and no run
    ran(settings, FIRST, DAYS[3])
    assert missing_days(settings, LAST) == [*DAYS[1:3], DAYS[4]]
    assert missing_days(settings, DAYS[2]) == DAYS[1:2]
    write_record(settings.layout, DAYS[4], "land", {"success": False, "error": "no log"})
    assert missing_days(settings, LAST) == DAYS[1:3]  # a day that stopped has run


def test_days_that_retention_has_deleted_are_not_missing(settings: Settings):
    old = LAST - timedelta(days=40)  # of a policy that serves, so that its records stay
    ran(settings, old, *DAYS)
    limits = settings.retention.model_copy(update={"lake_days": 6})
    assert missing_days(settings.model_copy(update={"retention": limits}), LAST) == []
    assert len(missing_days(settings, LAST)) == 40 - len(DAYS)


def test_a_missed_night_is_named_and_one_that_is_only_due_is_not(settings: Settings):
    ran(settings, FIRST)
    assert missed(settings, night_after(FIRST)) == []
    assert missed(settings, night_after(DAYS[1])) == []  # the question whether today ran has it
    assert missed(settings, night_after(DAYS[3])) == DAYS[1:4]
    [answer] = [a for a in standing(settings, night_after(DAYS[3])) if "missing" in a.question]
    assert answer.state == "held"
    assert answer.text == f"3 did not run to their end: {DAYS[1]} to {DAYS[3]}."
    assert [todo.command for todo in answer.todos] == ["mtf backfill --missing"]
    said = CliRunner().invoke(app, ["status"]).output
    assert "Which days are missing?" in said and f"to their end: {DAYS[1]} to " in said
    write_record(settings.layout, FIRST, "traffic", {"requests": 1})  # simulated: of another calendar
    assert missed(settings, night_after(DAYS[3])) == []


def test_days_that_were_landed_and_taken_no_further_are_unfinished(settings: Settings):
    ends = {
        DAYS[0]: {"transform": {"success": True}, "promote": {"skipped": "the gate refused"}},
        DAYS[1]: {},  # every consumer was paused
        DAYS[2]: {"transform": {"success": True}},  # the second one was
        DAYS[3]: {"transform": {"success": False, "error": "dbt"}},  # stopped: it has its alert
        DAYS[4]: {"validate_training_set": {"skipped": "no decisions"}},  # there is nothing after it
        DAYS[5]: {},  # at work
    }
    for day, more in ends.items():
        for stage, record in {"land": {}, "validate_landed": {"success": True}, **more}.items():
            write_record(settings.layout, day, stage, record)
    assert unfinished_days(settings, LAST) == missed(settings, night_after(LAST)) == DAYS[1:3]
    write_record(settings.layout, DAYS[1], "traffic", {"past": True})  # of a world: learnt from, and no more
    assert unfinished_days(settings, LAST) == [DAYS[2]]


def test_days_are_told_by_the_ends_of_their_runs():
    assert spans([DAYS[0], DAYS[1], DAYS[3]]) == f"{DAYS[0]}, {DAYS[1]}, {DAYS[3]}"
    assert spans([*DAYS[0:3], DAYS[4]]) == f"{DAYS[0]} to {DAYS[2]}, {DAYS[4]}"


def test_the_next_night_lands_the_missed_days_in_order_each_once(settings: Settings):
    small_days.land_world(settings, DAYS[:4])
    for stage in ("land", "validate_landed"):
        stages.run_stage(settings, FIRST, stage)
    write_record(settings.layout, FIRST, "promote", {"skipped": "the gate refused"})
    assert run_missed(settings, DAYS[3]) == (DAYS[1:3], {})
    assert all(read_record(settings.layout, day, "validate_landed")["success"] for day in DAYS[1:3])
    # a night of which there is no log is tried once, and is then a day that stopped
    good, failed = run_missed(settings, DAYS[5])
    assert good == DAYS[1:4] and set(failed) == {DAYS[4]} and "there is no log of" in str(failed[DAYS[4]])
    for day in DAYS[1:3]:  # handed on once more, for nobody had taken them up, and not landed again
        assert "kept" in read_record(settings.layout, day, "land")
        write_record(settings.layout, day, "promote", {"promoted": True})
    assert run_missed(settings, DAYS[5]) == ([DAYS[3]], {})
    write_record(settings.layout, DAYS[3], "promote", {"promoted": True})
    assert run_missed(settings, DAYS[5]) == ([], {})
    far = settings.orchestration.model_copy(update={"reopen_days": 2})
    limited = settings.model_copy(update={"orchestration": far})
    assert set(run_missed(limited, LAST + timedelta(days=5))[1]) == {
        DAYS[5] + timedelta(days=n) for n in (3, 4)
    }


def test_the_ingest_dag_takes_missed_days_up_before_its_own(
    tmp_path: Path, airflow_database: None, monkeypatch: pytest.MonkeyPatch
):
    from airflow.dag_processing.dagbag import DagBag

    source = small_days.write_settings(tmp_path / "source", SMALL)
    small_days.land_world(source, DAYS[:5])
    settings = small_days.write_settings(
        tmp_path,
        {
            "logs": {"source": "files", "folder": str(tmp_path / "logs")},
            "orchestration": {"retries": 0},
            **SMALL,
        },
    )
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    deliver(source, [DAYS[0], DAYS[1], DAYS[3], DAYS[4]], settings.logs.folder)  # nothing of the third
    for stage in ("land", "validate_landed"):
        stages.run_stage(settings, FIRST, stage)
    write_record(settings.layout, FIRST, "promote", {"skipped": "the gate refused"})
    dag = DagBag().dags["mtf_ingest"]
    dag.deadline = None  # dag.test() looks for deadlines in the database, where it has not put them
    run = dag.test(run_conf={"day": DAYS[4].isoformat()})
    assert str(run.state) == "success"
    states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    assert states == {
        "missed": "success",
        "land": "success",
        "validate_landed": "success",
        "reopen": "skipped",
    }
    assert not read_record(settings.layout, DAYS[2], "land")["success"]  # which stops no other
    landed = [(settings.layout.run(day) / "validate_landed.json").stat().st_mtime_ns for day in
              (DAYS[1], DAYS[3], DAYS[4])]  # fmt: skip
    assert landed == sorted(landed)

    before = [read_record(settings.layout, day, "land")["seconds"] for day in (DAYS[1], DAYS[3])]
    for day in (DAYS[1], DAYS[3]):
        write_record(settings.layout, day, "promote", {"promoted": True})
    run = dag.test(run_conf={"day": DAYS[4].isoformat()})
    states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    assert states["missed"] == "skipped" and states["land"] == "success"  # skipped is no reason to stop
    assert "kept" in read_record(settings.layout, DAYS[4], "land")
    assert [read_record(settings.layout, day, "land")["seconds"] for day in (DAYS[1], DAYS[3])] == before


def test_backfill_of_missing_days_runs_those_that_are_missing(settings: Settings):
    said = CliRunner().invoke(app, ["backfill", "--missing"])
    assert said.exit_code == 0 and "no day is missing" in said.output
    zone = settings.calendar.zone
    today = datetime.now(zone).date()
    ran(settings, today - timedelta(days=3))
    said = CliRunner().invoke(app, ["backfill", "--missing", "--continue"])
    wanted = [today - timedelta(days=2), today - timedelta(days=1)]
    assert said.exit_code == 1
    assert f"2 of 2 days failed: {wanted[0]}, {wanted[1]}" in str(said.exception)
    assert [read_record(settings.layout, day, "land")["success"] for day in wanted] == [False, False]
    alone = CliRunner().invoke(app, ["backfill", "--from", str(today)])
    assert alone.exit_code == 1 and "give --from and --to, or --missing" in str(alone.exception)


def test_a_day_by_hand_names_the_missing_days_before_it(settings: Settings):
    ran(settings, FIRST)
    said = CliRunner().invoke(app, ["day", "--date", str(DAYS[4])]).output
    assert f"3 days did not run: {DAYS[1]} to {DAYS[3]}. `mtf backfill --missing`" in said.replace("\n", " ")
