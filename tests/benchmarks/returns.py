"""The model of session returns on 0.1, 1 and 10 million transitions: seconds and memory.

Days of 100,000 random transitions, eight weights, states as wide as the default ones; their statistics are
added up. Both passes, of the state's entries and of its traits, and the fits after them, as a night does.
Beside it the floor: the products Zᵀ Z alone, of rows that lie in memory, by the same BLAS. With a deviation a
session only its first request is a row; with one a request every request is.
"""

import argparse
import resource
import time
from typing import Any

import numpy as np
import torch

from tests.benchmarks.publish import prose, table
from training import returns
from training.contract.settings import Settings
from training.returns.model import traits
from training.trajectories import Transitions

DAY, SESSION = 100_000, 7  # transitions of a day, requests of a session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--request-rows", type=int, nargs="*", default=[100_000], help="deviation a request")


def log(settings: Settings, day: int, unit: str) -> Transitions:
    """A day of sessions whose return is noise and a little of the weights."""
    rng, d, k = np.random.default_rng(day), settings.state_spec.width, len(settings.heads)
    sessions = np.arange(DAY) // SESSION
    held = sessions if unit == "session" else np.arange(DAY)
    actions = rng.uniform(-1.0, 1.0, (held[-1] + 1, k))[held]
    states = rng.normal(size=(DAY, d)).astype(np.float32)
    rewards = 4.0 + actions[:, 0] * (1.0 + states[:, 0]) + rng.normal(0.0, 3.0, DAY)
    columns = {
        "states": states,
        "actions": actions.astype(np.float32),
        "rewards": rewards.astype(np.float32),
        "next_states": states,
        "next_actions": actions.astype(np.float32),
        "dones": (np.arange(DAY) % SESSION == SESSION - 1).astype(np.float32),
        "action_means": np.zeros((DAY, k), dtype=np.float32),
        "log_densities": np.full(DAY, -k * np.log(2.0)),
        "sessions": sessions,
        "users": rng.integers(0, 1_000_000, sessions[-1] + 1)[sessions],
        "steps": np.arange(DAY) % SESSION,
        "by_session": np.full(DAY, unit == "session"),
        "arms": np.zeros(DAY, dtype=np.int64),
    }
    return Transitions(
        **{name: torch.from_numpy(column) for name, column in columns.items()}, arm_names=("random",)
    )


def measured(rows: int, unit: str) -> dict[str, float]:
    settings = Settings()
    days = [log(settings, day, unit) for day in range(min(3, rows // DAY))]  # more of them are these again
    spent = {"statistics_s": 0.0, "fits_s": 0.0}

    def summed(features: returns.Features) -> returns.Statistics:
        began, total = time.perf_counter(), None
        for day in range(rows // DAY):
            found = returns.of_transitions(features, days[day % len(days)])
            total = found if total is None else total + found
        spent["statistics_s"] += time.perf_counter() - began
        assert total is not None
        return total

    entries = returns.Features(settings.fusion, settings.state_spec.width)
    statistics = summed(entries)
    began = time.perf_counter()
    projection = traits(returns.fit(entries, statistics), statistics, 3, np.ones(entries.d))
    spent["fits_s"] += time.perf_counter() - began
    features = returns.Features(settings.fusion, entries.d, projection)
    statistics = summed(features)
    began = time.perf_counter()
    returns.fit(features, statistics)
    spent["fits_s"] += time.perf_counter() - began
    z = np.random.default_rng(0).normal(size=(4_096, features.width))
    began = time.perf_counter()
    for _ in range(3):
        z.T @ z
    floor = (time.perf_counter() - began) / 3 / len(z) * statistics.rows.sum()
    floor *= 1.0 + (entries.width / features.width) ** 2  # both passes
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    return {"rows": float(statistics.rows.sum()), **spent, "floor_s": floor, "most_resident_mib": resident}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = [("session", rows) for rows in arguments.rows]
    asked += [("request", rows) for rows in arguments.request_rows]
    return {f"{rows:,} transitions, a deviation a {unit}": measured(rows, unit) for unit, rows in asked}


def tables(results: dict[str, Any]) -> str:
    text = prose(
        "Seconds of a night's model of session returns on so many transitions, in days of 100,000 whose "
        "statistics are added up: both passes over the log, and the fits that follow. The floor is the "
        "products Zᵀ Z alone, of rows that lie in memory. Resident memory is the process's most so far, "
        "the days' rows in it."
    )
    rows = [
        [
            name,
            f"{r['rows']:,.0f}",
            *(f"{r[key]:.1f}" for key in ("statistics_s", "floor_s", "fits_s")),
            f"{r['most_resident_mib']:.0f} MiB",
        ]
        for name, r in results.items()
    ]
    return text + table(("log", "rows", "statistics, s", "floor, s", "fits, s", "most resident"), rows)
