"""The model of session returns on 0.1 to 100 million transitions: seconds and memory, here and on Spark.

Exports of days of 333,333 requests as the transform writes them, in the columns that are read: sessions of
14 requests on average that hold one deviation, many at a time and some over midnight; states as wide as the
default ones, eight weights. A way is a process of its own: counts, sums of every entry, sums of the traits,
and the fits. Beside it the floors, in the same process: reading the columns' bytes, and BLAS's product of as
many rows that lie in memory.

100 million are the days of 10 million three hundred times over, as links to thirty files.

python -m tests.benchmarks returns --spark 1000000 10000000
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.benchmarks.engines import Watched
from tests.benchmarks.learner import child
from tests.benchmarks.publish import prose, table
from training import returns
from training.contract.settings import Settings, SparkSettings, WarehouseSettings
from training.contract.sums import S
from training.contract.transitions import MART
from training.policies.retrain import reproducible
from training.trajectories.shares import Share, WindowLog
from training.warehouse.sums import adding_up

LAST = date(2026, 1, 7)
DAY, SESSION, GAP_S = 333_333, 14.0, 40.0  # requests of a day, of a session, seconds from one to the next
DISTINCT = 30  # days; more are links to these
ROW_GROUP = 122_880  # DuckDB's
RANK = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--request-rows", type=int, nargs="*", default=[100_000], help="deviation a request")
    parser.add_argument("--spark", type=int, nargs="*", default=[], help="rows; needs `make scale`")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])


def settings(folder: Path, days: int, threads: int = 1, spark: bool = False) -> Settings:
    bare = Settings(data=folder)
    warehouse = WarehouseSettings(engine="spark" if spark else "duckdb", spark=SparkSettings())
    learner = bare.learner.model_copy(update={"window_days": days, "threads": threads})
    return bare.model_copy(update={"learner": learner, "warehouse": warehouse})


def write(folder: Path, rows: int, unit: str) -> int:
    """Exports of so many requests; the number of days."""
    days = max(3, round(rows / DAY))
    made = settings(folder, days)
    for number in range(days):
        path = made.layout.mart(MART) / f"dt={LAST - timedelta(days=days - 1 - number)}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        if number < DISTINCT:
            _write_day(made, path, number, rows // days, unit)
            continue
        first = LAST - timedelta(days=days - 1 - number % DISTINCT)
        os.link(path.parents[1] / f"dt={first}" / path.name, path)
    return days


def _write_day(made: Settings, path: Path, number: int, rows: int, unit: str) -> None:
    """Days differ in all but who comes when: what is over midnight goes on at the next day's begin."""
    same, rng = np.random.default_rng(0), np.random.default_rng(number + 1)
    lengths = same.geometric(1.0 / SESSION, round(1.5 * rows / SESSION))
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), rows))]
    session = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(session)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = same.uniform(0.0, 86_400.0, len(lengths))[session] + GAP_S * step
    last = step == lengths[session] - 1
    if number == 0:
        there = at < 86_400.0
        session, step, at, last = session[there], step[there], at[there], last[there]
    # the days before have gone on to this one
    whose = np.where(at < 86_400.0, number, number - 1)
    order = np.argsort(at % 86_400.0, kind="stable")
    session, step, last, whose, stamps = (x[order] for x in (session, step, last, whose, at % 86_400.0))
    n, d, k = len(order), made.state_spec.width, len(made.heads)
    held = rng.uniform(-1.0, 1.0, (len(lengths), k))[session].astype(np.float32)
    actions = held if unit == "session" else rng.uniform(-1.0, 1.0, (n, k)).astype(np.float32)
    writer = None
    for low in range(0, n, ROW_GROUP):
        own = slice(low, min(low + ROW_GROUP, n))
        states = rng.standard_normal((own.stop - own.start, d), dtype=np.float32)
        reward = 0.3 + actions[own, 0] * (0.1 + 0.1 * states[:, 0]) + rng.normal(0.0, 1.0, len(states))
        names = [pa.array(x[own]).cast(pa.string()) for x in (whose, session, step)]
        micros = made.day_start(LAST).timestamp() * 1e6 + (number * 86_400.0 + stamps[own]) * 1e6
        rows_of = pa.table(
            {
                "request_id": pc.binary_join_element_wise(*names, "-"),
                "session_id": pc.binary_join_element_wise("a-session-of", *names[:2], "-"),
                "user_id": session[own] * 7 % 1_000_003,
                "event_ts": pa.array(micros.astype(np.int64)).cast(pa.timestamp("us", "UTC")),
                "step": step[own].astype(np.int32),
                "done": last[own],
                "truncated": np.zeros(len(states), dtype=bool),
                "state_spec": pa.array([made.state_spec.version] * len(states)),
                "state": _lists(states),
                "action": _lists(actions[own]),
                "log_density": np.full(len(states), -k * np.log(2.0)),
                "exploration_unit": pa.array([unit] * len(states)),
                "reward": reward,
                "watch_reward": 0.5 * reward,
            }
        )
        writer = writer or pq.ParquetWriter(path, rows_of.schema, compression="zstd")
        writer.write_table(rows_of)
    writer.close()


def _lists(values: np.ndarray) -> pa.Array:
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))


class Timed:
    """The sums of another, with the seconds of each."""

    def __init__(self, add_up: Callable[..., Any]) -> None:
        self._add_up, self.seconds = add_up, []

    def __call__(self, work: Callable[[Share], S], items: Sequence[Share]) -> S:
        begin = time.perf_counter()
        found = self._add_up(work, items)
        self.seconds.append(time.perf_counter() - begin)
        return found


def learn(folder: str, days: int, threads: int, spark: bool) -> dict[str, Any]:
    """In this process, or by Spark that it starts; of a window of some days."""
    made, found = settings(Path(folder), days, threads, spark), {}

    def work() -> None:
        with reproducible(1), adding_up(made) as add_up:
            timed = Timed(add_up)
            begin = time.perf_counter()
            window = WindowLog(made, LAST, timed)
            model, parts = returns.learn_parts(made.fusion, window, 1.0, RANK)
            found["seconds"] = time.perf_counter() - begin
            found["sums_s"] = list(timed.seconds)
        found.update(rows=float(parts.whole.rows.sum()), theta=model.theta.tolist())
        found["widths"] = [returns.Features(made.fusion, made.state_spec.width).width, model.features.width]

    before = psutil.Process().memory_info().rss
    watched = Watched().run(work)
    found |= {"cpu_s": watched["cpu_seconds"], "peak_gb": watched["peak_gb"], "begin_gb": before / 1e9}
    if not spark:
        with reproducible(1):
            found |= floors(made, days, found["rows"], found["widths"])
    return found


def floors(made: Settings, days: int, rows: float, widths: list[int]) -> dict[str, float]:
    """The processor's seconds on one core: of the products of as many rows of both widths, in memory, and of
    reading all columns once; and what these are of."""
    blas_s = flops = 0.0
    for width in widths:
        z = np.random.default_rng(0).normal(size=(4_096, width))
        z.T @ z
        begin = time.process_time()
        for _ in range(5):
            z.T @ z
        blas_s += (time.process_time() - begin) / 5 / len(z) * rows
        flops += rows * width * (width + 1)  # of a symmetric product
    paths = [
        made.layout.mart(MART) / f"dt={LAST - timedelta(days=back)}" / "part-0.parquet"
        for back in range(days)
    ]
    size, some = sum(path.stat().st_size for path in paths), paths[:3]
    begin = time.process_time()
    for path in some:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, use_threads=False)
    read_s = (time.process_time() - begin) / sum(path.stat().st_size for path in some) * size
    return {"blas_cpu_s": blas_s, "gflop": flops / 1e9, "read_cpu_s": read_s, "bytes": float(size)}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = [("session", rows) for rows in arguments.rows]
    asked += [("request", rows) for rows in arguments.request_rows]
    results: dict[str, Any] = {"logs": []}
    for unit, rows in asked:
        with tempfile.TemporaryDirectory(prefix="mtf-bench-", dir=os.environ.get("TMPDIR")) as folder:
            days = write(Path(folder), rows, unit)
            ways = [(f"{threads} threads", threads, False) for threads in arguments.threads]
            ways += [("Spark local[2]", 1, True)] if unit == "session" and rows in arguments.spark else []
            thetas = []
            for name, threads, spark in ways:
                found = child("tests.benchmarks.returns", "learn", folder, days, threads, spark)
                thetas.append(np.array(found.pop("theta")))
                found["off"] = float(np.abs(thetas[-1] - thetas[0]).max() / np.abs(thetas[0]).max())
                one = {"transitions": rows, "unit": unit, "days": days, "way": name, **found}
                one["load"] = psutil.getloadavg()[0]
                results["logs"].append(one)
                print(one, flush=True)
    return results


def tables(results: dict[str, Any]) -> str:
    text = prose(
        "Seconds of a night's model of session returns, both parts of the reward: the passes that count, sum "
        "every entry and sum the traits, then the fits. The processor's seconds and the most memory are of "
        "all processes, the JVM with Spark, and all that a process imports. The floors are the processor's "
        "seconds, too, in the same process: reading all the columns once (the passes read the states twice), "
        "and BLAS's symmetric products alone, of as many rows as the model takes and of both widths. Files "
        "are in the page cache. Load is the machine's average over the minute before the end: where it is "
        "above its cores, the processor's seconds say more than seconds."
    )
    rows = []
    for one in results["logs"]:
        passes = " + ".join(f"{s:.1f}" for s in one["sums_s"]) or "read once"
        floor = (f"{one['read_cpu_s']:.1f}", f"{one['blas_cpu_s']:.1f}") if "bytes" in one else ("", "")
        rows.append(
            [
                f"{one['transitions'] / 1e6:g} M, a deviation a {one['unit']}",
                one["way"],
                f"{one['rows']:,.0f}",
                f"{one['seconds']:.1f}",
                passes,
                f"{one['cpu_s']:.1f}",
                *floor,
                f"{one['peak_gb']:.2f}",
                f"{one['off']:.0e}" if one["off"] else "same",
                f"{one['load']:.1f}",
            ]
        )
    columns = ("transitions", "where", "rows", "s", "of these sums", "processor s", "floor: reading, s")
    columns += ("floor: BLAS, s", "most memory, GB", "θ against the first", "load")
    sizes = {
        one["transitions"]: one for one in results["logs"] if "bytes" in one and one["unit"] == "session"
    }
    told = "; ".join(
        f"{rows / 1e6:g} M: {one['bytes'] / 1e9:.2f} GB, {one['days']} days, {one['gflop'] / 1e3:.2f} TFLOP"
        for rows, one in sorted(sizes.items())
    )
    return text + table(columns, rows) + prose(f"Files and products. {told}.")
