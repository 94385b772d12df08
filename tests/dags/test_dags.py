"""The DAGs load, are joined by their assets, carry the day, and retry only what a retry can mend."""

import itertools
from datetime import date, datetime
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
    assert set(dags) == {*LOOP, "mtf_traffic", "mtf_keep"}
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
    assert [name for name in order if name != "report"] == list(FUNCTIONS)


def test_the_warehouse_has_one_writer(dags):
    assert dags["mtf_transform"].get_task("transform").pool == "warehouse"


def test_every_dag_of_the_loop_has_a_deadline(dags):
    assert all(dags[dag_id].deadline for dag_id in LOOP)


def test_invalid_data_is_not_retried_and_a_broken_disk_is():
    from airflow.sdk import RetryAction

    from dags.tasks import RETRY_POLICY
    from training.contract.errors import DataError, PolicyError

    for error in (DataError("x"), PolicyError("x")):
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL
    assert RETRY_POLICY.evaluate(OSError("disk"), 1, 3).action is RetryAction.DEFAULT


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
