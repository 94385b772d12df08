"""When a run's deadline counts from, as a plugin of Airflow (an entry point in ``pyproject.toml``).

Airflow's own ``DAGRUN_QUEUED_AT`` means the same, but in 3.3 no run that has it can be cleared: the API
answers 500, because clearing reads its interval as it is stored and not decoded
(https://github.com/apache/airflow/issues/70368). A cleared run keeps the deadline of its first try.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk.definitions.deadline import BaseDeadlineReference


class RunCreated(BaseDeadlineReference):
    """The instant at which a run is created, which is when it is queued."""

    def _evaluate_with(self, **_: Any) -> datetime:
        return datetime.now(UTC)


class Deadlines(AirflowPlugin):
    name = "mtf_deadlines"
    deadline_references = [RunCreated]  # noqa: RUF012 -- as the base class has it
