"""What a whole day of the demo takes, and how much of it is processes starting.

The demo's world and one of its days by Airflow (`mtf demo --days 1`), then the same day again, its model,
champion and Bento taken away: by `mtf day`, which is one process; with a process for each stage; and within a
process that has imported and run everything once, which is what the stages themselves take. What a way takes
beyond that is start: of interpreters, imports and, for Airflow, of tasks and their processes.

python -m tests.benchmarks day
"""

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import date, datetime
from pathlib import Path
from typing import Any

import yaml

from dags import stages
from serving.release.bento import free_port
from tests.benchmarks.publish import table
from training.contract.records import read_record
from training.contract.settings import SETTINGS_VARIABLE, Settings, load_settings

DEMO = Path(__file__).parents[2] / "mtf.yaml"
MTF = "from dags.command_line.main import run; run()"
STAGE = (
    "import sys; from datetime import date; from dags import stages; "
    "from training.contract.settings import load_settings; "
    "stages.run_stage(load_settings(), date.fromisoformat(sys.argv[1]), sys.argv[2], force=True)"
)
STAGES = (
    "import sys; from datetime import date; import dags.preload; from dags import stages\n"
    "from tests.benchmarks.day import reset; from training.contract.settings import load_settings\n"
    "settings, day = load_settings(), date.fromisoformat(sys.argv[1])\n"
    "for _ in range(2): reset(settings, day); stages.run_day(settings, day, force=True)"
)


def demo_file(folder: Path, world: dict[str, Any], **top: Any) -> Path:
    """The demo's settings with a data folder and ports of their own, ``world`` over its section and ``top``
    over what has none."""
    values = yaml.safe_load(DEMO.read_text()) | {"data": str(folder / "data")} | top
    values["world"] |= world
    values["serving"] |= {"port": free_port()}
    ports = {"airflow_port": free_port(), "mlflow_port": free_port()}
    values["orchestration"] = values.get("orchestration", {}) | ports
    file = folder / "mtf.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def wall(code: str, *arguments: str) -> float:
    """Seconds of a new process of this Python that runs some code; what it said when it failed."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.perf_counter() - began


def reset(settings: Settings, day: date) -> None:
    """As before the day was learnt from: else it would not train, build or promote again."""
    for folder in (settings.layout.model(day), settings.layout.bentos):
        shutil.rmtree(folder, ignore_errors=True)
    settings.layout.champion.unlink(missing_ok=True)


def by_airflow(settings: Settings, day: date) -> dict[str, float]:
    """From Airflow's database: from the first run's queueing to the last's end, and the tasks in between."""
    with closing(sqlite3.connect(settings.layout.airflow / "airflow.db")) as connection:
        runs = connection.execute(
            "select dag_id, run_id, queued_at, end_date from dag_run where partition_key = ?"
            " and dag_id <> 'mtf_traffic'",
            [str(day)],
        ).fetchall()
        tasks = connection.execute(
            "select dag_id, run_id, task_id, duration from task_instance where duration is not null"
        ).fetchall()
    known = {(dag, run) for dag, run, _, _ in runs}
    ran = {task: duration for dag, run, task, duration in tasks if (dag, run) in known}
    span = [[datetime.fromisoformat(run[n]) for run in runs] for n in (2, 3)]
    return {
        "wall_s": round((max(span[1]) - min(span[0])).total_seconds(), 1),
        "tasks_s": round(sum(ran.values()), 1),
        "stages_s": round(own(settings, day), 1),
    }


def own(settings: Settings, day: date, names: Sequence[str] = stages.DAY_STAGES) -> float:
    """Seconds of the stages, as their newest records have them."""
    return sum((read_record(settings.layout, day, name) or {})["seconds"] for name in names)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--past-days", type=int, default=3, help="simulated before the day (the demo: 8)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder:
        file = demo_file(Path(folder), {"past_days": arguments.past_days})
        os.environ[SETTINGS_VARIABLE] = str(file)
        settings = load_settings(file)
        day = date.fromisoformat(settings.world.start_day)
        wall(MTF, "demo", "--days", "1")
        found: dict[str, Any] = {"airflow": by_airflow(settings, day)}
        reset(settings, day)
        found["mtf day"] = {"wall_s": round(wall(MTF, "day", "--date", str(day), "--force"), 1)}
        reset(settings, day)
        each = {name: round(wall(STAGE, str(day), name), 1) for name in stages.DAY_STAGES}
        found["a process a stage"] = {"wall_s": round(sum(each.values()), 1), "by_stage": each}
        wall(STAGES, str(day))
        found["stages_s"] = round(own(settings, day), 1)
        found["by_stage"] = {name: own(settings, day, [name]) for name in stages.DAY_STAGES}
    for way in ("airflow", "mtf day", "a process a stage"):
        took = found[way]["wall_s"]
        found[way]["start_share"] = round(1 - found["stages_s"] / took, 3)
        print(f"{way:20s} {took:7.1f} s, of which the stages {found['stages_s']:.1f} s", flush=True)
    return found


def tables(results: dict[str, Any]) -> str:
    text = (
        f"The stages themselves, in a process that has run everything once: {results['stages_s']:.1f} s.\n\n"
    )
    ways = {name: results[name] for name in ("a process a stage", "mtf day", "airflow")}
    text += table(
        ("way", "wall s", "beyond the stages"),
        ([name, way["wall_s"], f"{way['start_share']:.0%}"] for name, way in ways.items()),
    )
    airflow = results["airflow"]
    text += f"Of Airflow's wall its tasks take {airflow['tasks_s']:.1f} s, and the stages within these "
    text += f"{airflow['stages_s']:.1f} s.\n\n"
    alone = results["a process a stage"]["by_stage"]
    return text + table(
        ("stage", "s", "as a process of its own, s"),
        ([name, round(s, 2), alone[name]] for name, s in results["by_stage"].items()),
    )
