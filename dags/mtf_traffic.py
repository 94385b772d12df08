"""The demo's traffic: the simulated world sends a day of requests to the running service."""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, PartitionedAtRuntime, get_current_context, task

from dags.tasks import day_of
from training.contract.settings import load_settings

with DAG(
    dag_id="mtf_traffic",
    schedule=PartitionedAtRuntime(),  # by hand, with the day as the partition key
    catchup=False,
    max_active_runs=1,
    tags=["mtf", "demo"],
    doc_md="""
### A simulated day of users
For the demo and for trying the loop without real logs: users of the simulated world call `/rank` and
`/feedback` of the running service over HTTP. Not part of a production installation: pause it there.
""",
):

    @task(execution_timeout=timedelta(hours=1))
    def simulate() -> dict[str, Any]:
        from dags.command_line.world import simulate_day

        settings = load_settings()
        record = simulate_day(settings, day_of(get_current_context()))
        return {key: record[key] for key in ("requests", "failures")}

    simulate()
