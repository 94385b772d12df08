"""What `mtf simulate`, the demo and the traffic DAG share: a simulated day against the service."""

import time
from collections.abc import Callable
from datetime import date
from typing import Any

from dags.command_line import stack
from training.contract.layout import USERS
from training.contract.records import write_record
from training.contract.settings import Settings

Progress = Callable[[int, int], None]


def service_address(settings: Settings) -> str:
    return f"http://{settings.serving.host}:{settings.serving.port}"


def simulate_day(settings: Settings, day: date, progress: Progress | None = None) -> dict[str, Any]:
    """A day of the world's users over HTTP; lands the day's users and writes the record `traffic`."""
    from training.ingest import land
    from training.simulator import drivers

    started = time.monotonic()
    record = drivers.run_day_http(
        settings, day, service_address(settings), stack.token(settings), progress=progress
    )
    users = drivers.users_of(settings, day)
    if users.num_rows:
        land(settings, USERS, day, users, "world")
    record = {**record, "seconds": round(time.monotonic() - started, 2)}
    write_record(settings.layout, day, "traffic", record)
    return record
