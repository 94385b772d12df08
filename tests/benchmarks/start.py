"""What dbt's start takes of a small day: as a process of its own, and as the fork that the day uses.

python -m tests.benchmarks start

CPU seconds (user and system, of the process and its children), which other programs on the machine change
less than they change the wall's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.publish import table
from tests.benchmarks.stages import DAY, day_of_logs, spent
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings
from training.ingest import land
from training.warehouse import transform


def measure(work: Callable[[], object], repeats: int) -> dict:
    """Least CPU seconds of some repeats, and the wall seconds beside it."""
    seconds = []
    for _ in range(repeats):
        cpu, wall = spent(), time.perf_counter()
        work()
        seconds.append((spent() - cpu, time.perf_counter() - wall))
    cpu, wall = min(seconds)
    return {"cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2)}


def of_its_own(settings: Settings, command: list[str]) -> None:
    """The project that the day left, by dbt's own command line."""
    target = settings.layout.dbt_target
    variables = {**transform._model_variables(settings), "landed": [IMPRESSIONS, DECISIONS]}
    environment = {
        **os.environ,
        "MTF_LAKE": str(settings.layout.root / "lake"),
        "MTF_WAREHOUSE": str(settings.layout.warehouse),
        "MTF_FIRST_DAY": str(DAY),
        "MTF_LAST_DAY": str(DAY),
        "MTF_LOOK_BACK_DAY": str(DAY),
        "MTF_HORIZON_DAY": str(DAY),
    }
    project = str(target / "project")
    subprocess.run(
        [
            *(sys.executable, "-m", "dbt.cli.main", *command, "--project-dir", project),
            *("--profiles-dir", project, "--target-path", str(target), "--vars", json.dumps(variables)),
        ],
        env=environment,
        cwd=target,
        check=True,
        capture_output=True,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3)


def run(arguments: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder:
        settings = Settings(data=Path(folder))
        for table, rows in zip((IMPRESSIONS, DECISIONS), day_of_logs(settings, 6_000), strict=True):
            land(settings, table, DAY, rows, "bench")
        transform.run(settings, DAY)  # parses the project, and imports dbt here
        build = ["build", "--exclude-resource-type", "unit_test"]
        works = {
            "import, a process of its own": lambda: subprocess.run(
                [sys.executable, "-c", "import dbt.cli.main, dbt.adapters.duckdb"], check=True
            ),
            "parse, a process of its own": lambda: of_its_own(settings, ["parse"]),
            "build, a process of its own": lambda: of_its_own(settings, build),
            "transform, a fork": lambda: transform.run(settings, DAY),
        }
        results = {name: measure(work, arguments.repeats) for name, work in works.items()}
    for name, result in results.items():
        print(f"{name:40s} {result['cpu_seconds']:6.2f} s CPU  {result['wall_seconds']:6.2f} s", flush=True)
    return results


def tables(results: dict) -> str:
    return table(
        ("", "CPU s", "wall s"),
        ([name, one["cpu_seconds"], one["wall_seconds"]] for name, one in results.items()),
    )
