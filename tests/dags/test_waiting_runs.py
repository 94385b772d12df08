"""Consumers that were paused: runs wait in the order in which days were landed, each day once.

What Airflow makes of our DAGs: its own scheduler is asked, over a real database.
"""

import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

from tests.end_to_end import small_days

DAYS = small_days.days(7)
CONSUMER = "mtf_transform"


@pytest.fixture
def session(airflow_database: None) -> Iterator[Any]:
    """The DAGs in the database."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(DagBag(), "dags-folder", None)
    with create_session() as session:
        session.get(DagModel, CONSUMER).is_paused = False
        session.flush()
        yield session
        session.rollback()


def land(session: Any, days: list[date]) -> None:
    from airflow.assets.manager import asset_manager
    from airflow.models.asset import AssetModel
    from sqlalchemy import select

    landed = session.scalars(select(AssetModel).where(AssetModel.name == "landed_logs")).one()
    for day in days:
        asset_manager.register_asset_change(asset=landed, partition_key=str(day), session=session)
    session.flush()


def schedule(session: Any) -> None:
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    job = Job()
    session.add(job)
    session.flush()
    SchedulerJobRunner(job)._create_dagruns_for_partitioned_asset_dags(session)
    session.flush()


def pause(session: Any, paused: bool) -> None:
    from airflow.models.dag import DagModel

    session.get(DagModel, CONSUMER).is_paused = paused
    session.flush()


def started(session: Any) -> list[str]:
    """The days in the order in which the scheduler starts their runs, one active at a time."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.state import DagRunState
    from sqlalchemy import select

    waiting = select(DagRun).where(DagRun.dag_id == CONSUMER, DagRun.state == DagRunState.QUEUED)
    order, end = [], time.monotonic() + 60
    while session.scalars(waiting).all() and time.monotonic() < end:
        offered = [
            run for run in DagRun.get_queued_dag_runs_to_set_running(session) if run.dag_id == CONSUMER
        ]
        if not offered:  # SQLite's clock has whole seconds, and a run is not started before its time
            time.sleep(0.1)
            continue
        order.append(offered[0].partition_key)
        offered[0].state = DagRunState.SUCCESS
        session.flush()
    return order


def test_a_paused_consumer_is_handed_nothing_so_that_the_next_night_hands_it_all_in_order(session: Any):
    pause(session, True)
    land(session, DAYS[:6])
    schedule(session)
    pause(session, False)
    assert started(session) == []
    land(session, DAYS)  # what `missed` does, and then the night's own day
    schedule(session)
    assert started(session) == [str(day) for day in DAYS]


def test_runs_that_wait_for_a_scheduler_or_a_run_before_them_start_in_order(session: Any):
    for day in DAYS[:3]:
        land(session, [day])
        schedule(session)
    land(session, [DAYS[4], DAYS[3], DAYS[0]])  # a late day and one that is landed again
    schedule(session)
    assert started(session) == [str(DAYS[n]) for n in (0, 1, 2, 4, 3, 0)]


def test_a_day_that_is_landed_twice_before_a_scheduler_sees_it_waits_once(session: Any):
    land(session, [DAYS[0], DAYS[1], DAYS[0]])
    schedule(session)
    assert started(session) == [str(DAYS[0]), str(DAYS[1])]
