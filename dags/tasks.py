"""What the DAGs share: the day of a run, how a stage becomes a task, retries and deadlines."""

from datetime import date, timedelta
from typing import Any

from airflow.sdk import (
    DeadlineAlert,
    DeadlineReference,
    ExceptionRetryPolicy,
    RetryAction,
    RetryRule,
    SyncCallback,
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowSkipException

from dags import stages
from training.contract.settings import Settings, load_settings

KEY_FORMAT = "%Y-%m-%d"

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception="training.contract.errors.MtfError",
            action=RetryAction.FAIL,
            reason="the data, the settings or a policy is wrong: another try would find the same",
        ),
        RetryRule(exception=[OSError, RuntimeError], action=RetryAction.DEFAULT),
    ]
)


def day_of(context: Any) -> date:
    """The day of a run: its partition key, else ``conf["day"]``, else its logical date.

    Raises ``ValueError`` when the run carries none of them, and when the key is not a date.
    """
    run = context["dag_run"]
    conf = run.conf or {}
    if getattr(run, "partition_key", None):
        return date.fromisoformat(run.partition_key[:10])
    if "day" in conf:
        return date.fromisoformat(conf["day"])
    if context.get("logical_date") is not None:
        return context["logical_date"].date()
    raise ValueError('the run names no day: trigger it with a partition key, or with {"day": "YYYY-MM-DD"}')


def stage_task(stage: str, settings: Settings, *, outlets: list | None = None, pool: str | None = None):
    """One stage as a task: retried with back-off, except where another try cannot help."""

    @task(
        task_id=stage,
        outlets=outlets or [],
        pool=pool or "default_pool",
        retries=settings.orchestration.retries,
        retry_delay=timedelta(seconds=settings.orchestration.retry_seconds),
        retry_exponential_backoff=True,
        retry_policy=RETRY_POLICY,
        doc_md=(stages.FUNCTIONS[stage].__doc__ or f"Stage `{stage}` of the day."),
    )
    def run() -> dict[str, Any]:
        record = stages.run_stage(load_settings(), day_of(get_current_context()), stage)
        if "skipped" in record:
            raise AirflowSkipException(record["skipped"])
        return {"seconds": record["seconds"]}

    return run()


def deadline(settings: Settings) -> DeadlineAlert:
    """Alerts when a run is not done in time; the alert is a line in the log of the callback."""
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(minutes=settings.orchestration.deadline_minutes),
        callback=SyncCallback("dags.tasks.missed_deadline"),
    )


def missed_deadline(context: Any = None, **_: Any) -> None:
    import logging

    logging.getLogger("mtf.deadline").error("the run missed its deadline: %s", context)
