"""The daily dbt run: landed logs to sessions, transitions, user history and policy metrics.

dbt runs as one process over a copy of ``dbt_project`` below the data folder, so that nothing is ever
written to the source tree. What the settings say reaches the models and their yml as dbt's variables. What
differs between DuckDB and Spark is behind :mod:`training.warehouse.engines`.

Which days a run replaces: see :mod:`training.warehouse.days`.
"""

import hashlib
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

from training.contract.columns import decision_columns
from training.contract.errors import DataError
from training.contract.files import read_json, replaced_folder, write_json_atomic, write_text_atomic
from training.contract.layout import IMPRESSIONS, TABLES
from training.contract.session import DECAY
from training.contract.settings import Settings
from training.warehouse.days import (
    begin,
    held_days,
    landed_content,
    transformed,
    transformed_path,
    untransformed_days,
    window_of,
)
from training.warehouse.engine import Answer, Window
from training.warehouse.engines import engine_of
from training.warehouse.exports import export

PROJECT = Path(__file__).parents[2] / "dbt_project"
BUILD_RESULTS = (
    "build_results.json"  # in dbt's target folder: the last build's, which later commands leave alone
)
ID_TYPES = {"int64": "bigint", "string": "string"}
PROFILE_TYPES = {
    "numeric": "double",
    "saturating": "double",
    "log": "double",
    "flag": "bigint",
    "categorical": "string",
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
    engine = engine_of(settings)
    engine.environment()  # refuses to go on before anything is touched
    models = _model_variables(settings)
    done = transformed(settings)
    full_refresh = full_refresh or _all_anew(settings, done)
    landed = landed_content(settings)
    before = {} if full_refresh else done["days"]
    look_back, first, last = window_of(landed, before, day)
    if full_refresh and done["days"]:
        last = max(last, date.fromisoformat(max(done["days"])))

    window = Window(look_back, first, last)
    begin(settings, date.min if full_refresh else first, last)
    engine.make_room(window, full_refresh)
    environment = {
        "MTF_DAY": day.isoformat(),
        "MTF_LOOK_BACK_DAY": look_back.isoformat(),
        "MTF_FIRST_DAY": first.isoformat(),
        "MTF_LAST_DAY": last.isoformat(),
        "MTF_HORIZON_DAY": max([last.isoformat(), *before]),
    }
    command = ["build", "--exclude-resource-type", "unit_test"]  # these are about the SQL, not about the data
    results = _dbt(settings, [*command, "--full-refresh"] if full_refresh else command, environment)
    record = {
        "models": _models(settings, results),
        "tests": _tests(results),
        "exported": export(settings, window),
        "reprocessed_days": [d for d in sorted(landed) if look_back.isoformat() <= d <= last.isoformat()],
    }
    outside = {d: content for d, content in before.items() if not first.isoformat() <= d <= last.isoformat()}
    inside = {d: content for d, content in landed.items() if first.isoformat() <= d <= last.isoformat()}
    days = {**outside, **inside}
    done = {"variables": models, "engine": settings.warehouse.engine, "days": days}
    write_json_atomic(transformed_path(settings), done)
    return record


def docs(settings: Settings) -> Path:
    """dbt's documentation of the models as one self-contained HTML page, made again when they changed.

    A run over the same models leaves the page alone: the catalogue of columns would be the same.
    """
    page = settings.layout.dbt_target / "static_index.html"
    described = page.with_suffix(".sha256")
    digest = hashlib.sha256(json.dumps(_model_variables(settings)).encode())
    for path in sorted(PROJECT.rglob("*")):
        if path.suffix in (".sql", ".yml", ".md") and "target" not in path.parts:
            digest.update(path.read_bytes())
    if not page.exists() or not described.exists() or described.read_text() != digest.hexdigest():
        command = ["docs", "generate", "--static"]
        # Spark's catalogue is as old as its session
        _dbt(settings, command if settings.warehouse.engine == "duckdb" else [*command, "--empty-catalog"])
        write_text_atomic(described, digest.hexdigest())
    return page


def pending(settings: Settings, day: date) -> list[str]:
    """Days up to ``day`` (ISO) that are not transformed as they are landed now, nor with these settings."""
    done, landed = transformed(settings), landed_content(settings)
    if _all_anew(settings, done):
        return [d for d in sorted(landed) if d <= day.isoformat()]
    return [d for d in untransformed_days(landed, done["days"], day) if d <= day.isoformat()]


def _all_anew(settings: Settings, done: dict[str, Any]) -> bool:
    """Whether the tables are not there, or were made with other settings or on another engine."""
    same = done["variables"] == _model_variables(settings) and done["engine"] == settings.warehouse.engine
    return not same or not engine_of(settings).built()


def _model_variables(settings: Settings) -> dict[str, Any]:
    """What the models' content depends on, beside the lake."""
    return {
        "user_id_type": ID_TYPES[settings.ids.kept("user_id")],
        "item_id_type": ID_TYPES[settings.ids.kept("item_id")],
        "midnights": [
            {"day": day.isoformat(), "offset_s": offset} for day, offset in settings.calendar.midnights
        ],
        "session_gap_minutes": settings.session.gap_minutes,
        "session_max_requests": _max_requests(settings),
        "session_decay": DECAY,
        "history_length": settings.state.history_length,
        "play_time_weight": settings.reward.play_time_weight,
        "play_time_cap_ms": round(settings.reward.play_time_cap_s * 1000),
        "integrity_weight": settings.reward.integrity_weight,
        "signals": [signal.model_dump() for signal in settings.signals],
        "heads": settings.head_names,
        "profile": [
            {"column": p.column, "kind": p.kind, "type": PROFILE_TYPES[p.kind]}
            for p in settings.state.profile
        ],
    }


def _max_requests(settings: Settings) -> int | None:
    """The platform's hard end of a session, if it has one; the world's where the data is of a world."""
    return settings.world.max_requests if settings.layout.world.exists() else settings.session.max_requests


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
    results = target / "run_results.json"
    results.unlink(missing_ok=True)
    if command[0] == "build":
        (target / BUILD_RESULTS).unlink(missing_ok=True)
    variables = {
        **_model_variables(settings),
        "decision_columns": [
            {"name": column.name, "type": column.type} for column in decision_columns(settings.ids)
        ],
        "landed": [t for t in TABLES if any(settings.layout.table(t).glob("dt=*/*.parquet"))],
    }
    arguments = [
        *("--no-use-colors", "--log-level-file", "info", *command),
        *("--project-dir", str(project), "--profiles-dir", str(project)),
        *("--target-path", str(target), "--log-path", str(target / "logs")),
        *("--vars", json.dumps(variables)),
    ]
    engine = engine_of(settings)
    environment = {
        "MTF_LAKE": str(settings.layout.root.resolve() / "lake"),
        "MTF_HELD_DAYS": " ".join(str(day) for day in held_days(settings)),
        "DBT_TARGET": engine.target,
        **engine.environment(),
        **(environment or {}),
    }
    answer = engine.invoke(arguments, environment, target)
    if command[0] == "build" and results.exists():
        shutil.copyfile(results, target / BUILD_RESULTS)
    outcome = read_json(results)["results"] if results.exists() else []
    _raise_faults(settings, answer, outcome)
    if not answer.success:
        raise RuntimeError(f"dbt {' '.join(command)} failed: {answer.said}")
    return outcome


# what dbt reports as errors of models though the data's values or columns are to blame
_OF_THE_DATA = ("Constraint Error", "enforced contract that failed", "Conversion Error")


def _raise_faults(settings: Settings, answer: Answer, results: list[dict[str, Any]]) -> None:
    failed = [r for r in results if r["status"] == "fail"]
    errors = [r for r in results if r["status"] in ("error", "runtime error")]
    broken = [r for r in errors if any(words in (r["message"] or "") for words in _OF_THE_DATA)]
    if failed or broken:
        lines = [f"{_name(r)}: {_one_line(r['message'])}{_examples(settings, answer, r)}" for r in failed]
        lines += [f"{_name(r)}: {_one_line(r['message'])}" for r in broken]
        raise DataError("dbt refused the data: " + "; ".join(lines))
    if errors:
        raise RuntimeError(
            "dbt failed: " + "; ".join(f"{_name(r)}: {_one_line(r['message'])}" for r in errors)
        )


def _examples(settings: Settings, answer: Answer, result: dict[str, Any], most: int = 3) -> str:
    """The first rows that a failed data test found."""
    rows = engine_of(settings).examples(answer, result, most)
    return "".join(f" ({', '.join(f'{k}: {v}' for k, v in row.items())})" for row in rows)


def _one_line(message: str | None) -> str:
    return " ".join((message or "").split())


def _name(result: dict[str, Any]) -> str:
    return result["unique_id"].split(".")[2]


def _models(settings: Settings, results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Status of each model, and the rows that its table now holds (none for a view)."""
    models = {_name(r): {"status": r["status"]} for r in results if r["unique_id"].startswith("model.")}
    with engine_of(settings).connect() as (connection, tables):
        for name in tables & models.keys():
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
