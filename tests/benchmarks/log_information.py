"""What a log of exploration holds about the long run, without any network.

python -m tests.benchmarks log_information

On logs of the world of `paper_table1`, what a learner is given of them, for three targets (the reward;
r + γ V(s') with V linear in s; the observed return-to-go):

- the slope of the target on each weight over the random group's requests, in units of its standard error;
- the true return, on the sessions of the table's judge, of the greedy policy of a ridge regression of the
  target on s, a, a² and s ⊗ a.

What return-to-go has and one step does not is lost where s' does not show what the action did.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.publish import prose
from tests.benchmarks.publish import table as table_of
from training.experiments.ground import Ground
from training.experiments.table import ExplorationLog, load_table
from training.policies.networks import standardisation, standardise
from training.policies.retrain import reproducible
from training.trajectories import Transitions
from training.trajectories.to_go import returns_to_go
from training.world.simulator.references import Bench
from training.world.simulator.sessions import Requests

RIDGE, GAMMA = 1e2, 0.95
TARGETS = ("reward", "one step", "return-to-go")


def study(data: Transitions, bench: Bench) -> dict[str, Any]:
    """By target the slopes in standard errors, their mean standard error, and the greedy policy's return."""
    moments = standardisation(data.states)
    s = standardise(data.states, *moments).double().numpy()
    next_s = standardise(data.next_states, *moments).double().numpy()
    a, r = data.actions.double().numpy(), data.rewards.double().numpy()
    one = np.ones((len(s), 1))
    base = np.hstack([one, s])
    observed = returns_to_go(data, GAMMA)
    value = np.linalg.lstsq(base, observed, rcond=None)[0]
    step = r + GAMMA * (1.0 - data.dones.numpy()) * (np.hstack([one, next_s]) @ value)
    k, d = a.shape[1], s.shape[1]
    features = np.hstack([base, a, a**2 - 1 / 3, *(a[:, [j]] * s for j in range(k))])
    gram = features.T @ features + RIDGE * np.eye(features.shape[1])
    drawn = data.arms.numpy() == data.arm_names.index("random")
    centred = a[drawn] - a[drawn].mean(axis=0)  # drawn without a look at s: independent of it
    inverse, found = np.linalg.inv(centred.T @ centred), {}
    for name, target in zip(TARGETS, (r, step, observed), strict=True):
        explained = base @ np.linalg.lstsq(base, target, rcond=None)[0]
        rest = (target - explained)[drawn]
        slopes = inverse @ (centred.T @ rest)
        error = np.sqrt(np.diag(inverse)) * (rest - centred @ slopes).std()
        w = np.linalg.solve(gram, features.T @ target)
        slope, curve = w[1 + d : 1 + d + k], w[1 + d + k : 1 + d + 2 * k]
        by_state = w[1 + d + 2 * k :].reshape(k, d)

        def greedy(
            states: np.ndarray,
            requests: Requests,
            slope: np.ndarray = slope,
            curve: np.ndarray = curve,
            by_state: np.ndarray = by_state,
        ) -> np.ndarray:
            linear = slope + standardise(torch.from_numpy(states), *moments).numpy() @ by_state.T
            inner = -linear / (2.0 * np.minimum(curve, -1e-3))
            return np.clip(np.where(curve < -1e-3, inner, np.sign(linear)), -1.0, 1.0).astype(np.float32)

        found[name] = {
            "slopes_in_errors": (slopes / error).tolist(),
            "error": float(error.mean()),
            "greedy": float(bench.evaluate(greedy).session_return.mean()),
        }
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sessions", type=int, nargs="+", default=[6_000, 40_000], help="sizes of the logs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    table = load_table("paper_table1")
    static, logs = [], {f"{sessions:,} sessions": list[dict[str, Any]]() for sessions in arguments.sessions}
    with tempfile.TemporaryDirectory() as folder, reproducible(1):
        for seed in arguments.seeds:
            ground = Ground(table, "synthetic", seed, Path(folder))
            ground.prepare()
            bench = ground.judge()
            static.append(
                float(bench.evaluate_constant(ground.settings.fusion.static_action).session_return.mean())
            )
            for sessions, studies in zip(arguments.sessions, logs.values(), strict=True):
                arms = ground.mixed(ExplorationLog(sessions=sessions), ground.static)
                data, _ = ground.split(ground.collect(arms, sessions, part=0))
                studies.append(study(data, bench))
                print(f"seed {seed}, {sessions:,} sessions: {len(data):,} transitions", flush=True)
    heads = [head.name for head in table.ranking_settings("synthetic").heads]
    return {"static": static, "heads": heads, "logs": logs}


def tables(results: dict[str, Any]) -> str:
    def spread(values: list[float]) -> str:
        return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    static = results["static"]
    text = prose(
        "Ridge regression of a target on s, a, a² and s ⊗ a, on what a learner gets of a log of so many "
        "sessions of `paper_table1`; the true return of its greedy policy on the table's judge's sessions, "
        f"where static weights come to {spread(static)}. Means of {len(static)} seeds, with least and most; "
        "a slope is of a weight over the random group's requests, in its standard errors."
    )
    columns = ("log", "target", "greedy return", "standard error", *results["heads"])
    rows = [
        [
            name,
            target,
            spread([one[target]["greedy"] for one in studies]),
            f"{np.mean([one[target]['error'] for one in studies]):.3f}",
            *(
                f"{slope:.1f}"
                for slope in np.mean([one[target]["slopes_in_errors"] for one in studies], axis=0)
            ),
        ]
        for name, studies in results["logs"].items()
        for target in TARGETS
    ]
    return text + table_of(columns, rows)
