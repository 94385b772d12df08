"""Rows a second through each stage of a day, beside the floor of each: DuckDB scanning the bytes it reads.

A floor reads every column of the Parquet files that its stage reads, and joins them where the stage does.
The dbt build is also held against its own SQL run straight in DuckDB. The start of a stage is the time of
a new process that imports what the stage uses, which is what a task would pay that is no fork of a
process that has imported it (``dags/preload.py``).

python -m tests.benchmarks stages --impressions 1000000 5000000 20000000
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from graphlib import TopologicalSorter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from tests.benchmarks.publish import prose, table
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings

DAY = date(2026, 1, 5)
PAGE, REQUESTS_A_SESSION = 6, 8
# what a stage reads, joined by the key when it reads two tables: lake tables and marts
READS: dict[str, tuple[tuple[str, ...], str]] = {
    "land": ((IMPRESSIONS, DECISIONS), "request_id"),
    "validate_landed": ((IMPRESSIONS, DECISIONS), "request_id"),
    "transform": ((IMPRESSIONS, DECISIONS), "request_id"),
    "validate_transitions": (("fct_transitions",), ""),
    "materialise": (("fct_user_history",), ""),
    "trajectories": (("fct_transitions", DECISIONS), "request_id"),
}
IMPORTS = {
    "land": "training.ingest",
    "validate_landed": "training.validation.data_docs, great_expectations",
    "transform": "training.warehouse.transform, dbt.cli.main, dbt.adapters.duckdb",
    "validate_transitions": "training.validation.data_docs, great_expectations",
    "materialise": "training.features, feature_repo.materialisation",
    "trajectories": "training.trajectories, torch",
}


def day_of_logs(settings: Settings, impressions: int) -> tuple[pa.Table, pa.Table]:
    """Impressions and decisions of one day: random feedback, states and actions, whole sessions."""
    rng = np.random.default_rng(settings.seed)
    requests = impressions // PAGE
    session = np.arange(requests) // REQUESTS_A_SESSION
    step = np.arange(requests) % REQUESTS_A_SESSION
    start = settings.day_start(DAY)
    offsets = (session % 80_000) + step * 60
    stamps = np.datetime64(start.replace(tzinfo=None), "us") + offsets.astype("timedelta64[s]")
    times = pa.array(stamps).cast(pa.timestamp("us", "UTC"))
    names = [f"r{n}" for n in range(requests)]
    sessions = [f"s{n}" for n in session]
    users = pa.array(session.astype(np.int64))
    k, width = len(settings.heads), settings.state_spec.width
    actions = rng.uniform(-1, 1, (requests, k)).astype(np.float32)
    arms = np.where(session % 2 == 0, "random", "noise")

    def lists(values: np.ndarray) -> pa.Array:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))

    decisions = pa.table(
        {
            "request_id": names,
            "session_id": sessions,
            "user_id": users,
            "event_ts": times,
            "policy_version": ["static"] * requests,
            "arm": arms,
            "state": lists(rng.normal(size=(requests, width)).astype(np.float32)),
            "action": lists(actions),
            "action_mean": lists(actions),
            "log_density": np.zeros(requests),
            "fallback": pa.nulls(requests, pa.string()),
            "state_spec": [settings.state_spec.version] * requests,
        }
    )
    repeat = np.repeat(np.arange(requests), PAGE)
    rows = len(repeat)
    shown = {
        "request_id": pa.array(names).take(repeat),
        "session_id": pa.array(sessions).take(repeat),
        "user_id": users.take(repeat),
        "item_id": pa.array(np.arange(rows, dtype=np.int64)),
        "event_ts": times.take(repeat),
        "feedback_ts": times.take(repeat),
        "position": pa.array(np.tile(np.arange(PAGE, dtype=np.int32), requests)),
        **{f"p_{h.name}": pa.array(rng.random(rows, dtype=np.float32)) for h in settings.heads},
        **{s.column: pa.array((rng.random(rows) < 0.2).astype(np.int8)) for s in settings.signals},
        "play_time_ms": pa.array(rng.integers(0, 60_000, rows)),
        "duration_ms": pa.array(rng.integers(5_000, 120_000, rows)),
    }
    return pa.table(shown), decisions


def measure(impressions: int, folder: Path, starts: dict[str, tuple[float, float]]) -> dict:
    """Seconds and rows a second of every stage at one size, imports left out, and the floor of each."""
    import training.features
    import training.validation.data_docs
    from training import trajectories
    from training.ingest import land
    from training.validation import stages as validation
    from training.warehouse import transform

    settings = Settings(data=folder, learner={"mixed_exploration": True, "replay_capacity": 10_000_000})
    shown, decisions = day_of_logs(settings, impressions)
    training.features.apply(settings)

    def landing() -> None:
        nonlocal shown, decisions
        land(settings, IMPRESSIONS, DAY, shown, "bench")
        land(settings, DECISIONS, DAY, decisions, "bench")
        shown = decisions = None  # gigabytes that no later stage holds

    stages: dict[str, Callable[[], object]] = {
        "land": landing,
        "validate_landed": lambda: validation.validate_landed(settings, DAY),
        "transform": lambda: transform.run(settings, DAY),
        "validate_transitions": lambda: validation.validate_transitions(settings, DAY),
        "materialise": lambda: training.features.materialise(settings, DAY),
        "trajectories": lambda: trajectories.load(settings, DAY),
    }
    seconds = {}
    results = {}
    for name, run in stages.items():
        seconds[name], cpu = timed(run)
        results[name] = {
            "seconds": round(seconds[name], 3),
            "cpu_seconds": round(cpu, 3),
            "rows_per_second": round(impressions / seconds[name]),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        print(f"{impressions:>10,} impressions  {name:22s} {seconds[name]:8.2f} s", flush=True)
    for name, result in results.items():
        tables, key = READS[name]
        floor, cpu = timed(lambda tables=tables, key=key: scan(settings, tables, key))
        result["floor_seconds"] = round(floor, 3)
        result["times_floor"] = round(seconds[name] / floor, 1)
        result["times_floor_cpu"] = round(result["cpu_seconds"] / cpu, 1)
    sql, sql_cpu = timed(lambda: same_sql(settings))
    total = sum(seconds.values())
    cpu_total = sum(result["cpu_seconds"] for result in results.values())
    start, start_cpu = (sum(times) for times in zip(*starts.values(), strict=True))
    for name, result in results.items():
        result["share"] = round(seconds[name] / total, 4)
    return {
        "impressions": impressions,
        "same_sql": {"seconds": round(sql, 3), "cpu_seconds": round(sql_cpu, 3)},
        "dbt_times_same_sql": round(seconds["transform"] / sql, 2),
        "start": {
            "seconds": {name: round(wall, 2) for name, (wall, _) in starts.items()},
            "cpu_seconds": {name: round(cpu, 2) for name, (_, cpu) in starts.items()},
            "share": round(start / (start + total), 4),
            "share_cpu": round(start_cpu / (start_cpu + cpu_total), 4),
        },
        "stages": results,
    }


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, and processor seconds of this process and its children."""
    wall, cpu = time.perf_counter(), spent()
    run()
    return time.perf_counter() - wall, spent() - cpu


def spent() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def start_seconds() -> dict[str, tuple[float, float]]:
    """Wall and processor seconds of a new process that imports what a stage uses."""

    def start(modules: str) -> tuple[float, float]:
        command = [sys.executable, "-c", f"import {modules}"]
        return timed(lambda: subprocess.run(command, check=True, capture_output=True))

    once = {modules: start(modules) for modules in dict.fromkeys(IMPORTS.values())}
    return {name: once[modules] for name, modules in IMPORTS.items()}


def same_sql(settings: Settings) -> None:
    """dbt's models as it compiled them, straight in a new DuckDB: no tests, no exports, no dbt.

    Raises ``AssertionError`` when a table has not the rows that dbt's has.
    """
    manifest = json.loads((settings.layout.dbt_target / "manifest.json").read_text())
    models = {name: node for name, node in manifest["nodes"].items() if node["resource_type"] == "model"}
    needs = {name: [n for n in node["depends_on"]["nodes"] if n in models] for name, node in models.items()}
    tables = []
    with (
        tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder,
        # of the same name: dbt's relations carry it
        duckdb.connect(str(Path(folder) / settings.layout.warehouse.name)) as connection,
    ):
        for name in TopologicalSorter(needs).static_order():
            node = models[name]
            kind = "view" if node["config"]["materialized"] == "view" else "table"
            if kind == "table":
                tables.append(node["relation_name"])
            connection.execute(f"create {kind} {node['relation_name']} as {node['compiled_code']}")
        ours = rows_of(connection, tables)
    with duckdb.connect(str(settings.layout.warehouse), read_only=True) as connection:
        assert ours == rows_of(connection, tables)


def rows_of(connection: duckdb.DuckDBPyConnection, tables: list[str]) -> list[int]:
    return [connection.sql(f"select count(*) from {table}").fetchall()[0][0] for table in tables]  # noqa: S608


def scan(settings: Settings, tables: tuple[str, ...], key: str) -> None:
    """The floor: read every column of the day's files of some tables once, joined by a key."""
    layout = settings.layout
    folders = [
        layout.partition(name, DAY) if name in (IMPRESSIONS, DECISIONS) else layout.mart(name) / f"dt={DAY}"
        for name in tables
    ]
    first, *others = (f"read_parquet('{folder / 'part-0.parquet'}')" for folder in folders)
    joins = "".join(f" join {other} as other on one.{key} = other.{key}" for other in others)
    with duckdb.connect() as connection:
        connection.sql(f"select count(*), max(hash(columns(*))) from {first} as one{joins}").fetchall()  # noqa: S608


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--impressions", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])


def run(arguments: argparse.Namespace) -> list[dict]:
    results = []
    starts = start_seconds()
    for count in arguments.impressions:
        with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder:
            results.append(measure(count, Path(folder), starts))
    return results


def tables(results: list[dict]) -> str:
    text = prose(
        "Seconds are those of one process that has imported everything. The floor of a stage is DuckDB "
        "reading every column of the Parquet that it reads; *dbt's SQL alone* is what dbt compiled, without "
        "its tests and exports."
    )
    columns = ("impressions", "stage", "wall s", "CPU s", "rows a second", "share of the wall", "floor s")
    rows: list[list] = []
    for one in results:
        size, stages = f"{one['impressions'] / 1e6:g} M", one["stages"]
        for name, stage in stages.items():
            seconds, share = stage["seconds"], f"{stage['share']:.0%}"
            own = [name, seconds, stage["cpu_seconds"], stage["rows_per_second"], share]
            rows.append([size, *own, stage["floor_seconds"], stage["times_floor"], stage["peak_mb"]])
        wall, cpu = (sum(stage[key] for stage in stages.values()) for key in ("seconds", "cpu_seconds"))
        sql = one["same_sql"]
        rows += [
            [size, "*dbt's SQL alone*", sql["seconds"], sql["cpu_seconds"], *[None] * 5],
            [size, "**all stages**", wall, cpu, round(one["impressions"] / wall), *[None] * 4],
        ]
    text += table((*columns, "times its floor", "peak MB"), rows)
    start = results[0]["start"]
    text += "A new process that imports what a stage uses:\n\n"
    text += table(
        ("stage", "wall s", "CPU s"),
        ([name, wall, start["cpu_seconds"][name]] for name, wall in start["seconds"].items()),
    )
    text += "If every stage were a process of its own, the imports would be this share of the wall:\n\n"
    return text + table(
        ("impressions", "share"), ([one["impressions"], f"{one['start']['share']:.0%}"] for one in results)
    )
