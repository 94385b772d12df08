"""Benchmarks, each written as JSON: `python -m tests.benchmarks [NAME [options]] [--out FOLDER]`.

A module named here has ``add_arguments(parser)`` and ``run(arguments)``, whose answer is the results.
"""

import argparse
import os
import platform
from pathlib import Path

from tests.benchmarks import day, faults, learner, materialise, scale, stages, start
from training.contract.files import write_json_atomic

BENCHMARKS = {
    "stages": stages,
    "materialise": materialise,
    "learner": learner,
    "scale": scale,
    "faults": faults,
    "start": start,
    "day": day,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    names = parser.add_subparsers(dest="name", help="which; all of them without a name")
    for name, module in BENCHMARKS.items():
        one = names.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(one)
    arguments = parser.parse_args()
    for name in [arguments.name] if arguments.name else list(BENCHMARKS):
        own = arguments if arguments.name else parser.parse_args([name])
        results = BENCHMARKS[name].run(own)
        machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
        write_json_atomic(arguments.out / f"{name}.json", {"machine": machine, "results": results})
        print(f"wrote {arguments.out / name}.json")


if __name__ == "__main__":
    main()
