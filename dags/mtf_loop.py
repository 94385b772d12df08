"""The daily loop as five DAGs: logs → trajectories → features → challenger → champion.

The producer, ``mtf_ingest``, runs by cron; the others run when their assets have the day.
"""

from datetime import timedelta

import pendulum
from airflow.sdk import DAG, CronPartitionTimetable, PartitionedAssetTimetable, task

from dags import assets, stages
from dags.pools import WAREHOUSE_POOL
from dags.tasks import KEY_FORMAT, day_of, deadline, missed_task, reopen_task, stage_task
from training.contract.settings import load_settings

settings = load_settings()
zone = pendulum.timezone(settings.calendar.timezone)

# no start date: the first scheduled run is the next night's, and days before any other are backfilled by
# hand. No catch-up: Airflow knows of the nights since its own last run alone, however many they are. What is
# missing is found in the records (`missed`), whoever ran the other days.
common = {
    "catchup": False,
    "max_active_runs": 1,
    "deadline": deadline(settings),
    "tags": ["mtf"],
}

with DAG(
    dag_id="mtf_ingest",
    # the run after midnight handles the day before: one cron interval back
    schedule=CronPartitionTimetable(
        settings.orchestration.schedule, timezone=zone, run_offset=-1, key_format=KEY_FORMAT
    ),
    doc_md="""
### Land and validate the day's logs
Lands the service's decisions and feedback (or the files that `logs.folder` names) as the day's
partitions of the lake, then runs the Great Expectations suites over them. Invalid data fails the run
at once: nothing after it starts, and the champion serves on. It begins with the earlier days that no
night has run, or not to their end, oldest first, and ends with those that wait to be run again: late rows
have changed them, or they failed and their files have been mended since.
""",
    **common,
):
    (
        missed_task(settings)
        >> stage_task("land", settings, trigger_rule="all_done")  # whatever came of other days
        >> stage_task("validate_landed", settings, outlets=[assets.landed])
        >> reopen_task(settings).as_teardown()
    )

with DAG(
    dag_id="mtf_transform",
    schedule=PartitionedAssetTimetable(assets=assets.landed),
    doc_md="""
### Logs to trajectories
One `dbt build` (one process: DuckDB takes one writer, so the task holds the only slot of the pool
`warehouse`), then the suites over the transitions (s, a, r, s').
""",
    **common,
):
    stage_task("transform", settings, pool=WAREHOUSE_POOL) >> stage_task(
        "validate_transitions", settings, outlets=[assets.trajectories]
    )

with DAG(
    dag_id="mtf_features",
    schedule=PartitionedAssetTimetable(assets=assets.trajectories),
    doc_md="""
### Features
Materialises profiles and histories to the online store, then compares a sample of the day's served
states with what Feast gives for the same instants.
""",
    **common,
):
    stage_task("features", settings) >> stage_task("parity", settings, outlets=[assets.features])

with DAG(
    dag_id="mtf_retrain",
    schedule=PartitionedAssetTimetable(assets=assets.features),
    doc_md="""
### Retrain and judge
Validates the training set, trains a challenger on the last days' trajectories, and estimates it, the
champion and the static weights off-policy. Skipped for a day without logged decisions.
""",
    **common,
):
    (
        stage_task("validate_training_set", settings)
        >> stage_task("train", settings)
        >> stage_task("evaluate", settings, outlets=[assets.challenger])
    )

with DAG(
    dag_id="mtf_promote",
    schedule=PartitionedAssetTimetable(assets=assets.challenger),
    doc_md="""
### Gate, promotion, report
The gate's rules, ending with a smoke request against the built Bento; a challenger that passes takes
the alias `champion`, and the running service follows it. Anything doubtful leaves the champion.
""",
    **common,
):

    @task(retries=1, retry_delay=timedelta(seconds=10))
    def report() -> str:
        """The day's page, whatever the gate decided (a teardown: it does not colour the run)."""
        from airflow.sdk import get_current_context

        return str(stages.make_report(load_settings(), day_of(get_current_context())))

    (
        stage_task("gate", settings)
        >> stage_task("promote", settings, outlets=[assets.champion])
        >> report().as_teardown()
    )
