"""Airflow reads its home when it is first imported, so it gets one of its own before any test does."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import training  # noqa: F401  -- so that Airflow, whoever imports it first, reports nothing to its makers

ROOT = Path(__file__).parents[1]
_home = tempfile.mkdtemp(prefix="mtf-airflow-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)

os.environ.update(
    {
        "AIRFLOW_HOME": _home,
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "OMP_NUM_THREADS": "1",  # workers side by side: more threads than cores slow PyTorch by far
        "MTF_SETTINGS": os.environ.get("MTF_SETTINGS", str(ROOT / "mtf.yaml")),
    }
)


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """A migrated metadata database, once a session."""
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True, timeout=300
    )


@pytest.fixture(scope="session")
def redis_port() -> Iterator[int]:
    """Of a Redis that keeps nothing; tests that use it empty it first."""
    from tests.servers import redis_server

    with redis_server() as port:
        yield port
