"""What a log of exploration holds about the long run, without any network.

`.venv/bin/python -m tests.benchmarks.log_information 6000 40000 --seeds 1 2 3 4 5` takes logs of so many
sessions of the world of `paper_table1`, what a learner is given of them, and prints, for three targets (the
reward; r + γ V(s') with V linear in s; the observed return-to-go):

- the slope of the target on each weight over the random group's requests, in units of its standard error;
- the true return, on the sessions of the table's judge, of the greedy policy of a ridge regression of the
  target on s, a, a² and s ⊗ a.

What return-to-go has and one step does not is lost where s' does not show what the action did.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from training.experiments.ground import Ground
from training.experiments.table import ExplorationLog, load_table
from training.policies.networks import standardisation, standardise
from training.trajectories import Transitions
from training.world.simulator.references import Bench
from training.world.simulator.sessions import Requests

RIDGE, GAMMA = 1e2, 0.95


def returns_to_go(data: Transitions) -> np.ndarray:
    """Observed discounted return from each request to the log's end of its session."""
    r, session = data.rewards.numpy().astype(float), data.sessions.numpy()
    out, after = np.zeros_like(r), 0.0
    for i in range(len(r) - 1, -1, -1):
        same = i + 1 < len(r) and session[i + 1] == session[i]
        out[i] = after = r[i] + (GAMMA * after if same else 0.0)
    return out


def study(data: Transitions, bench: Bench) -> None:
    moments = standardisation(data.states)
    s = standardise(data.states, *moments).double().numpy()
    next_s = standardise(data.next_states, *moments).double().numpy()
    a, r = data.actions.double().numpy(), data.rewards.double().numpy()
    one = np.ones((len(s), 1))
    base = np.hstack([one, s])
    observed = returns_to_go(data)
    value = np.linalg.lstsq(base, observed, rcond=None)[0]
    step = r + GAMMA * (1.0 - data.dones.numpy()) * (np.hstack([one, next_s]) @ value)
    k, d = a.shape[1], s.shape[1]
    features = np.hstack([base, a, a**2 - 1 / 3, *(a[:, [j]] * s for j in range(k))])
    gram = features.T @ features + RIDGE * np.eye(features.shape[1])
    drawn = data.arms.numpy() == data.arm_names.index("random")
    centred = a[drawn] - a[drawn].mean(axis=0)  # drawn without a look at s: independent of it
    inverse = np.linalg.inv(centred.T @ centred)
    for name, target in (("reward", r), ("one step", step), ("return-to-go", observed)):
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

        found = bench.evaluate(greedy).session_return.mean()
        print(f"  {name:12s} slope / error {np.round(slopes / error, 1)}, error {error.mean():.3f}; ", end="")
        print(f"greedy {found:.2f}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description="What a log of exploration holds about the long run.")
    options.add_argument("sessions", type=int, nargs="*", default=[6_000, 40_000])
    options.add_argument("--seeds", type=int, nargs="+", default=[1])
    chosen = options.parse_args()
    torch.set_num_threads(1)
    table = load_table("paper_table1")
    with tempfile.TemporaryDirectory() as folder:
        for seed in chosen.seeds:
            ground = Ground(table, "synthetic", seed, Path(folder))
            ground.prepare()
            bench = ground.judge()
            static = bench.evaluate_constant(ground.settings.fusion.static_action)
            print(f"seed {seed}: static weights {static.session_return.mean():.2f}")
            for sessions in chosen.sessions:
                log = ground.collect(ExplorationLog(sessions=sessions), ground.static, sessions, part=0)
                data, _ = ground.split(log)
                print(f"{sessions} sessions, {len(data)} transitions")
                study(data, bench)


if __name__ == "__main__":
    main()
