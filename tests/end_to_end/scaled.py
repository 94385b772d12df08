"""The scale profile for tests: its servers, the settings that name them, and a day through Airflow."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from typing import Any

import httpx
import psycopg

from dags.command_line import stack
from tests.end_to_end.conftest import LOOP
from tests.servers import postgres_server, redis_server
from training.contract import databases

PASSWORD = "pw-3f9c0b7d51"  # noqa: S105 -- of the tests' own servers
USES = ["airflow", "feast", "mlflow"]
LOOP_SECONDS = 1200


@contextmanager
def scale_servers() -> Iterator[tuple[int, int]]:
    """Ports of a PostgreSQL and a Redis that ask for the password, which the environment has meanwhile."""
    before = {name: os.environ.get(name) for name in ("PGPASSWORD", databases.REDIS_PASSWORD)}
    with (
        postgres_server("mtf", PASSWORD, [f"mtf_{use}" for use in USES]) as postgres_port,
        redis_server("--requirepass", PASSWORD) as redis_port,
    ):
        os.environ.update(dict.fromkeys(before, PASSWORD))
        try:
            yield postgres_port, redis_port
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def sections(servers: tuple[int, int]) -> dict[str, Any]:
    postgres_port, redis_port = servers
    return {
        "postgres": {"uses": USES, "host": "127.0.0.1", "port": postgres_port},
        "store": {"online": "redis", "redis_url": f"127.0.0.1:{redis_port}", "redis_password": True},
    }


def database(servers: tuple[int, int], use: str) -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1", port=servers[0], user="mtf", password=PASSWORD, dbname=f"mtf_{use}"
    )


def ended(airflow: stack.Airflow, day: date) -> dict[str, str | None]:
    """The states in which the day's DAGs ended, or are after ``LOOP_SECONDS``."""
    end, states = time.monotonic() + LOOP_SECONDS, dict.fromkeys(LOOP)
    while time.monotonic() < end:
        with suppress(httpx.TimeoutException):  # a machine that is busy with the day
            states = {dag: next((r["state"] for r in airflow.runs(dag, str(day))), None) for dag in LOOP}
        if "failed" in states.values() or set(states.values()) == {"success"}:
            break
        time.sleep(3)
    return states
