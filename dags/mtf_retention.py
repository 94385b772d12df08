"""Retention by cron: `mtf keep`, while no dbt run holds the warehouse."""

import pendulum
from airflow.sdk import DAG, CronTriggerTimetable, task

from dags.pools import WAREHOUSE_POOL
from training.contract.settings import load_settings

settings = load_settings()

with DAG(
    dag_id="mtf_retention",
    schedule=CronTriggerTimetable(
        settings.retention.schedule, timezone=pendulum.timezone(settings.calendar.timezone)
    ),
    catchup=False,
    max_active_runs=1,
    tags=["mtf"],
    doc_md="""
### Retention
Deletes what is older than the settings' section `retention` allows: logs, exports, models, pages. Nothing
that a policy which serves or a rollback needs, nor a day that a later run still reads. `mtf keep --dry-run`
lists what the next run would delete.
""",
):

    @task(pool=WAREHOUSE_POOL, retries=1)
    def keep() -> dict[str, int]:
        from training.operations import retention

        settings = load_settings()
        planned = retention.plan(settings)
        retention.keep(settings, planned)
        return {"deleted": len(planned.items), "bytes": sum(item.bytes for item in planned.items)}

    keep()
