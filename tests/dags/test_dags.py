"""The DAGs load, are joined by their assets, carry the day, and retry only what a retry can mend."""

import itertools
import sqlite3
from datetime import date, datetime, timedelta
from types import SimpleNamespace

import pytest

LOOP = ["mtf_ingest", "mtf_transform", "mtf_features", "mtf_retrain", "mtf_promote"]


@pytest.fixture(scope="module")
def dags(airflow_database):
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag()
    assert bag.import_errors == {}
    return bag.dags


def test_every_dag_loads_and_is_documented(dags):
    assert set(dags) == {*LOOP, "mtf_traffic", "mtf_retention"}
    for dag in dags.values():
        assert dag.doc_md and "###" in dag.doc_md
        assert dag.max_active_runs == 1 and not dag.catchup


def test_each_consumer_waits_for_the_asset_that_the_stage_before_it_makes(dags):
    made = {dag_id: {o.name for t in dags[dag_id].tasks for o in t.outlets} for dag_id in LOOP}
    for producer, consumer in itertools.pairwise(LOOP):
        awaited = {dags[consumer].timetable.asset_condition.name}
        assert awaited == made[producer]


def test_the_stages_of_all_dags_are_the_stages_of_the_day_in_order(dags):
    from dags.stages import FUNCTIONS

    order = [task.task_id for dag_id in LOOP for task in dags[dag_id].topological_sort()]
    assert [name for name in order if name not in ("report", "missed", "reopen")] == list(FUNCTIONS)


def test_the_warehouse_has_one_writer(dags):
    assert dags["mtf_transform"].get_task("transform").pool == "warehouse"


def test_a_missed_deadline_is_an_alert_that_names_the_day():
    from structlog.testing import capture_logs

    from dags.tasks import missed_deadline

    with capture_logs() as lines:
        missed_deadline({"dag_run": {"dag_id": "mtf_retrain", "partition_key": "2026-01-05"}})
    assert lines[0]["name"] == "deadline_missed" and lines[0]["day"] == "2026-01-05"


def test_every_dag_of_the_loop_has_a_deadline_and_every_stage_a_longest_time(dags):
    from dags.stages import FUNCTIONS

    assert all(dags[dag_id].deadline for dag_id in LOOP)
    stages = [task for dag_id in LOOP for task in dags[dag_id].tasks if task.task_id in FUNCTIONS]
    assert all(task.execution_timeout == timedelta(minutes=120) for task in stages)
    assert all(task.on_failure_callback for task in stages)


def test_earlier_days_are_reopened_whatever_came_of_the_day(dags):
    """The task runs whatever came of the day, and does not colour its run."""
    reopen = dags["mtf_ingest"].get_task("reopen")
    assert reopen.is_teardown and not reopen.on_failure_fail_dagrun
    assert {outlet.name for outlet in reopen.outlets} == {"landed_logs"}


def test_invalid_data_is_not_retried_and_a_broken_disk_is():
    from airflow.sdk import RetryAction

    from dags.tasks import RETRY_POLICY
    from training.contract.errors import DataError, PolicyError

    for error in (DataError("x"), PolicyError("x"), TypeError("the code")):
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL
    for error in (
        OSError("disk"),
        ConnectionError("store"),
        RuntimeError("dbt"),
        sqlite3.OperationalError("locked"),
    ):
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.DEFAULT
    assert RETRY_POLICY.evaluate(MemoryError(), 1, 3).retry_delay == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("run", "logical", "expected"),
    [
        ({"partition_key": "2026-01-05", "conf": {"day": "2020-01-01"}}, None, date(2026, 1, 5)),
        ({"partition_key": None, "conf": {"day": "2026-01-06"}}, None, date(2026, 1, 6)),
        ({"partition_key": None, "conf": None}, datetime(2026, 1, 7), date(2026, 1, 7)),
    ],
)
def test_the_day_comes_from_key_then_conf_then_logical_date(run, logical, expected):
    from dags.tasks import day_of

    assert day_of({"dag_run": SimpleNamespace(**run), "logical_date": logical}) == expected


def test_a_run_without_a_day_is_refused():
    from dags.tasks import day_of

    with pytest.raises(ValueError, match="names no day"):
        day_of({"dag_run": SimpleNamespace(partition_key=None, conf={}), "logical_date": None})
