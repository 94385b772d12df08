"""Benchmarks: `python -m tests.benchmarks [NAME [options]] [--out FOLDER] [--publish]`.

A module named here has ``add_arguments(parser)`` and ``run(arguments)``, whose answer is the results; where
it has ``tables(results)``, that is what its page shows.
"""

import argparse

from tests.benchmarks import (
    canary,
    day,
    demo,
    engines,
    faults,
    learner,
    log_information,
    materialise,
    nights,
    outside,
    publish,
    request_index,
    returns,
    scale,
    stages,
    start,
    world,
)

BENCHMARKS = {
    "stages": (stages, "Rows a second through the stages of a day"),
    "materialise": (materialise, "Materialising users into the online store"),
    "learner": (learner, "Training steps of BatchRL-MTF"),
    "scale": (scale, "Learning from large logs"),
    "returns": (returns, "The model of session returns on large logs"),
    "faults": (faults, "Faults under load"),
    "start": (start, "dbt's start"),
    "canary": (canary, "What a canary decides"),
    "nights": (nights, "No harm: many nights of many worlds"),
    "outside": (outside, "Outside: users of RecSim's"),
    "day": (day, "A whole small day"),
    "world": (world, "The worth of weights in the simulated world"),
    "log_information": (log_information, "What a log of exploration holds about the long run"),
    "request_index": (request_index, "The index of requests, in a file and in Redis"),
    "demo": (demo, "The demo"),
    "engines": (engines, "The warehouse on DuckDB and on Spark"),
}
BY_NAME = ("nights", "outside", "engines")  # they take hours, or what `make scale` installs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    publish.add_options(parser)
    parser.set_defaults(**publish.DEFAULTS)
    names = parser.add_subparsers(
        dest="name", help="which; without a name all but nights, outside and engines"
    )
    for name, (module, title) in BENCHMARKS.items():
        one = names.add_parser(name, help=title)
        publish.add_options(one)
        module.add_arguments(one)
    arguments = parser.parse_args()
    for name in [arguments.name] if arguments.name else [name for name in BENCHMARKS if name not in BY_NAME]:
        module, title = BENCHMARKS[name]
        own = (
            arguments if arguments.name else parser.parse_args([name], argparse.Namespace(**vars(arguments)))
        )
        publish.keep(name, title, module.run(own), own, getattr(module, "tables", None))


if __name__ == "__main__":
    main()
