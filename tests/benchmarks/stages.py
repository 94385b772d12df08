"""Rows a second through each stage of a day, beside the floor: DuckDB scanning the same Parquet.

The dbt build is also held against its own SQL run straight in DuckDB.

python -m tests.benchmarks stages --impressions 100000 1000000 5000000
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from graphlib import TopologicalSorter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings

DAY = date(2026, 1, 5)
PAGE, REQUESTS_A_SESSION = 6, 8
BESIDE = ("same SQL in DuckDB", "floor")  # no stages: what they are held against


def day_of_logs(settings: Settings, impressions: int) -> tuple[pa.Table, pa.Table]:
    """Impressions and decisions of one day: random feedback, states and actions, whole sessions."""
    rng = np.random.default_rng(settings.seed)
    requests = impressions // PAGE
    session = np.arange(requests) // REQUESTS_A_SESSION
    step = np.arange(requests) % REQUESTS_A_SESSION
    start = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC) - timedelta(
        hours=settings.calendar.utc_offset_hours
    )
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
        return pa.array(list(values), pa.list_(pa.float32()))

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


def measure(impressions: int, folder: Path) -> dict:
    """Seconds and rows a second of every stage at one size, imports left out."""
    import training.features
    import training.validation.data_docs
    from training import trajectories, transform, validation
    from training.ingest import land

    settings = Settings(data=folder, learner={"mixed_exploration": True, "replay_capacity": 10_000_000})
    shown, decisions = day_of_logs(settings, impressions)
    training.features.apply(settings)
    stages: dict[str, Callable[[], object]] = {
        "land": lambda: (
            land(settings, IMPRESSIONS, DAY, shown, "bench"),
            land(settings, DECISIONS, DAY, decisions, "bench"),
        ),
        "validate_landed": lambda: validation.validate_landed(settings, DAY),
        "transform": lambda: transform.run(settings, DAY),
        "validate_transitions": lambda: validation.validate_transitions(settings, DAY),
        "materialise": lambda: training.features.materialise(settings, DAY),
        "trajectories": lambda: trajectories.load(settings, DAY),
        "same SQL in DuckDB": lambda: same_sql(settings),
        "floor": lambda: scan(settings),
    }
    seconds = {}
    for name, run in stages.items():
        started = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - started
        print(f"{impressions:>9,} impressions  {name:22s} {seconds[name]:8.2f} s", flush=True)
    total = sum(value for name, value in seconds.items() if name not in BESIDE)
    return {
        "impressions": impressions,
        "dbt_times_same_sql": round(seconds["transform"] / seconds["same SQL in DuckDB"], 2),
        "stages": {
            name: {
                "seconds": round(value, 3),
                "rows_per_second": round(impressions / value),
                "share": round(value / total, 4) if name not in BESIDE else None,
                "times_floor": round(value / seconds["floor"], 1),
            }
            for name, value in seconds.items()
        },
    }


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


def scan(settings: Settings) -> None:
    """The floor: read every column of the day's impressions and decisions once, joined by request."""
    impressions = settings.layout.partition(IMPRESSIONS, DAY) / "part-0.parquet"
    decisions = settings.layout.partition(DECISIONS, DAY) / "part-0.parquet"
    query = f"""
        select count(*), max(hash(columns(*))) from read_parquet('{impressions}') i
        join read_parquet('{decisions}') d on i.request_id = d.request_id
    """  # noqa: S608
    with duckdb.connect() as connection:
        connection.sql(query).fetchall()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--impressions", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])


def run(arguments: argparse.Namespace) -> list[dict]:
    results = []
    for count in arguments.impressions:
        with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder:
            results.append(measure(count, Path(folder)))
    return results
