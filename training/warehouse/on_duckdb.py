"""The warehouse in one DuckDB file: dbt in a fork of this process, and one writer at a time."""

import contextlib
import io
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from training.contract.settings import Settings
from training.warehouse.dbt_process import end_with_parent
from training.warehouse.engine import Answer, Window

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class DuckDB:
    target = "duckdb"

    def __init__(self, settings: Settings) -> None:
        self._file = settings.layout.warehouse
        self.namespace = f"duckdb://{self._file.resolve()}"

    def built(self) -> bool:
        return self._file.exists()

    def make_room(self, window: Window, full_refresh: bool) -> None:
        """Nothing: the models' own deletion and insertion are one transaction."""

    def environment(self) -> dict[str, str]:
        return {"MTF_WAREHOUSE": str(self._file.resolve())}

    def invoke(self, arguments: list[str], environment: dict[str, str], folder: Path) -> Answer:
        """The process is a fork: dbt's imports take longer than a small day's build, and are done once.

        The scheduler does so for all of its tasks (``dags/preload.py``). dbt itself stays in the child,
        because its adapter keeps the warehouse open, and its settings are the environment.
        """
        import dbt.adapters.duckdb
        import dbt.cli.main  # noqa: F401

        multiprocessing.current_process().daemon = False  # as Celery's are, which may then not have children
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_invoke, args=(sender, arguments, environment, folder), name="dbt")
        process.start()
        sender.close()
        try:
            answer = Answer(*receiver.recv())
        except EOFError:
            process.join()
            answer = Answer(False, f"its process ended with {process.exitcode}")
        process.join()
        return answer

    def examples(self, answer: Answer, result: dict[str, Any], most: int) -> list[dict[str, Any]]:
        with self.connect() as (connection, _):
            found = connection.sql(f"select * from ({result['compiled_code']}) order by all limit {most}")  # noqa: S608
            return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]

    @contextlib.contextmanager
    def connect(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, set[str]]]:
        with duckdb.connect(str(self._file), read_only=True) as connection:
            connection.execute("set TimeZone = 'UTC'")
            names = connection.execute("select table_name from duckdb_tables() where schema_name = 'main'")
            yield connection, {name for (name,) in names.fetchall()}


def _invoke(sender: "Connection", arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    from dbt.cli.main import dbtRunner

    end_with_parent()
    os.environ.update(environment)
    os.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        result = dbtRunner().invoke(arguments)
    sender.send((bool(result.success), f"{said.getvalue()[-4000:]}{result.exception or ''}"))
