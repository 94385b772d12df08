"""The daily dbt run: landed logs to sessions, transitions, user history and policy metrics.

dbt runs as one process over a copy of ``dbt_project`` below the data folder, so that nothing is ever
written to the source tree. The copy differs in one file, ``models/_from_settings.yml``
(:mod:`training.warehouse.model_properties`).

Which days a run replaces: the day itself, and every day whose landed content is not what was last
transformed, with all transformed days after it, since users' histories build on it. Transitions and policy
metrics are also replaced on the days before these that they can still change (:data:`LOOK_BACK_DAYS`). What
was transformed is written down in ``warehouse/transformed.json`` after a run that passed all its tests;
until then the next run does it again. Days whose validation failed are held back: they are in no table until
they pass.
"""

import contextlib
import ctypes
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Collection, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from training.contract.errors import DataError
from training.contract.files import (
    read_json,
    replaced_folder,
    sha256,
    write_atomic,
    write_json_atomic,
    write_text_atomic,
)
from training.contract.layout import IMPRESSIONS, TABLES
from training.contract.log import DECISION
from training.contract.records import read_records, recorded_days
from training.contract.settings import Settings
from training.warehouse.model_properties import GENERATED, PROFILE_TYPES, properties

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PROJECT = Path(__file__).parents[2] / "dbt_project"
BUILD_RESULTS = (
    "build_results.json"  # in dbt's target folder: the last build's, which later commands leave alone
)
# Transformed days before a day whose transitions and metrics its rows can still change: a session's last
# request becomes terminal, or gets its s', once the log has gone on, and users of the day before have
# come back. Two and not one, because a day's log may end within an idle gap of its start.
LOOK_BACK_DAYS = 2
LOOKING_BACK = ("fct_transitions", "fct_policy_daily")
# mart: columns that fix the order of an export's rows
MARTS = {
    "fct_transitions": ("event_ts", "request_id"),
    "fct_user_history": ("user_id",),
    "fct_session_state": ("event_timestamp", "request_id"),
    "dim_users": ("user_id",),
    "fct_policy_daily": ("arm", "policy_version"),
    "fct_user_days": ("user_id",),
}


def run(settings: Settings, day: date, full_refresh: bool = False) -> dict[str, Any]:
    """Build and test all models for ``day``, then export the marts of every day that was replaced.

    ``full_refresh`` builds every landed day up to ``day`` (or to the last one transformed) anew; a
    change of the settings that models depend on does the same. Returns ``models`` (status, and rows of
    a table), ``tests`` (counts), ``exported`` (days and rows of each mart) and ``reprocessed_days``.
    Raises :class:`DataError` when no impressions of ``day`` are landed or naming the dbt tests that
    failed and what they found, and :class:`RuntimeError` when dbt itself could not do its work.
    """
    layout = settings.layout
    if day not in layout.days(IMPRESSIONS):
        raise DataError(f"no impressions of {day} are landed: {layout.partition(IMPRESSIONS, day)} is absent")
    if day in held_days(settings):
        raise DataError(
            f"{day} is landed and has not passed its validation: `mtf day --date {day}` runs that"
        )
    models = _model_variables(settings)
    done = _transformed(settings)
    full_refresh = full_refresh or done["variables"] != models or not layout.warehouse.exists()
    landed = _landed(settings)
    before = {} if full_refresh else done["days"]
    look_back, first, last = _window(landed, before, day)
    if full_refresh and done["days"]:
        last = max(last, date.fromisoformat(max(done["days"])))

    window = {
        "MTF_DAY": day.isoformat(),
        "MTF_LOOK_BACK_DAY": look_back.isoformat(),
        "MTF_FIRST_DAY": first.isoformat(),
        "MTF_LAST_DAY": last.isoformat(),
        "MTF_HORIZON_DAY": max([last.isoformat(), *before]),
    }
    command = ["build", "--exclude-resource-type", "unit_test"]  # these are about the SQL, not about the data
    results = _dbt(settings, [*command, "--full-refresh"] if full_refresh else command, window)
    record = {
        "models": _models(settings, results),
        "tests": _tests(results),
        "exported": _export(settings, look_back, first, last),
        "reprocessed_days": [d for d in sorted(landed) if look_back.isoformat() <= d <= last.isoformat()],
    }
    outside = {d: content for d, content in before.items() if not first.isoformat() <= d <= last.isoformat()}
    inside = {d: content for d, content in landed.items() if first.isoformat() <= d <= last.isoformat()}
    days = {**outside, **inside}
    write_json_atomic(_transformed_path(settings), {"variables": models, "days": days})
    return record


def docs(settings: Settings) -> Path:
    """dbt's documentation of the models as one self-contained HTML page, made again when they changed.

    A run over the same models leaves the page alone: the catalogue of columns would be the same.
    """
    page = settings.layout.dbt_target / "static_index.html"
    described = page.with_suffix(".sha256")
    digest = hashlib.sha256(properties(settings).encode())
    for path in sorted(PROJECT.rglob("*")):
        if path.suffix in (".sql", ".yml", ".md") and "target" not in path.parts:
            digest.update(path.read_bytes())
    if not page.exists() or not described.exists() or described.read_text() != digest.hexdigest():
        _dbt(settings, ["docs", "generate", "--static"])
        write_text_atomic(described, digest.hexdigest())
    return page


# --- which days


def forget(settings: Settings, days: Collection[date], tables: Sequence[str]) -> None:
    """Take deleted partitions out of what was transformed: that they are gone is no change of a day.

    To be called before they are deleted. Killed in between, the next run transforms these days again.
    """
    done = _transformed(settings)
    for day in days:
        left = {t: c for t, c in done["days"].pop(day.isoformat(), {}).items() if t not in tables}
        if left:
            done["days"][day.isoformat()] = left
    if days:
        write_json_atomic(_transformed_path(settings), done)


def pending(settings: Settings, day: date) -> list[str]:
    """Days up to ``day`` (ISO) that are not transformed as they are landed now, nor with these settings."""
    done, landed = _transformed(settings), _landed(settings)
    if done["variables"] != _model_variables(settings) or not settings.layout.warehouse.exists():
        return [d for d in sorted(landed) if d <= day.isoformat()]
    return [d for d in _changed(landed, done["days"], day) if d <= day.isoformat()]


def _window(landed: dict[str, Any], before: dict[str, Any], day: date) -> tuple[date, date, date]:
    """First day to look back to, first and last day to replace, given landed and transformed content."""
    changed = _changed(landed, before, day)
    first = min([day.isoformat(), *changed])
    last = max([day.isoformat(), *before]) if changed else day.isoformat()
    earlier = sorted(d for d in before if d < first)[-LOOK_BACK_DAYS:]
    return tuple(map(date.fromisoformat, (min([first, *earlier]), first, last)))


def _changed(landed: dict[str, Any], before: dict[str, Any], day: date) -> list[str]:
    """Days that are not transformed as they are landed; new days count up to ``day``."""
    new = {d for d in landed if d <= day.isoformat() and landed[d] != before.get(d)}
    return sorted(new | {d for d in before if landed.get(d) != before[d]})


def held_days(settings: Settings) -> list[date]:
    """Landed days that the daily run did not find valid, or has not judged: nothing is made of them."""
    records = {d: read_records(settings.layout, d) for d in recorded_days(settings.layout)}
    return [
        d
        for d, found in records.items()
        if "land" in found and not found.get("validate_landed", {}).get("success", False)
    ]


def _landed(settings: Settings) -> dict[str, dict[str, str]]:
    """Content of every landed partition that is not held back: day → table → digest."""
    found: dict[str, dict[str, str]] = {}
    held = held_days(settings)
    for table in TABLES:
        for day in settings.layout.days(table):
            if day in held:
                continue
            digest = _content(settings.layout.partition(table, day))
            if digest:
                found.setdefault(day.isoformat(), {})[table] = digest
    return found


def _content(partition: Path) -> str:
    marker = partition / "_landed.json"
    if marker.exists():
        return read_json(marker)["sha256"]
    return " ".join(sha256(path) for path in sorted(partition.glob("*.parquet")))


def _transformed_path(settings: Settings) -> Path:
    return settings.layout.warehouse.parent / "transformed.json"


def _transformed(settings: Settings) -> dict[str, Any]:
    path = _transformed_path(settings)
    return read_json(path) if path.exists() else {"variables": None, "days": {}}


# --- dbt


def _model_variables(settings: Settings) -> dict[str, Any]:
    """What the models' content depends on, beside the lake."""
    return {
        "utc_offset_hours": settings.calendar.utc_offset_hours,
        "session_gap_minutes": settings.session.gap_minutes,
        "history_length": settings.state.history_length,
        "play_time_weight": settings.reward.play_time_weight,
        "play_time_cap_ms": round(settings.reward.play_time_cap_s * 1000),
        "integrity_weight": settings.reward.integrity_weight,
        "signals": [signal.model_dump() for signal in settings.signals],
        "heads": [head.name for head in settings.heads],
        "profile": [{"column": p.column, "type": PROFILE_TYPES[p.kind]} for p in settings.state.profile],
    }


def _dbt(
    settings: Settings, command: list[str], environment: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """One dbt process; the results of its nodes.

    Raises :class:`DataError` for failed tests and constraints, :class:`RuntimeError` for the rest.
    """
    target = settings.layout.dbt_target
    project = target / "project"
    with replaced_folder(project) as fresh:
        shutil.copytree(PROJECT, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns("target", "logs"))
        (fresh / GENERATED).write_text(properties(settings), encoding="utf-8")
    results = target / "run_results.json"
    results.unlink(missing_ok=True)
    if command[0] == "build":
        (target / BUILD_RESULTS).unlink(missing_ok=True)
    variables = {
        **_model_variables(settings),
        "decision_columns": [{"name": column.name, "type": column.type} for column in DECISION],
        "landed": [t for t in TABLES if any(settings.layout.table(t).glob("dt=*/*.parquet"))],
    }
    arguments = [
        *("--no-use-colors", "--log-level-file", "info", *command),
        *("--project-dir", str(project), "--profiles-dir", str(project)),
        *("--target-path", str(target), "--log-path", str(target / "logs")),
        *("--vars", json.dumps(variables)),
    ]
    environment = {
        "MTF_LAKE": str(settings.layout.root.resolve() / "lake"),
        "MTF_WAREHOUSE": str(settings.layout.warehouse.resolve()),
        "MTF_HELD_DAYS": " ".join(str(day) for day in held_days(settings)),
        "DBT_TARGET": "duckdb",
        **(environment or {}),
    }
    success, said = _forked(arguments, environment, target)
    if command[0] == "build" and results.exists():
        shutil.copyfile(results, target / BUILD_RESULTS)
    outcome = read_json(results)["results"] if results.exists() else []
    _raise_faults(settings, outcome)
    if not success:
        raise RuntimeError(f"dbt {' '.join(command)} failed: {said}")
    return outcome


def _forked(arguments: list[str], environment: dict[str, str], folder: Path) -> tuple[bool, str]:
    """Whether dbt succeeded, and the end of what it said, from a process of its own.

    The process is a fork: what dbt imports takes longer than a small day's build, and is imported once
    a process here, or by the scheduler for all of its tasks (``dags/preload.py``). dbt itself stays in the
    child, because its adapter keeps the warehouse open, and its settings are the environment.
    """
    import dbt.adapters.duckdb
    import dbt.cli.main  # noqa: F401

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_invoke, args=(sender, arguments, environment, folder), name="dbt")
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        answer = False, f"its process ended with {process.exitcode}"
    process.join()
    return answer


_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def _invoke(sender: "Connection", arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    from dbt.cli.main import dbtRunner

    if sys.platform == "linux":  # die with the stage: else a dbt without one would hold the warehouse
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(environment)
    os.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        result = dbtRunner().invoke(arguments)
    sender.send((bool(result.success), f"{said.getvalue()[-4000:]}{result.exception or ''}"))


# what dbt reports as errors of models though the data's values or columns are to blame
_OF_THE_DATA = ("Constraint Error", "enforced contract that failed", "Conversion Error")


def _raise_faults(settings: Settings, results: list[dict[str, Any]]) -> None:
    failed = [r for r in results if r["status"] == "fail"]
    errors = [r for r in results if r["status"] in ("error", "runtime error")]
    broken = [r for r in errors if any(words in (r["message"] or "") for words in _OF_THE_DATA)]
    if failed or broken:
        lines = [f"{_name(r)}: {_one_line(r['message'])}{_examples(settings, r)}" for r in failed]
        lines += [f"{_name(r)}: {_one_line(r['message'])}" for r in broken]
        raise DataError("dbt refused the data: " + "; ".join(lines))
    if errors:
        raise RuntimeError(
            "dbt failed: " + "; ".join(f"{_name(r)}: {_one_line(r['message'])}" for r in errors)
        )


def _examples(settings: Settings, result: dict[str, Any], most: int = 3) -> str:
    """The first rows that a failed data test found."""
    with duckdb.connect(str(settings.layout.warehouse), read_only=True) as connection:
        connection.execute("set TimeZone = 'UTC'")
        found = connection.sql(f"select * from ({result['compiled_code']}) order by all limit {most}")  # noqa: S608
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    return "".join(f" ({', '.join(f'{k}: {v}' for k, v in row.items())})" for row in rows)


def _one_line(message: str | None) -> str:
    return " ".join((message or "").split())


def _name(result: dict[str, Any]) -> str:
    return result["unique_id"].split(".")[2]


def _models(settings: Settings, results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Status of each model, and the rows that its table now holds (none for a view)."""
    models = {_name(r): {"status": r["status"]} for r in results if r["unique_id"].startswith("model.")}
    with duckdb.connect(str(settings.layout.warehouse), read_only=True) as connection:
        tables = connection.sql(
            "select table_name from information_schema.tables where table_type = 'BASE TABLE'"
        ).fetchall()
        for (name,) in tables:
            if name in models:
                rows = connection.sql(f"select count(*) from main.{name}").fetchall()  # noqa: S608
                models[name]["rows"] = rows[0][0]
    return {name: {"rows": None, **model} for name, model in sorted(models.items())}


def _tests(results: list[dict[str, Any]]) -> dict[str, int]:
    statuses = [r["status"] for r in results if r["unique_id"].startswith("test.")]
    return {
        "passed": statuses.count("pass"),
        "failed": statuses.count("fail"),
        "warned": statuses.count("warn"),
    }


# --- exports


def _export(settings: Settings, look_back: date, first: date, last: date) -> dict[str, dict[str, Any]]:
    """Write the days that each mart replaced, and remove exports of those that have no rows now."""
    exported = {}
    with duckdb.connect(str(settings.layout.warehouse), read_only=True) as connection:
        connection.execute("set TimeZone = 'UTC'")
        for mart, key in MARTS.items():
            since = look_back if mart in LOOKING_BACK else first
            counts = connection.execute(
                f"select dt, count(*) from main.{mart} where dt between ? and ? group by dt order by dt",  # noqa: S608
                [since, last],
            ).fetchall()
            for day, _ in counts:
                _copy(connection, mart, key, day, settings.layout.mart(mart) / f"dt={day}" / "part-0.parquet")
            kept = {day for day, _ in counts}
            for path in settings.layout.mart(mart).glob("dt=*/part-0.parquet"):
                day = date.fromisoformat(path.parent.name.removeprefix("dt="))
                if since <= day <= last and day not in kept:
                    shutil.rmtree(path.parent)
            exported[mart] = {"days": [str(day) for day, _ in counts], "rows": sum(n for _, n in counts)}
    return exported


def _copy(
    connection: duckdb.DuckDBPyConnection, mart: str, key: tuple[str, ...], day: date, path: Path
) -> None:
    def write(temporary: Path) -> None:
        connection.execute(
            f"copy (select * from main.{mart} where dt = date '{day}' order by {', '.join(key)}) "  # noqa: S608
            f"to '{str(temporary).replace(chr(39), chr(39) * 2)}' (format parquet, compression zstd)"
        )

    write_atomic(path, write)
