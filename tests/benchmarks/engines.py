"""The transform of one day on DuckDB and on Spark, and whether every table is the same bit for bit.

Seconds, processor seconds and the most memory of all processes (dbt's, and the JVM) while the day's transform
runs: models, data tests and exports. Needs `make scale`.

python -m tests.benchmarks engines --impressions 1000000
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.benchmarks.publish import prose, table
from tests.benchmarks.stages import DAY, day_of_logs
from tests.dbt_project.same_marts import differences
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings, SparkSettings, WarehouseSettings
from training.ingest import land
from training.warehouse import transform

_EVERY_S = 0.2


class Watched:
    """Memory and processor time of this process and all below it, read again and again while they work.

    A JVM is no child that this process waits for, so the kernel's sums over children lack it.
    """

    def __init__(self) -> None:
        self._cpu: dict[int, float] = {}
        self._most = 0
        self._over = threading.Event()

    def run(self, work: Callable[[], object]) -> dict[str, float]:
        self._look()
        before, begin = dict(self._cpu), time.perf_counter()
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            work()
        finally:
            seconds = time.perf_counter() - begin
            self._over.set()
            watcher.join()
        cpu = sum(spent - before.get(pid, 0.0) for pid, spent in self._cpu.items())
        return {
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "peak_gb": round(self._most / 1e9, 2),
        }

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._look()
        self._look()

    def _look(self) -> None:
        this, resident = psutil.Process(), 0
        for process in (this, *this.children(recursive=True)):
            try:
                resident += process.memory_info().rss
                self._cpu[process.pid] = sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        self._most = max(self._most, resident)


def measure(impressions: int, folder: Path, spark: SparkSettings) -> dict:
    duckdb = Settings(data=folder / "duckdb")
    on_spark = Settings(data=folder / "spark", warehouse=WarehouseSettings(engine="spark", spark=spark))
    shown, decisions = day_of_logs(duckdb, impressions)
    for settings in (duckdb, on_spark):
        land(settings, IMPRESSIONS, DAY, shown, "bench")
        land(settings, DECISIONS, DAY, decisions, "bench")
    del shown, decisions
    found: dict = {"impressions": impressions}
    for name, settings in (("duckdb", duckdb), ("spark", on_spark)):
        found[name] = Watched().run(lambda settings=settings: transform.run(settings, DAY))
        print(f"{impressions:>10,} impressions  {name:7s} {found[name]}", flush=True)
    found["differences"] = differences(duckdb, on_spark)
    print("\n".join(found["differences"]) or "every table is the same", flush=True)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--impressions", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--memory", default="4g")


def run(arguments: argparse.Namespace) -> dict:
    spark = SparkSettings(master=arguments.master, memory=arguments.memory)
    results = []
    for impressions in arguments.impressions:
        with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder:
            results.append(measure(impressions, Path(folder), spark))
    load = psutil.getloadavg()[0]
    return {"master": arguments.master, "memory": arguments.memory, "load": round(load, 1), "sizes": results}


def tables(results: dict) -> str:
    text = prose(
        f"One day's transform: models, data tests, exports. Spark is `{results['master']}` with "
        f"{results['memory']} in a session of dbt's own. The machine's load at the end was "
        f"{results['load']}: where it is above its cores, processor seconds say more than seconds."
    )
    rows = [
        (one["impressions"], engine, *(one[engine][key] for key in ("seconds", "cpu_seconds", "peak_gb")))
        for one in results["sizes"]
        for engine in ("duckdb", "spark")
    ]
    text += table(("impressions", "engine", "s", "processor s", "most memory, GB"), rows)
    differ = [line for one in results["sizes"] for line in one["differences"]]
    said = "All tables are the same bit for bit." if not differ else "Differences: " + "; ".join(differ)
    return text + prose(said)
