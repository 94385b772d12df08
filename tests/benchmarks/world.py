"""What fusion weights are worth in the simulated world of mtf.yaml, from random ones to an oracle.

python -m tests.benchmarks world

The searches play sessions of their own; the rows are all of the same sessions, which no search has seen.
"""

import argparse
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np

from tests.benchmarks.day import DEMO
from tests.benchmarks.publish import prose, table
from training.contract.settings import load_settings
from training.world.simulator.drivers import clustered_mean
from training.world.simulator.references import Bench, Evaluation, best_constants, fit_oracle
from training.world.simulator.sessions import Requests
from training.world.simulator.world import World


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sessions", type=int, default=2_000, help="of the rows; the searches play as many")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = load_settings(DEMO)
    world, day = World(settings), date.fromisoformat(settings.world.start_day)
    search, bench = (Bench(world, day, arguments.sessions, seed) for seed in (1, 2))
    heads, rng = len(settings.heads), np.random.default_rng(0)

    def explore(states: np.ndarray, requests: Requests) -> np.ndarray:
        """Every request an action of N(0, 1) truncated to [-1, 1], as the random arm's."""
        actions = rng.normal(size=(len(states), heads))
        while (outside := np.abs(actions) > 1.0).any():
            actions[outside] = rng.normal(size=int(outside.sum()))
        return actions

    constants: dict[str, np.ndarray] = {
        "midpoint of the bounds": np.zeros(heads),
        "static, the settings'": settings.fusion.static_action,
        "best constants": best_constants(search),
        "best constants of each kind": best_constants(search, per_kind=True),
    }
    oracle = fit_oracle(search)
    rankers: dict[str, Callable[[], Evaluation]] = {
        "random (exploration group, σ = 1, each request)": lambda: bench.evaluate(explore),
        **{name: lambda a=action: bench.evaluate_constant(a) for name, action in constants.items()},  # type: ignore[misc]
        "oracle, not bound to the formula": lambda: bench.evaluate_ranker(
            type(oracle)(bench, oracle.satisfaction_price, oracle.second_price)
        ),
    }
    played = {name: ranker() for name, ranker in rankers.items()}
    static = played["static, the settings'"]
    return {
        name: {
            "session_return": clustered_mean(one.session_return, one.user_row),
            "difference": one.difference(static),
            "static": float(static.session_return.mean()),
            "requests": float(one.requests.mean()),
        }
        for name, one in played.items()
    }


def tables(results: dict[str, Any]) -> str:
    text = prose(
        "The synthetic world of mtf.yaml on its first day: session returns (eq. 2 of the paper, with its "
        "settings) on sessions that the searches did not see, with 95 % intervals, users as clusters; the "
        "difference to static weights is paired."
    )
    rows = []
    for name, one in results.items():
        mean, low, high = one["session_return"]
        share, least, most = (100.0 * value / one["static"] for value in one["difference"])
        against = "" if share == 0.0 else f"{share:+.0f} % ({least:+.0f} to {most:+.0f})"
        rows.append([name, f"{mean:.1f} ({low:.1f} to {high:.1f})", against, f"{one['requests']:.1f}"])
    return text + table(("weights", "session return", "against static", "requests a session"), rows)
