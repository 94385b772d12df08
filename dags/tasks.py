"""What the DAGs share: the day of a run, how a stage becomes a task, retries and deadlines."""

import os
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

from airflow.sdk import (  # type: ignore[attr-defined]  # its stub lacks DeadlineAlert and SyncCallback
    Asset,
    DeadlineAlert,
    ExceptionRetryPolicy,
    RetryAction,
    RetryRule,
    SyncCallback,
    XComArg,
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowSkipException

from dags import alerts, assets, earlier_days, stages
from dags.deadlines import RunCreated
from training.contract.errors import StorageError
from training.contract.settings import Settings, load_settings
from training.operations import lineage

KEY_FORMAT = "%Y-%m-%d"

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception=StorageError,
            action=RetryAction.DEFAULT,
            reason="a disk does not take what is written: there may be room on the next try",
        ),
        RetryRule(
            exception=list(stages.PERMANENT),
            action=RetryAction.FAIL,
            reason="the data, the settings, a policy or the code is wrong: another try would find the same",
        ),
        RetryRule(
            exception=MemoryError,
            action=RetryAction.RETRY,
            retry_delay=timedelta(minutes=10),
            reason="no memory: what else runs has to end first",
        ),
    ],
    # a disk, a store, a lock, a killed process: with the task's own back-off
    default=RetryAction.DEFAULT,
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


def stage_task(
    stage: str,
    settings: Settings,
    *,
    outlets: list[Asset] | None = None,
    pool: str | None = None,
    trigger_rule: str = "all_success",
) -> XComArg:
    """One stage as a task: retried with back-off, except where another try cannot help."""

    @task(
        task_id=stage,
        outlets=outlets or [],
        pool=pool or "default_pool",
        trigger_rule=trigger_rule,
        retries=settings.orchestration.retries,
        retry_delay=timedelta(seconds=settings.orchestration.retry_seconds),
        retry_exponential_backoff=True,
        max_retry_delay=timedelta(hours=1),
        retry_policy=RETRY_POLICY,
        execution_timeout=timedelta(minutes=settings.orchestration.stage_minutes),
        on_failure_callback=alert_failure,
        doc_md=(stages.FUNCTIONS[stage].__doc__ or f"Stage `{stage}` of the day."),
    )
    def run() -> dict[str, Any]:
        context, settings = get_current_context(), load_settings()
        _name_lineage_parent(context["ti"])
        record = stages.run_stage(
            settings,
            day_of(context),
            stage,
            force=bool((context["dag_run"].conf or {}).get("force")),
            keep_superseded=not settings.orchestration.retrain_reopened,
        )
        if "skipped" in record:
            raise AirflowSkipException(record["skipped"])
        return {name: record[name] for name in ("seconds", "why", "kept") if name in record}

    return run()


def _name_lineage_parent(task_instance: Any) -> None:
    """Tell the stage's OpenLineage events which of Airflow's own they are part of."""
    from airflow.providers.openlineage import conf
    from airflow.providers.openlineage.plugins.macros import lineage_parent_id

    if not conf.is_disabled():
        os.environ[lineage.PARENT] = lineage_parent_id(task_instance)


def missed_task(settings: Settings) -> XComArg:
    """Earlier days that no night has run, the scheduler being down, or not to their end, the consumers being
    paused: landed, validated, handed to the consumers in their order, before the day itself."""
    return _earlier_task(
        settings, "missed", earlier_days.run_missed, "no earlier day is missing or unfinished"
    )


def reopen_task(settings: Settings) -> XComArg:
    """Earlier days whose rows came late or were mended: landed, validated, handed to the consumers.

    A teardown, so that it also runs after a day that failed, and its own failure fails no day.
    """
    return _earlier_task(settings, "reopen", earlier_days.reopen, "no earlier day waits to be run again")


def _earlier_task(
    settings: Settings, name: str, land: Callable[[Settings, date], earlier_days.Landed], nothing: str
) -> XComArg:
    @task(
        task_id=name,
        outlets=[assets.landed],
        retries=settings.orchestration.retries,
        retry_delay=timedelta(seconds=settings.orchestration.retry_seconds),
    )
    def run() -> list[str]:
        context, settings = get_current_context(), load_settings()
        good, failed = land(settings, day_of(context))
        for day, error in failed.items():
            alerts.send(settings, alerts.failed_stage(day, "land", error))
        if not good:
            raise AirflowSkipException(nothing)
        keys = [day.strftime(KEY_FORMAT) for day in good]
        context["outlet_events"][assets.landed].add_partitions(keys)
        return keys

    return run()


def alert_failure(context: Any) -> None:
    """Airflow calls it when a task has failed for good, in the task's process or, was it killed, for it."""
    error = context.get("exception") or "the task's process ended without a result (killed, or out of memory)"
    alert = alerts.failed_stage(day_of(context), context["task_instance"].task_id, error)
    alerts.send(load_settings(), alert)


def deadline(settings: Settings) -> DeadlineAlert:
    """Alerts when a run is not done in time, and leaves the run alone."""
    return DeadlineAlert(
        reference=RunCreated(),
        interval=timedelta(minutes=settings.orchestration.deadline_minutes),
        callback=SyncCallback("dags.tasks.missed_deadline"),
    )


def missed_deadline(context: Any) -> None:
    settings, run = load_settings(), context["dag_run"]
    day = str(run.get("partition_key") or run.get("logical_date"))
    alerts.send(settings, alerts.missed_deadline(day, run["dag_id"], settings.orchestration.deadline_minutes))
