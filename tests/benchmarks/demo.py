"""`mtf demo` with the settings of `mtf.yaml`: what its champion is truly worth, and how long it takes.

python -m tests.benchmarks demo --logs ../shared/data/kuairand_pure

The synthetic world, with ``--seeds`` some more of them, each with users and luck of its own, and with ``--logs``
also the one that is fitted to KuaiRand's CSVs: each in a data folder of its own. Worlds are run one after another.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.day import DEMO, MTF, demo_file
from tests.benchmarks.publish import prose, table
from training.contract.files import read_json
from training.contract.settings import SETTINGS_VARIABLE, load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument(
        "--seeds", type=int, default=1, help="synthetic worlds, the first with mtf.yaml's seed"
    )
    parser.add_argument("--logs", type=Path, help="folder of KuaiRand's CSVs, for the world fitted to them")


def demo(days: int, world: dict[str, str], **top: Any) -> dict[str, Any]:
    """The ``summary.json`` of a demo."""
    with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder:
        file = demo_file(Path(folder), world, **top)
        environment = os.environ | {SETTINGS_VARIABLE: str(file)}
        subprocess.run([sys.executable, "-c", MTF, "demo", "--days", str(days)], env=environment, check=True)
        return read_json(load_settings(file).layout.summary)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    found = {"synthetic": demo(arguments.days, {})}
    first = load_settings(DEMO).seed
    for seed in range(first + 1, first + arguments.seeds):
        found[f"synthetic, seed {seed}"] = demo(arguments.days, {}, seed=seed)
    if arguments.logs:
        logs = str(arguments.logs.resolve())
        found["fitted to KuaiRand"] = demo(arguments.days, {"build": "kuairand", "logs": logs})
    return found


def tables(results: dict[str, Any]) -> str:
    def interval(value: dict[str, float]) -> str:
        return f"{value['mean']:.1f} ({value['lower']:.1f} to {value['upper']:.1f})"

    rows, gates = [], []
    for world, summary in results.items():
        truth, days = summary["truth"], summary["days"]
        # no truth: nothing was promoted before the last day
        told = [interval(truth[key]) for key in ("policy", "static", "difference")] if truth else ["–"] * 3
        served = [sum(day[key] or 0 for day in days.values()) for key in ("requests", "failures")]
        rows.append([world, *told, *served, f"{summary['wall_seconds']['total']:.0f} s"])
        gates += [[world, day, facts["gate"]["decision"]] for day, facts in days.items()]
    text = prose(
        "True session returns (eq. 2 of the paper, the settings' weights) of simulated sessions that the "
        "last day's champion and static weights rank with the same luck; intervals are 95 %, with users as "
        "clusters."
    )
    columns = ("world", "champion of the last day", "static weights", "difference", "requests", "failed")
    text += table((*columns, "wall time"), rows)
    return text + table(("world", "day", "the gate said"), gates)
