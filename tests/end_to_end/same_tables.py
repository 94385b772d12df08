"""The same final tables, bit for bit: days in order, a backfill, and days whose every stage was killed.

    python -m tests.end_to_end.same_tables --out build/same_tables --days 3

Three data folders get the same log files. *In order*: each day's files come, then the day runs. *Backfill*:
all files are there and landed first, then `mtf backfill` runs the days. *Killed*: as in order, but each stage
of each day is begun in a process of its own group and killed with SIGKILL, at a share of the time it takes
or when its first temporary files show, before it may end. Writes ``report.md`` and
``report.json``.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from dags import stages
from tests.end_to_end import small_days
from training.contract.files import sha256, write_json_atomic, write_text_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS, TABLES, USERS
from training.contract.pointer import read_champion
from training.contract.records import read_record
from training.contract.settings import SETTINGS_VARIABLE, Settings

# when a stage is killed: at a share of its known time, or once this many temporary files have been seen
SHARES, FILES = (0.2, 0.5, 0.8), (1, 2)
TRIES = 4  # of a stage after its kills: what a killed dbt leaves may still run, and holds the warehouse
TEMPORARY = (".tmp", ".new", ".old")


# --- what is compared


def final_state(settings: Settings) -> dict[str, str]:
    """Name of each table, file and decision that days leave → hash of its content, in a canonical order."""
    layout = settings.layout
    found = {}
    for table in TABLES:
        for day in layout.days(table):
            found[f"lake {table} {day}"] = sha256(layout.partition(table, day) / "part-0.parquet")
    for path in sorted(layout.marts.glob("*/dt=*/part-0.parquet")):
        found[f"mart {path.parent.parent.name} {path.parent.name[3:]}"] = _rows(path)
        found[f"bytes of mart {path.parent.parent.name} {path.parent.name[3:]}"] = sha256(path)
    with duckdb.connect(str(layout.warehouse), read_only=True) as connection:
        connection.execute("set timezone = 'UTC'")
        tables = connection.sql(
            "select table_schema, table_name from information_schema.tables "
            "where table_type = 'BASE TABLE' order by all"
        ).fetchall()
        for schema, name in tables:
            rows = connection.sql(f'select * from "{schema}"."{name}" order by all').fetchall()  # noqa: S608
            found[f"warehouse {schema}.{name}"] = _digest(rows)
    with closing(sqlite3.connect(layout.feast / "online.db")) as connection:
        names = [
            n for (n,) in connection.execute("select name from sqlite_master where type = 'table' order by 1")
        ]
        for name in names:
            columns = [c[1] for c in connection.execute(f'pragma table_info("{name}")')]
            kept = ", ".join(f'"{c}"' for c in columns if not c.startswith("created"))  # when it was written
            rows = connection.execute(f'select {kept} from "{name}" order by {kept}').fetchall()  # noqa: S608
            found[f"online {name}"] = _digest(rows)
    for path in sorted(layout.models.glob("dt=*/*.safetensors")):
        found[f"model {path.parent.name[3:]} {path.name}"] = sha256(path)
    for folder in sorted((layout.root / "runs").glob("dt=*")):
        gate = read_record(layout, date.fromisoformat(folder.name[3:]), "gate")
        found[f"gate {folder.name[3:]}"] = gate["decision"] if gate else "none"
    champion = read_champion(layout.champion)
    found["champion"] = champion.sha256 if champion else "none"
    return found


def left_over(settings: Settings) -> list[str]:
    """Temporary files and folders below the data folder."""
    root = settings.layout.root
    return sorted(str(p.relative_to(root)) for p in _temporary(root))


def _temporary(root: Path) -> list[Path]:
    """What is there may go while it is looked for."""
    found = []
    for folder, folders, files in os.walk(root):
        names = [name for name in (*folders, *files) if name.startswith(".") and name.endswith(TEMPORARY)]
        found += [Path(folder, name) for name in names]
    return found


def _rows(path: Path) -> str:
    """Of a Parquet file's rows, each as text, in sorted order."""
    table = pq.ParquetFile(path).read()
    digest = hashlib.sha256(str(table.schema).encode())
    for row in sorted(repr(row) for row in table.to_pylist()):
        digest.update(row.encode())
    return digest.hexdigest()


def _digest(rows: Any) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()


# --- the three ways


def deliver(source: Settings, calendar: list[date], folder: Path) -> None:
    """The world's days as files of ``logs.source: files``."""
    for day in calendar:
        for table in (IMPRESSIONS, DECISIONS, USERS):
            partition = source.layout.partition(table, day)
            target = folder / table / f"dt={day}" / "part.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(partition / "part-0.parquet", target)


def in_order(settings: Settings, source: Settings, calendar: list[date]) -> None:
    for day in calendar:
        deliver(source, [day], settings.logs.folder)
        stages.run_day(settings, day)


def backfilled(settings: Settings, source: Settings, calendar: list[date]) -> None:
    deliver(source, calendar, settings.logs.folder)
    environment = {**os.environ, SETTINGS_VARIABLE: str(settings.data.parent / "mtf.yaml")}
    mtf = [sys.executable, "-c", "from dags.command_line.main import run; run()"]
    first, last = str(calendar[0]), str(calendar[-1])
    for day in calendar:
        land = [*mtf, "ingest", "--source", "files", "--from", str(settings.logs.folder), "--date", str(day)]
        subprocess.run(land, env=environment, check=True, capture_output=True)
    subprocess.run([*mtf, "backfill", "--from", first, "--to", last], env=environment, check=True)


def killed(
    settings: Settings,
    source: Settings,
    calendar: list[date],
    seconds: dict[str, float],
    told: Callable[[dict[str, Any]], None],
) -> None:
    """Each stage of each day is killed once, at the next of :data:`SHARES` and :data:`FILES`, then run."""
    instants = itertools.cycle([*(("share", share) for share in SHARES), *(("files", n) for n in FILES)])
    for day in calendar:
        deliver(source, [day], settings.logs.folder)
        for stage in stages.DAY_STAGES:
            kind, value = next(instants)
            after = value * seconds[stage] if kind == "share" else None
            hit = _kill(settings, day, stage, after, value if kind == "files" else None)
            told({"day": str(day), "stage": stage, kind: value, "killed": hit})
            for again in range(TRIES):
                if _wait(_begin(settings, day, stage)) == 0:
                    break
                time.sleep(2**again)
            else:
                raise RuntimeError(f"{stage} of {day} did not end after its kills")
        stages.make_report(settings, day)


def _begin(settings: Settings, day: date, stage: str) -> int:
    """Start a stage in a fork, as Airflow's LocalExecutor does; its process id, which leads its group."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        with Path(settings.data.parent / "stages.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            stages.run_stage(settings, day, stage, force=True)
        code = 0
    except BaseException as error:
        os.write(2, f"{day} {stage}: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _kill(settings: Settings, day: date, stage: str, after: float | None, files: int | None) -> bool:
    """Begin a stage and SIGKILL its group after some seconds or temporary files; whether it still ran."""
    before = set(_temporary(settings.layout.root))
    child, began, seen = _begin(settings, day, stage), time.monotonic(), set()
    while True:
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended:
            return False  # it was done before
        if files is not None:
            seen |= set(_temporary(settings.layout.root)) - before
        if (after is not None and time.monotonic() - began >= after) or (
            files is not None and len(seen) >= files
        ):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.001)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def compare(out: Path, count: int, told: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the three ways; ``{"differ": {way: [names]}, "things", "kills", "hits", …}``."""
    import dags.preload  # noqa: F401  (what the forks need is imported once)

    shutil.rmtree(out, ignore_errors=True)
    out = out.resolve()
    calendar = small_days.days(count)
    source = small_days.write_settings(out / "source")
    small_days.land_world(source, calendar)

    def settings_of(way: str) -> Settings:
        folder = out / way
        return small_days.write_settings(
            folder, {"logs": {"source": "files", "folder": str(folder / "logs")}}
        )

    ways = {way: settings_of(way) for way in ("in_order", "backfill", "killed")}
    kills: list[dict[str, Any]] = []

    def note(kill: dict[str, Any]) -> None:
        kills.append(kill)
        told(json.dumps(kill))

    child = os.fork()  # this process only forks: libraries' threads would not survive it
    if child == 0:
        code = 1
        try:
            in_order(ways["in_order"], source, calendar)
            code = 0
        finally:
            os._exit(code)
    if _wait(child) != 0:
        raise RuntimeError("the days in order failed")
    seconds = {
        s: max(read_record(ways["in_order"].layout, d, s)["seconds"] for d in calendar)
        for s in stages.DAY_STAGES
    }
    killed(ways["killed"], source, calendar, seconds, note)
    backfilled(ways["backfill"], source, calendar)
    states = {way: final_state(settings) for way, settings in ways.items()}
    wanted = states["in_order"]
    differ = {
        way: sorted(name for name in {*wanted, *state} if wanted.get(name) != state.get(name))
        for way, state in states.items()
        if way != "in_order"
    }
    result = {
        "days": [str(day) for day in calendar],
        "differ": differ,
        "things": len(wanted),
        "kinds": sorted({" ".join(name.split()[:2]) for name in wanted if not name.startswith("bytes")}),
        "gates": {str(day): wanted[f"gate {day}"] for day in calendar},
        "kills": len(kills),
        "hits": sum(kill["killed"] for kill in kills),
        "hits_by_stage": {
            stage: sum(k["killed"] for k in kills if k["stage"] == stage) for stage in stages.DAY_STAGES
        },
        "left_over": left_over(ways["killed"]),
    }
    write_json_atomic(out / "report.json", {**result, "all_kills": kills, "states": states})
    write_text_atomic(out / "report.md", report(result))
    return result


def report(result: dict[str, Any]) -> str:
    lines = [
        "# The same final tables",
        "",
        f"{len(result['days'])} small days, {result['things']} things compared (rows of every mart and day, "
        "bytes of their files, tables of the warehouse, online store, policies, learners, gate, champion).",
        "",
        "| way | things that differ from the days run in order |",
        "|---|---|",
        *[f"| {way} | {', '.join(names) or 'none'} |" for way, names in result["differ"].items()],
        "",
        f"{result['hits']} of {result['kills']} kills hit a running stage (the others found it done). They "
        f"left {len(result['left_over'])} temporary files behind, under names with a dot that nothing reads.",
        "",
        "| stage | kills that hit |",
        "|---|---|",
        *[f"| {stage} | {hits} |" for stage, hits in result["hits_by_stage"].items()],
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/same_tables"))
    parser.add_argument("--days", type=int, default=3)
    options = parser.parse_args()
    result = compare(options.out, options.days)
    print(report(result))
    return 1 if any(result["differ"].values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
