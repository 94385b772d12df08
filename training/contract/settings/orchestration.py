"""When a day runs, how long it may take, and who is told: Airflow, alerts, lineage."""

from typing import Literal

from pydantic import Field, SecretStr

from training.contract.settings.section import Positive, Section


class OrchestrationSettings(Section):
    executor: Literal["local", "celery"] = Field(
        "local", description="what runs Airflow's tasks: its scheduler, or Celery's workers (`make scale`)"
    )
    workers: int = Field(
        2, ge=0, description="of Celery, a task at a time each, that `mtf up` starts; `mtf worker` adds one"
    )
    parallelism: int = Field(2, ge=1, description="tasks at a time, on all machines together")
    broker: str = Field(
        "localhost:6379/1",
        pattern=r"^[A-Za-z0-9._-]+:[0-9]+/[0-9]+$",
        description="host:port/database of the Redis that Celery takes its tasks from",
    )
    broker_password: bool = Field(False, description="whether the broker asks for $MTF_REDIS_PASSWORD")
    airflow_host: str = Field(
        "127.0.0.1",
        pattern=r"^[0-9A-Fa-f.:]+$",
        description="address that Airflow listens on and workers reach it by: one of this machine's",
    )
    airflow_port: int = Field(8080, ge=1, le=65535)
    mlflow_port: int = Field(5000, ge=1, le=65535)
    schedule: str = Field(
        "30 4 * * *",
        description="cron of the producer, in calendar.timezone; after the hours in which clocks are changed",
    )
    retries: int = Field(2, ge=0)
    retry_seconds: int = Field(30, ge=1, description="first delay; doubles")
    deadline_minutes: int = Field(180, ge=1, description="of a DAG's run, from its queueing: then an alert")
    stage_minutes: int = Field(120, ge=1, description="of one try of a stage: then it counts as failed")
    reopen_days: int = Field(
        7, ge=0, description="days back that late rows or mended files start anew; 0: by `mtf backfill` only"
    )
    retrain_reopened: bool = Field(
        False,
        description="train a reopened day's model again, also where a later day learns from its late rows",
    )


class AlertSettings(Section):
    webhook: SecretStr | None = Field(
        None, description="URL that alerts are posted to as JSON; give it as $MTF__ALERTS__WEBHOOK"
    )
    timeout_s: Positive = Field(5.0, le=60.0, description="for the webhook's answer, once per alert")


class LineageSettings(Section):
    enabled: bool = Field(True, description="OpenLineage events of stages, DAGs and dbt models (ours)")
    url: str | None = Field(
        None, description="HTTP endpoint that takes them; none writes <data>/lineage/<day>.jsonl (ours)"
    )
    namespace: str = Field("mtf", min_length=1, description="of the jobs (ours)")
