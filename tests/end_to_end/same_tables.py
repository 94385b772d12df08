"""The same final tables, bit for bit: days in order, a backfill, and days whose every stage was killed.

    python -m tests.end_to_end.same_tables --out build/same_tables --days 3

Three data folders get the same log files. *In order*: each day's files come, then the day runs. *Backfill*:
all files are there and landed first, then `mtf backfill` runs the days. *Killed*: as in order, but each stage
of each day is begun in a process of its own group and killed with SIGKILL from inside, just before one of its
writes (a file opened to be written, a rename, a removal), before it may end. Writes ``report.json`` and the
report.
"""

import argparse
import hashlib
import itertools
import json
import mmap
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from dags import stages
from tests.end_to_end import small_days
from training.contract.files import leftovers, read_json, sha256, write_json_atomic, write_text_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS, TABLES, USERS
from training.contract.pointer import read_pointer
from training.contract.records import read_record
from training.contract.settings import SETTINGS_VARIABLE, Settings
from training.experiments.pages import header, provenance
from training.operations import retention

# where a stage is killed: at its first write, at these shares of the writes it made in order, at its last
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
TRIES = 6  # of a kill, and of a stage after it
KINDS = {  # what a name of final_state begins with → what it is
    "lake": "bytes of landed partitions",
    "mart": "rows of a mart on a day",
    "bytes": "bytes of a mart's file",
    "warehouse": "tables of the warehouse",
    "online": "tables of the online store",
    "model": "policies and learners",
    "gate": "decisions of the gate",
    "champion": "the champion",
}
EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect"})


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
    champion = read_pointer(layout.champion)
    found["champion"] = champion.sha256 if champion else "none"
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


def in_order(settings: Settings, source: Settings, calendar: list[date]) -> dict[str, int]:
    """Also counts how often each stage of each day writes."""
    writes, counted = Writes(settings.data), {}
    for day in calendar:
        deliver(source, [day], settings.logs.folder)

        def done(stage: str, record: dict[str, Any], day: date = day) -> None:
            counted[f"{day} {stage}"] = writes.count

        stages.run_day(settings, day, begin=lambda stage: writes.reset(), done=done)
    return counted


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
    writes: Mapping[str, int],
    told: Callable[[dict[str, Any]], None],
) -> None:
    """Each stage of each day is killed at the next of :data:`PLACES` of its writes, then run to its end."""
    places = itertools.cycle(PLACES)
    for day in calendar:
        deliver(source, [day], settings.logs.folder)
        for stage in stages.DAY_STAGES:
            kill: dict[str, Any] = {"day": str(day), "stage": stage, "of": writes[f"{day} {stage}"]}
            at = max(1, round(next(places) * kill["of"]))
            for begun in range(1, TRIES + 1):
                kill |= {"begun": begun, "write": at}
                event = _kill(settings, day, stage, at)
                if event is not None:
                    break
                at = max(1, at // 2)  # it did less than in order, and was done before
            told({**kill, "killed_at": event})
            for again in range(TRIES):
                if _wait(_begin(settings, day, stage)) == 0:
                    break
                time.sleep(2**again)
            else:
                raise RuntimeError(f"{stage} of {day} did not end after its kill")
        stages.make_report(settings, day)


def _begin(settings: Settings, day: date, stage: str, kill_at: int = 0, told: int = -1) -> int:
    """Start a stage in a fork, as Airflow's LocalExecutor does; its process id, which leads its group.

    Its group is killed just before write ``kill_at``, and which one that was written to ``told``.
    """
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        with Path(settings.data.parent / "stages.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            if kill_at:
                watch = Writes(settings.data)
                watch.kill_at(kill_at, told)
            stages.run_stage(settings, day, stage, force=True)
        code = 0
    except BaseException as error:
        os.write(2, f"{day} {stage}: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _kill(settings: Settings, day: date, stage: str, at: int) -> str | None:
    """Begin a stage that is killed at its write ``at``: what it was about to do, or None if it was done."""
    receiver, sender = os.pipe()
    child = _begin(settings, day, stage, at, sender)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return None
        assert os.WTERMSIG(status) == signal.SIGKILL
        return pipe.read().decode()


class Writes:
    """What this process and its forks do to names below a folder, as Python's audit events tell it.

    An event comes before what it tells of: opening a file to write, renaming, removing, a folder, a SQLite
    connection. What native code does (DuckDB's own files, Parquet's pages) lies between them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self._count = np.frombuffer(mmap.mmap(-1, 8), np.int64)  # shared with forks: dbt's process
        self._at = self._told = 0
        sys.addaudithook(self._hook)

    @property
    def count(self) -> int:
        return int(self._count[0])

    def reset(self) -> None:
        self._count[0] = 0

    def kill_at(self, number: int, told: int) -> None:
        self._at, self._told = number, told

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        path = os.path.abspath(arguments[0])  # noqa: PTH100 -- does not look at the disk
        if not path.startswith(self._folder):
            return
        self._count[0] += 1
        if self._count[0] == self._at:
            os.write(self._told, f"{event} {os.path.relpath(path, self._folder)}".encode())
            os.killpg(0, signal.SIGKILL)


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
            write_json_atomic(out / "writes.json", in_order(ways["in_order"], source, calendar))
            code = 0
        finally:
            os._exit(code)
    if _wait(child) != 0:
        raise RuntimeError("the days in order failed")
    killed(ways["killed"], source, calendar, read_json(out / "writes.json"), note)
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
        "compared": dict(Counter(KINDS.get(name.split()[0], name.split()[0]) for name in wanted)),
        "gates": {str(day): wanted[f"gate {day}"] for day in calendar},
        "kills": len(kills),
        "hits": sum(kill["killed_at"] is not None for kill in kills),
        "all_kills": kills,
        "left_over": _sweep(ways["killed"]),
    }
    write_json_atomic(out / "report.json", {**result, "states": states})
    return result


def _sweep(settings: Settings) -> dict[str, list[str]]:
    """Temporary files that the kills left, and what is left of them when `mtf keep` ran a day later."""
    root = settings.layout.root
    before = leftovers(root, timedelta())
    for path in before:
        for one in (path, *path.rglob("*")):
            os.utime(one, (0, 0))
    retention.keep(settings, retention.plan(settings))
    return {
        when: [str(path.relative_to(root)) for path in paths]
        for when, paths in (("killed", before), ("kept", leftovers(root, timedelta())))
    }


def report(result: dict[str, Any], command: str) -> str:
    kills = {(kill["stage"], kill["day"]): kill for kill in result["all_kills"]}
    left = result["left_over"]
    counted = "\n".join(f"- {kind}: {count}" for kind, count in result["compared"].items())

    def place(stage: str, day: str) -> str:
        kill = kills[stage, day]
        again = "" if kill["begun"] == 1 else f" (begun {kill['begun']} times)"
        return f"{kill['write']} of {kill['of']}: {_plain(kill['killed_at'])}{again}"

    differ = [f"| {way} | {', '.join(names) or 'none'} |" for way, names in result["differ"].items()]
    rows = [
        f"| {stage} | " + " | ".join(place(stage, day) for day in result["days"]) + " |"
        for stage in stages.DAY_STAGES
    ]
    return f"""\
# The same final tables

{header(provenance(command))}

{len(result["days"])} small days, three times over. In order; all landed first and then by `mtf backfill`;
and in order with every task of every day killed once by SIGKILL while it ran, and then run again. Then
everything that days leave is compared, bit for bit (the online store without the instants of writing):

{counted}

| way | things that differ from the days run in order |
|---|---|
{NEW_LINE.join(differ)}

What a later day changes of an earlier one is settled in all three: the look-back of the transform closes the
last sessions of a day once the next day has run. Compared are the tables after the last day.

{result["hits"]} of {result["kills"]} kills hit a running task. A task counts its own writes below the data
folder (files opened to write, renames, removals, folders, SQLite connections) and is killed, with all its
processes, just before one of them: the first, the last, or that at a quarter, half or three quarters of those
it made in order. A kill that found its task done is begun again with half the number.

| task | {" | ".join(result["days"])} |
|{"---|" * (len(result["days"]) + 1)}
{NEW_LINE.join(rows)}

They left {len(left["killed"])} temporary files and folders behind, under names with a dot that nothing
reads; `mtf keep`, with them a day older, left {len(left["kept"])} of them.
"""


NEW_LINE = "\n"


def _plain(event: str | None) -> str:
    """An event as a table shows it: without what is random in a temporary file's name."""
    return "none" if event is None else "`" + re.sub(r"\.[a-z0-9_]{8}(?=\.(tmp|new))", "", event) + "`"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/same_tables"))
    parser.add_argument(
        "--report",
        type=Path,
        help="Markdown, such as docs/results/same_tables.md; <out>/report.md by default",
    )
    parser.add_argument("--days", type=int, default=3)
    options = parser.parse_args()
    result = compare(options.out, options.days)
    path = options.report or options.out / "report.md"
    command = "python -m tests.end_to_end.same_tables"
    command += f" --out {options.out} --days {options.days} --report {path}"
    write_text_atomic(path, report(result, command))
    print(f"report: {path}")
    return 1 if any(result["differ"].values()) or result["hits"] < result["kills"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
