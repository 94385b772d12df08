"""Carrying a data folder of an earlier release over to this one.

Each part is carried over as a whole or not at all: a day of the lake is written beside itself, databases
are migrated in a copy, which then takes their name, and tables and features are made anew of the lake. The
note of the folder's form (:mod:`training.contract.version`) follows each part. So a run that is killed has
lost nothing, and the next one goes on; one more finds nothing to do.
"""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from training.contract import databases, version
from training.contract.errors import MtfError
from training.contract.files import (
    read_json,
    recover_folder,
    replaced_folder,
    write_atomic,
    write_json_atomic,
)
from training.contract.layout import IMPRESSIONS, TABLES, Layout
from training.contract.log import LAKE_VERSION
from training.contract.records import read_record, recorded_days, write_record
from training.contract.settings import Settings
from training.ingest.landing import NOTE, PART, encoded, read_note, read_partition
from training.ingest.schema import conform, table_spec
from training.operations.backup import locks_held

ARTIFACTS = "mlflow-artifacts:/"
# tables of MLflow's, and their columns that hold the address of files
_ADDRESSES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
}
_SECONDS = 1_800  # that a migration of Airflow's or MLflow's may take


def upgrade(
    settings: Settings, airflow: Mapping[str, str], begin: Callable[[str], None] = lambda part: None
) -> list[str]:
    """Carry the data folder over; returns the parts that were, none where it is of this release already.

    ``airflow`` is the environment that Airflow runs in. ``begin(part)`` is called before each. Raises
    :class:`MtfError`, and changes nothing, for a folder that is not there, of a later release, in use, or
    whose days are not cut as the settings say; and where a database's own migration refuses it.
    """
    layout = settings.layout
    if not layout.root.is_dir():
        raise MtfError(f"there is no data folder {layout.root}")
    form = version.form_of(layout)
    if form == version.FORM:
        version.mark(layout)
        return []
    if form > version.FORM:
        version.refuse_other(layout)
    parts: dict[str, Callable[[], object]] = {
        "the lake": lambda: _lake(settings),
        "records": lambda: _records(layout),
        "MLflow's database": lambda: _mlflow(settings),
        "Airflow's database": lambda: _airflow(settings, airflow),
        "tables": lambda: _tables(settings),
        "features": lambda: _features(settings),
    }
    with locks_held(layout):
        _refuse_other_days(settings)
        done = version.carried(layout)
        version.note(layout, form, done)  # the lake will not tell any more, once it is carried over
        for part, carry in parts.items():
            if part not in done:
                begin(part)
                carry()
                done.append(part)
                version.note(layout, form, done)
        version.note(layout, version.FORM)
    return done


def _refuse_other_days(settings: Settings) -> None:
    """A lake whose days are another zone's would be cut anew by every landing."""
    days = settings.layout.days(IMPRESSIONS)
    for day in days[-1:]:
        path = settings.layout.partition(IMPRESSIONS, day) / "part-0.parquet"
        column = pq.ParquetFile(path).read(columns=["event_ts"])["event_ts"]
        found = {settings.calendar.day_of(moment.as_py()) for moment in column if moment.is_valid}
        if found - {day}:
            raise MtfError(
                f"{path} holds rows of {min(found)} to {max(found)} in {settings.calendar.timezone}: its "
                "days are cut in another zone; set calendar.timezone to the one it was landed with (what was "
                "calendar.utc_offset_hours: 8, the default then, is Asia/Shanghai)"
            )


# --- the lake and records


def _lake(settings: Settings) -> None:
    """Partitions with the columns of today's contract; their rows, and what they are counted as, stay."""
    layout = settings.layout
    for table in TABLES:
        spec = table_spec(settings, table)
        for day in layout.days(table):
            folder = layout.partition(table, day)
            recover_folder(folder)
            note = read_note(folder)
            if note is None:
                continue
            if note["contract_version"] < LAKE_VERSION:
                rows = conform(spec, read_partition(folder), f"{table} of {day}")
                content = encoded(rows)
                told: dict[str, Any] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "contract_version": LAKE_VERSION,
                }
                with replaced_folder(folder) as fresh:
                    shutil.copytree(folder, fresh, dirs_exist_ok=True)
                    (fresh / PART).write_bytes(content)
                    write_json_atomic(fresh / NOTE, note | told)
                note |= told
            record = read_record(layout, day, "land") or {}
            entry = (record.get("tables") or {}).get(table, {})
            if entry.get("revision") == note["revision"] and entry.get("sha256") != note["sha256"]:
                entry |= {name: note[name] for name in ("sha256", "contract_version")}
                write_record(layout, day, "land", record)


def _records(layout: Layout) -> None:
    """Records under the names that are read today."""
    layout.guardrail.unlink(missing_ok=True)  # what the service saw last: it looks again
    for day in recorded_days(layout):
        trained, judged = read_record(layout, day, "train"), read_record(layout, day, "evaluate")
        if trained is None or "pool" in trained or "sha256" not in trained:
            continue
        name = trained.get("algorithm", "batchrl_mtf")
        named = ("policy", "sha256", "version", "steps", "curves")
        one = {"steps": 0, "curves": {}, "summary": {}} | {
            key: trained[key] for key in named if key in trained
        }
        if judged is not None and "chosen" not in judged:
            chosen = {key: one[key] for key in ("policy", "sha256", "version") if key in one}
            write_record(layout, day, "evaluate", judged | {"chosen": name} | chosen)
        write_record(layout, day, "train", trained | {"pool": {name: one}})


# --- databases


def _mlflow(settings: Settings) -> None:
    def migrate(address: str) -> None:
        command = ["-m", "mlflow", "db", "upgrade", address]
        _run("MLflow", command, os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"})

    if "mlflow" in settings.postgres.uses:
        migrate(databases.mlflow(settings))
    else:
        _migrate_file(settings.layout.mlflow / "mlflow.db", migrate, then=_move_addresses)


def _airflow(settings: Settings, environment: Mapping[str, str]) -> None:
    def migrate(address: str) -> None:
        there = {**environment, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}
        _run("Airflow", ["-m", "airflow", "db", "migrate"], there)

    if "airflow" in settings.postgres.uses:
        migrate(databases.airflow(settings))
    else:
        _migrate_file(settings.layout.airflow / "airflow.db", migrate)


def _migrate_file(
    path: Path, migrate: Callable[[str], None], then: Callable[[Path], None] = lambda fresh: None
) -> None:
    """Migrate a copy of SQLite's file, which takes its place; nothing where there is no file."""
    if path.exists():
        with _replaced(path) as fresh:
            migrate(f"sqlite:///{fresh}")
            then(fresh)


def _move_addresses(database: Path) -> None:
    """Addresses of files that name the folder they lie in become such that hold wherever it lies."""
    with closing(sqlite3.connect(database)) as connection, connection:
        places = [
            place
            for (place,) in connection.execute("select artifact_location from experiments")
            if place.endswith("/mlflow/artifacts")
        ]
        for place in places:
            for table, columns in _ADDRESSES.items():
                for column in columns:
                    connection.execute(  # names of our own
                        f"update {table} set {column} = ? || ltrim(substr({column}, ?), '/') "  # noqa: S608
                        f"where {column} = ? or {column} like ? || '/%'",
                        (ARTIFACTS, len(place) + 1, place, place),
                    )


def _run(whose: str, command: list[str], environment: Mapping[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, *command], env=dict(environment), capture_output=True, text=True, timeout=_SECONDS
    )
    if ran.returncode != 0:
        last = (ran.stderr.strip() or ran.stdout.strip() or "it said nothing").splitlines()[-1]
        raise MtfError(f"{whose}'s own migration ended with {ran.returncode}: {last}")


class _replaced:
    """A copy of a SQLite database beside it, which takes its place when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = path.with_name(f".{path.name}.upgrade_.tmp")  # as leftovers are named

    def __enter__(self) -> Path:
        self._remove()
        with closing(sqlite3.connect(self._path)) as old, closing(sqlite3.connect(self._fresh)) as new:
            # nothing of it may be left in a log beside it, which would outlive it
            old.execute("pragma wal_checkpoint(truncate)")
            old.backup(new)
        return self._fresh.absolute()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with closing(sqlite3.connect(self._fresh)) as new:
                    new.execute("pragma journal_mode = delete")
                mode = self._path.stat().st_mode & 0o777
                write_atomic(self._path, lambda to: shutil.copyfile(self._fresh, to), mode)
        finally:
            self._remove()

    def _remove(self) -> None:
        for end in ("", "-wal", "-shm", "-journal"):
            self._fresh.with_name(self._fresh.name + end).unlink(missing_ok=True)


# --- what is made of the lake


def _tables(settings: Settings) -> None:
    from training.warehouse import transform
    from training.warehouse.days import landed_content

    days = sorted(landed_content(settings))
    if days:
        # dbt would look at what is there first, which may be of another DuckDB, too
        settings.layout.warehouse.unlink(missing_ok=True)
        settings.layout.warehouse.with_name("mtf.duckdb.wal").unlink(missing_ok=True)
        transform.run(settings, date.fromisoformat(days[-1]), full_refresh=True)


def _features(settings: Settings) -> None:
    from training import features

    if not settings.layout.feast.exists():
        return
    features.apply(settings)
    if settings.layout.materialised.exists():
        until = read_json(settings.layout.materialised)["until"]
        end = settings.calendar.day_of(datetime.fromisoformat(until))
        features.materialise(settings, end - timedelta(days=1))
