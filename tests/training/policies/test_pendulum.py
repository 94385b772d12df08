"""Outside our own world: on a log of gymnasium's pendulum ours learns what d3rlpy's BCQ learns.

The same transitions, steps, batches, widths, rates, n, ρ and target updates, and the same episodes to
evaluate on; 5 seeds of each. d3rlpy's BCQ takes the plain minimum of its critics (lam 1), as ours does.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from tests.peers import pendulum_task
from training.contract.policy import make_actor
from training.contract.settings import LearnerSettings
from training.policies.batchrl_mtf import BatchRLMTF
from training.trajectories import Transitions

pytestmark = [pytest.mark.slow, pytest.mark.peers, pytest.mark.timeout(1_800)]

ROOT = Path(__file__).parents[3]
PEER = ROOT / "build/peers/d3rlpy/bin/python"
SEEDS, STEPS, BATCH, WIDTHS, N = range(5), 3_000, 64, (64, 64), 10
RATE, GAMMA, RHO, TARGET_RATE = 1e-3, 0.95, 0.05, 0.01


def transitions(log: dict[str, np.ndarray]) -> Transitions:
    """All steps but each episode's last."""

    def flat(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values.reshape(-1, values.shape[-1])))

    actions, rewards = log["actions"][:, :-1], log["rewards"][:, :-1]
    count, sessions = rewards.size, np.repeat(np.arange(len(rewards)), rewards.shape[1])
    return Transitions(
        states=flat(log["observations"][:, :-2]),
        actions=flat(actions),
        rewards=torch.from_numpy(rewards.reshape(-1) / np.float32(pendulum_task.REWARD_UNIT)),
        next_states=flat(log["observations"][:, 1:-1]),
        next_actions=flat(log["actions"][:, 1:]),
        dones=torch.zeros(count),
        action_means=flat(actions),
        log_densities=torch.full((count,), torch.nan, dtype=torch.float64),
        sessions=torch.from_numpy(sessions),
        users=torch.from_numpy(sessions),
        steps=torch.from_numpy(np.tile(np.arange(rewards.shape[1]), len(rewards))),
        by_session=torch.zeros(count, dtype=torch.bool),
        arms=torch.zeros(count, dtype=torch.int64),
        arm_names=("controller",),
    )


def ours(data: Transitions, seed: int) -> float:
    settings = LearnerSettings(
        batch_size=BATCH,
        target_steps=1,
        gamma=GAMMA,
        critic_lr=RATE,
        target_rate=TARGET_RATE,
        target_interval=1,
        critic_hidden=WIDTHS,
        batchrl_mtf={
            "rho": RHO,
            "latent_clip": 0.5,  # BCQ's
            "kl_weight": 0.5,
            "candidates": N,
            "serving_candidates": N,
            "generator_lr": RATE,
            "perturbation_lr": RATE,
            "generator_hidden": WIDTHS,
            "perturbation_hidden": WIDTHS,
        },
    )
    learner = BatchRLMTF(settings, data, seed)
    for _ in range(STEPS):
        learner.step()
    return pendulum_task.returns(make_actor(learner.actor, *learner.export()))


def theirs() -> list[float]:
    assert PEER.exists(), f"{PEER} does not exist: run `make peers` first"
    about = {
        "seeds": list(SEEDS),
        "steps": STEPS,
        "hidden": WIDTHS,
        "config": {
            "batch_size": BATCH,
            "gamma": GAMMA,
            "action_flexibility": RHO,
            "n_action_samples": N,
            "lam": 1.0,
            "tau": TARGET_RATE,
            "actor_learning_rate": RATE,
            "critic_learning_rate": RATE,
            "imitator_learning_rate": RATE,
        },
    }
    script = ROOT / "tests/peers/d3rlpy_pendulum.py"
    ran = subprocess.run([PEER, script, json.dumps(about)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_ours_reaches_what_d3rlpys_bcq_reaches():
    log = pendulum_task.log()
    data = transitions(log)
    behaviour = float(log["rewards"].sum(axis=1).mean())
    found = {"ours": [ours(data, seed) for seed in SEEDS], "theirs": theirs()}
    print(f"log {behaviour:.0f}", {name: np.round(values).tolist() for name, values in found.items()})
    means = {name: float(np.mean(values)) for name, values in found.items()}
    half = stats.t.ppf(0.975, len(SEEDS) - 1) * stats.sem(found["theirs"])
    assert means["theirs"] > behaviour and means["ours"] > behaviour, (behaviour, found)
    assert means["ours"] >= means["theirs"] - half, (behaviour, found)
