"""The warehouse as Parquet by table and day, made by Spark: dbt in a new process, beside or over a JVM.

The folders are what is true: each run names the tables anew in Spark's catalogue, as they lie there, and
takes the days that it replaces away beforehand. So a day that loses its rows loses its partition, and what
a run that was killed has left half written is gone before the next one writes.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import duckdb
import structlog

from training.contract.errors import MtfError
from training.contract.files import read_json
from training.contract.layout import day_of_folder
from training.contract.settings import Settings
from training.warehouse.engine import Answer, Window
from training.warehouse.java import java_home

_log = structlog.get_logger("mtf.warehouse")

MADE_ANEW = ("dim_user_versions",)  # of all days, by every run
_NEEDED = {"session": ("pyspark", "dbt.adapters.spark"), "thrift": ("pyhive", "dbt.adapters.spark")}
_ANSWER_S = 5.0  # for a server's
_KEPT_LINES = 60  # of what dbt says, for a failure's message


class Spark:
    def __init__(self, settings: Settings) -> None:
        self._whole = settings
        self._settings = settings.warehouse.spark
        self._folder = settings.layout.spark_tables.resolve()
        self.target: str = self._settings.target
        self.namespace = f"file://{self._folder}"

    def built(self) -> bool:
        return any(self._tables())

    def make_room(self, window: Window, full_refresh: bool) -> None:
        """A JVM that outlives its dbt, as one that was killed, is waited for: it may still write."""
        with self._alone():
            for table in [path for path in self._folder.glob("*") if path.is_dir()]:
                if full_refresh or table.name in MADE_ANEW:
                    shutil.rmtree(table)
                    continue
                since = window.since(table.name)
                for part in [*table.glob("dt=*"), *table.glob(".spark-staging*"), *table.glob("_temporary*")]:
                    if not part.name.startswith("dt=") or since <= day_of_folder(part) <= window.last:
                        shutil.rmtree(part)
                if not any(table.glob("dt=*/*.parquet")):  # Spark makes a table in an empty place only
                    shutil.rmtree(table)

    def environment(self) -> dict[str, str]:
        spark = self._settings
        _need(*_NEEDED[spark.target])
        environment = {
            "MTF_SPARK_TABLES": " ".join(path.name for path in self._tables()),
            "MTF_SPARK_FOLDER": str(self._folder),
            "MTF_SPARK_DATABASE": spark.database,
        }
        if spark.target == "thrift":
            self._reach()
            return environment | {"MTF_SPARK_HOST": spark.host, "MTF_SPARK_PORT": str(spark.port)}
        return environment | {
            **session_environment(self._whole),
            "MTF_SPARK_MASTER": spark.master,
            "MTF_SPARK_MEMORY": spark.memory,
            "MTF_SPARK_PARTITIONS": str(spark.partitions),
            "MTF_SPARK_SCRATCH": str(self._whole.layout.spark_scratch.resolve()),
        }

    def invoke(self, arguments: list[str], environment: dict[str, str], folder: Path) -> Answer:
        """In a new process, not a fork: a JVM is started in it, and dies with it."""
        order = {"arguments": arguments, "environment": environment, "folder": str(folder)}
        with self._alone() as log, tempfile.TemporaryDirectory(prefix="mtf-dbt-") as scratch:
            answer = Path(scratch) / "answer.json"
            process = subprocess.Popen(
                [sys.executable, "-m", "training.warehouse.dbt_process", str(answer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            assert process.stdin is not None and process.stdout is not None
            with process.stdin as stdin:
                stdin.write(json.dumps(order))
            lines = deque((_shown(line) for line in process.stdout), maxlen=_KEPT_LINES)
            process.stdout.close()
            code = process.wait()
            if not answer.exists():
                return Answer(False, f"its process ended with {code}; {log.name} says why. {' '.join(lines)}")
            told = read_json(answer)
        said = " ".join(lines) if not told["success"] else ""
        return Answer(told["success"], f"{said}{told['exception']}", told["examples"])

    def examples(self, answer: Answer, result: dict[str, Any], most: int) -> list[dict[str, Any]]:
        return answer.examples.get(result["unique_id"], [])[:most]

    @contextlib.contextmanager
    def connect(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, set[str]]]:
        """DuckDB reads the Parquet files where Spark left them."""
        tables = self._tables()
        with duckdb.connect() as connection:
            connection.execute("set TimeZone = 'UTC'")
            for table in tables:
                files = str(table / "dt=*" / "*.parquet").replace("'", "''")
                connection.execute(
                    f"create view main.{table.name} as from read_parquet('{files}', "
                    "hive_partitioning = true, hive_types = {'dt': date}, union_by_name = true)"
                )
            yield connection, {table.name for table in tables}

    def _tables(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("*") if any(path.glob("dt=*/*.parquet")))

    def _reach(self) -> None:
        spark = self._settings
        try:
            socket.create_connection((spark.host, spark.port), _ANSWER_S).close()
        except OSError as error:
            raise MtfError(
                f"warehouse.spark: no Thrift server answers at {spark.host}:{spark.port} ({error}): start "
                f"it, or name another by warehouse.spark.host and port"
            ) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[IO[str]]:
        """Hold Spark's log, which dbt and its JVM have as their stderr: who holds it may write the tables."""
        path = self._folder.with_name("spark.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            log.truncate(0)
            yield log


# With few processors Java keeps 5 MB apart for the stubs that it calls its own code by, and Spark fills them:
# "Out of space in CodeCache for method handle intrinsic" ends the statement that is running.
_ONE_CODE_CACHE = "-XX:-SegmentedCodeCache"


def session_environment(settings: Settings) -> dict[str, str]:
    """What a process needs for a session of Spark in it; raises :class:`MtfError` where there can be none."""
    _need("pyspark")
    spark = settings.warehouse.spark
    environment = {
        "JAVA_HOME": str(java_home(settings.layout.spark_tables.resolve().with_name("java"))),
        "PYSPARK_PYTHON": os.environ.get("PYSPARK_PYTHON", sys.executable),
        "JDK_JAVA_OPTIONS": f"{os.environ.get('JDK_JAVA_OPTIONS', '')} {_ONE_CODE_CACHE}".strip(),
    }
    if spark.master.startswith("local"):
        environment["SPARK_LOCAL_IP"] = "127.0.0.1"
    return environment


def session_conf(settings: Settings) -> dict[str, str]:
    """How every session of Spark begins that is not dbt's, but for its master."""
    return {
        "spark.driver.memory": settings.warehouse.spark.memory,
        "spark.local.dir": str(settings.layout.spark_scratch.resolve()),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }


def _need(*modules: str) -> None:
    for module in modules:
        if not _installed(module):
            raise MtfError(
                f"warehouse.engine is spark, and {module} is not installed: run `make scale`, or "
                f'pip install "mtf[scale]"'
            )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def _shown(line: str) -> str:
    """Tell the log what dbt says of models; what it says of each data test is in the record."""
    line = line.strip()
    if " model " in line or "rror" in line:
        _log.info("dbt", said=line)
    return line
