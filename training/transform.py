"""The daily dbt run: landed logs to sessions, transitions, user history and policy metrics.

dbt runs as one process over a copy of ``dbt_project`` below the data folder, so that nothing is ever
written to the source tree. The copy differs in one file, ``models/_from_settings.yml``: the properties
(descriptions, tests, enforced contracts) of the models whose columns are named by the settings' signals
and profile, because dbt's YAML cannot make columns out of variables. :func:`properties` writes it; the
committed one is that of the default settings, and a test keeps it so.

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
import yaml

from training.contract.columns import decision_columns, impression_columns, user_columns
from training.contract.errors import DataError
from training.contract.files import (
    read_json,
    replaced_folder,
    sha256,
    write_atomic,
    write_json_atomic,
    write_text_atomic,
)
from training.contract.layout import DECISIONS, IMPRESSIONS, TABLES, USERS
from training.contract.records import read_records, recorded_days
from training.contract.settings import Settings
from training.contract.state import history_columns, session_columns

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PROJECT = Path(__file__).parents[1] / "dbt_project"
GENERATED = "models/_from_settings.yml"
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
_INSTANT = "{{ 'timestamp' if target.type == 'spark' else 'timestamptz' }}"
_PROFILE_TYPES = {"numeric": "double", "log": "double", "flag": "bigint", "categorical": "string"}


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
        "profile": [{"column": p.column, "type": _PROFILE_TYPES[p.kind]} for p in settings.state.profile],
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
        "DO_NOT_TRACK": "1",
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


# --- properties of the models whose columns the settings name


def properties(settings: Settings) -> str:
    """``models/_from_settings.yml`` for these settings: grain, columns, keys, contracts."""
    signals, profile = settings.signal_names, settings.state.profile
    feedback = [
        _column(f"signal_{s.name}", f"0 or 1, the log's {s.column}; 0 where it has none")
        for s in settings.signals
    ]
    counts = [_column(f"{s}_count", f"shown items with {s}") for s in signals]
    attributes = [
        # quoted: it may be a word of SQL
        {**_column(p.column, f"profile column, {p.kind}", _PROFILE_TYPES[p.kind]), "quote": True}
        for p in profile
    ]
    dt = _column("dt", "local day of the request")
    user_id = _column("user_id", "who was shown the list", "bigint", required=True)
    models = [
        _model(
            "stg_impressions",
            "One row per shown item, as landed.",
            [
                _column("request_id", "ranking request that showed the item"),
                _column("served_session_id", "session id as the log gives it, or null"),
                _column("user_id", "who was shown the item"),
                _column("item_id", "what was shown"),
                _column("event_ts", "when the request was answered"),
                _column("feedback_ts", "when its feedback arrived, or null"),
                _column("shown_position", "0 is the top of the list"),
                *feedback,
                *[
                    _column(f"p_{head.name}", f"predicted {head.name}, 0 where it was not given")
                    for head in settings.heads
                ],
                _column("play_ms", "milliseconds played"),
                _column("duration_ms", "length of the item in milliseconds, 0 where unknown"),
                dt,
            ],
            key=["request_id", "item_id"],
        ),
        _model(
            "stg_users",
            "One row per user and day on which his profile was new or changed, as landed.",
            [
                _column("user_id", "whose profile"),
                _column("updated_ts", "from when on it holds"),
                *[_column(p.column, f"profile column, {p.kind}") for p in profile],
                _column("dt", "local day it was landed for"),
            ],
            key=["user_id", "updated_ts", "dt"],
        ),
        _model(
            "int_requests",
            "One row per ranking request: its decision where one was logged, and the sums of the feedback "
            "on what it showed.",
            [
                _column("request_id", "key"),
                _column("user_id", "who asked"),
                _column("served_session_id", "session id as the log gives it, or null"),
                _column("event_ts", "when it was answered", tests=["not_null"]),
                _column("feedback_ts", "when its latest feedback arrived, or null"),
                _column("arm", "arm that served it; unknown without a decision log"),
                _column("policy_version", "policy that served it; unknown without a decision log"),
                _column("has_decision", "a decision was logged"),
                _column("has_feedback", "feedback has arrived; always true without a decision log"),
                _column("impressions", "shown items"),
                *counts,
                _column("play_ms", "milliseconds played"),
                _column("known_durations", "shown items whose duration is known"),
                _column("completion", "sum of min(play / duration, 1) over these"),
                _column("positive_interactions", "shown items with at least one positive interaction"),
                _column("plays", "shown items that were played at all"),
                _column("positive_plays", "plays with at least one positive interaction"),
                _column("watch_reward", "its terms of play time and integrity", tests=["not_null"]),
                _column("reward", "eq. (2) with the settings' weights", tests=["not_null"]),
                _column("item_scores", "predictions of each shown item, one item after the other"),
                _column("item_rewards", "eq. (2) of each shown item"),
                dt,
            ],
            key=["request_id"],
        ),
        _model(
            "fct_user_history",
            f"One row per user and day on which he was shown anything: his last "
            f"{settings.state.history_length} impressions up to the end of that day, point in time.",
            [
                user_id,
                _column(
                    "event_timestamp",
                    "local midnight that ends the day: usable from then on",
                    _INSTANT,
                    required=True,
                ),
                _column("created_timestamp", "the same instant, so that reruns agree", _INSTANT),
                *[
                    _column(name, _HISTORY.get(name, _rate(name)), _history_type(name), required=True)
                    for name in history_columns(signals)
                ],
                _column("hist_last_ts", "last impression of the window", _INSTANT),
                _column("dt", "the day whose end the row describes", "date", required=True),
            ],
            key=["user_id", "dt"],
            part_of=("int_user_days", ["user_id"]),
            contract=True,
        ),
        _model(
            "fct_session_state",
            "One row per request with feedback: sums over the user's session in the order in which "
            "feedback arrived, this request included. Cut as the service cuts them: by session id, and "
            "by an idle gap between feedback.",
            [
                user_id,
                _column("session_id", "session of int_session_requests", "string", required=True),
                _column("request_id", "key: whose feedback it was", "string", required=True),
                _column("event_timestamp", "when the feedback arrived", _INSTANT, required=True),
                *[
                    _column(
                        name,
                        _session(name),
                        "double" if name.endswith("_play_s") else "bigint",
                        required=True,
                    )
                    for name in session_columns(signals)
                ],
                _column("sess_session_id", "session id that requests carry", "string", required=True),
                _column("sess_last_ts", "latest feedback, this one", _INSTANT, required=True),
                _column("dt", "local day of the request", "date", required=True),
            ],
            key=["request_id"],
            part_of=("int_session_requests", ["request_id"]),
            contract=True,
        ),
        _model(
            "fct_user_days",
            "One row per user and day on which he was shown anything: the terms of eq. (2), summed.",
            [
                user_id,
                _column("requests", "requests that showed him anything", "bigint", required=True),
                _column("impressions", "shown items", "bigint", required=True),
                *[_column(f"{s}_count", f"shown items with {s}", "bigint", required=True) for s in signals],
                _column("play_s", "seconds played: his dwell time", "double", required=True),
                _column("capped_play_s", "seconds that count, per item", "double", required=True),
                _column(
                    "integrity",
                    "sum of min(play / duration, 1) where the duration is known",
                    "double",
                    required=True,
                ),
                _column("dt", "local day of the requests", "date", required=True),
            ],
            key=["user_id", "dt"],
            part_of=("int_user_days", ["user_id"]),
            contract=True,
        ),
        _model(
            "dim_users",
            "One row per user and day on which his profile was landed, new or changed.",
            [
                _column("user_id", "whose profile", "bigint", required=True),
                _column(
                    "event_timestamp",
                    "from when on it holds: when it changed, kept within the day that brought it",
                    _INSTANT,
                    required=True,
                ),
                *attributes,
                _column("dt", "local day it was landed for", "date", required=True),
            ],
            key=["user_id", "dt"],
            part_of=("stg_users", ["user_id"]),
            contract=True,
        ),
        _model(
            "dim_user_versions",
            "One row per user and version of his profile: a slowly changing dimension of type 2, whose "
            "versions follow each other without gap or overlap. To join it as of an instant t: "
            "valid_from <= t and (t < valid_to or valid_to is null). Computed from the landed days, not by a "
            "dbt snapshot, which stamps what it sees with the clock and so is wrong for a day that "
            "comes late, twice or out of order.",
            [
                _column("user_id", "whose profile", "bigint", required=True),
                _column("version", "1 for his first one", "int", required=True),
                _column("valid_from", "from when on it holds", _INSTANT, required=True),
                _column("valid_to", "when the next one begins; null for the last", _INSTANT),
                *attributes,
                _column("dt", "local day that brought it", "date", required=True),
            ],
            key=["user_id", "version"],
            part_of=("dim_users", ["user_id"]),
            contract=True,
        ),
    ]
    head = (
        "# Written by training.transform.properties: columns that depend on the settings. This copy is that\n"
        "# of the default settings; to renew it: python -m training.transform > dbt_project/" + GENERATED
    )
    described = {"sources": [_source(settings)], "models": models}
    body = yaml.safe_dump(described, sort_keys=False, width=108, allow_unicode=True)
    return f"{head}\nversion: 2\n{body}"


_LAKE_TYPES = {
    "string": "string",
    "int8": "tinyint",
    "int32": "int",
    "int64": "bigint",
    "float": "float",
    "double": "double",
    "list<float>": "{{ 'array<float>' if target.type == 'spark' else 'float[]' }}",
    "timestamp[us, UTC]": _INSTANT,
}
_LAKE = {
    IMPRESSIONS: "One row per shown item, with what the user did. Key (request_id, item_id).",
    DECISIONS: "One row per ranking request, as it was served. Key request_id. Absent for other logs.",
    USERS: "One row per user whose profile is new or changed that day. Optional.",
}


def _source(settings: Settings) -> dict[str, Any]:
    """The lake: each table with the columns of :mod:`training.contract.columns`, held against its files."""
    columns = {
        IMPRESSIONS: impression_columns(settings),
        DECISIONS: decision_columns(),
        USERS: user_columns(settings),
    }
    tables = []
    for table, description in _LAKE.items():
        spark = f"'`' ~ env_var('MTF_LAKE', 'lake') ~ '/{table}`'"
        entry: dict[str, Any] = {
            "name": table,
            "identifier": f"{{{{ {spark} if target.type == 'spark' else '{table}' }}}}",
            "description": description,
            "data_tests": [{"as_declared": {"name": f"{table}_as_declared", "arguments": {"table": table}}}],
            "columns": [
                {
                    **_column(column.name, column.description, _LAKE_TYPES[column.type]),
                    "config": {"meta": {"required": column.required}},
                }
                for column in columns[table]
            ]
            + [_column("dt", "local day of its partition", "date")],
        }
        if table == USERS:
            entry["config"] = {"loaded_at_field": "updated_ts", "freshness": None}
        tables.append(entry)
    return {
        "name": "lake",
        "description": "Landed logs, one Parquet partition a local day, written by training.ingest.",
        "schema": "{{ 'parquet' if target.type == 'spark' else 'lake' }}",
        "config": {
            # `dbt source freshness` compares the newest event with the clock; the daily run does not,
            # because a backfill, a replay or a simulated world lives in another time
            "freshness": {
                "warn_after": {"count": 30, "period": "hour"},
                "error_after": {"count": 54, "period": "hour"},
            },
            "loaded_at_field": "event_ts",
            "meta": {
                "external_location": (
                    "read_parquet('{{ env_var('MTF_LAKE', 'lake') | replace(\"'\", \"''\") }}"
                    "/{name}/dt=*/*.parquet', hive_partitioning = true, union_by_name = true)"
                )
            },
        },
        "tables": tables,
    }


_HISTORY = {
    "hist_count": "impressions in the window",
    "hist_play_s": "mean seconds played of an impression",
    "hist_completion": "mean of min(play / duration, 1) where the duration is known, else 0",
    "hist_sessions": "sessions that the window spans",
    "hist_session_length": "impressions of the window per such session",
    "hist_days_since_last": "whole days from the last impression to event_timestamp",
}


def _rate(name: str) -> str:
    return f"share of the window's impressions with {name.removeprefix('hist_').removesuffix('_rate')}"


def _history_type(name: str) -> str:
    return "bigint" if name in ("hist_count", "hist_sessions", "hist_days_since_last") else "double"


def _session(name: str) -> str:
    """Words for a column such as sess_like_count or last_play_s."""
    scope, _, what = name.partition("_")
    words = {"requests": "requests with feedback", "impressions": "shown items", "play_s": "seconds played"}
    what = words.get(what, f"shown items with {what.removesuffix('_count')}")
    return f"{what}, {'session so far' if scope == 'sess' else 'this request'}"


def _column(
    name: str,
    description: str,
    data_type: str | None = None,
    required: bool = False,
    tests: list[str] | None = None,
) -> dict[str, Any]:
    """A ``required`` column of a contract cannot be null: the table itself refuses it."""
    column: dict[str, Any] = {"name": name, "description": description}
    if data_type:
        column["data_type"] = data_type
    if required:
        column["constraints"] = [{"type": "not_null"}]
    if tests:
        column["data_tests"] = tests
    return column


def _model(
    name: str,
    description: str,
    columns: list[dict[str, Any]],
    key: list[str],
    part_of: tuple[str, list[str]] | None = None,
    contract: bool = False,
) -> dict[str, Any]:
    model: dict[str, Any] = {"name": name, "description": description}
    if contract:
        model["config"] = {"contract": {"enforced": True}}
    tests: list[dict[str, Any]] = [{"primary_key": {"arguments": {"columns": key}}}]
    if part_of:
        to, columns_of_it = part_of
        tests.append({"part_of": {"arguments": {"to": f"ref('{to}')", "columns": columns_of_it}}})
    return {**model, "data_tests": tests, "columns": columns}


if __name__ == "__main__":
    sys.stdout.write(properties(Settings()))
