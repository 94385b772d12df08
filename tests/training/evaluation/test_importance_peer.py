"""PDIS and DR against scope-rl's, on the same data: sessions of one length, where the two must agree."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from tests.training.evaluation.test_importance import GAMMA, HOW, sessions
from training.evaluation import fqe, importance
from training.evaluation.acting import Actions

ROOT = Path(__file__).parents[3]
PEER = ROOT / "build/peers/ope/bin/python"
LONGEST, BANDWIDTH = 5, 0.4


@pytest.mark.peers
def test_scope_rl_agrees_with_importance_sampling_and_doubly_robust(tmp_path):
    """scope-rl's kernel is a normal that is not truncated, so its densities carry our normaliser."""
    data = sessions(400, seed=5, longest=LONGEST, stop=0.0)
    here = (0.5 * data.states).clamp(-1, 1)  # a policy that looks at the state
    policies = {"p": Actions(here, (0.5 * data.next_states).clamp(-1, 1))}
    fitted = fqe.fit(data, policies, HOW.model_copy(update={"steps": 50}), GAMMA, seed=3)
    mean = here.double().numpy()
    kept = ndtr((1 - mean) / BANDWIDTH) - ndtr((-1 - mean) / BANDWIDTH)

    # Q and V of the fit on the data
    states, actions = data.states, data.actions[None]
    q = fitted.values(states, actions)[0]
    v = importance._smoothed_values(fitted, states, here[None], BANDWIDTH, seed=4)[0]
    prediction = torch.stack([q[0].double(), v[0]], dim=1).numpy()

    np.savez(
        tmp_path / "log.npz",
        step_per_trajectory=LONGEST,
        action=data.actions.double().numpy(),
        reward=data.rewards.double().numpy(),
        pscore=np.exp(data.log_densities.numpy())[:, None] * kept,
        evaluation_policy_action=mean,
        state_action_value_prediction=prediction,
        gamma=GAMMA,
        bandwidth=BANDWIDTH,
    )
    script = ROOT / "tests/peers/ope_scope_rl.py"
    answer = subprocess.run(
        [PEER, script, tmp_path / "log.npz"], check=True, capture_output=True, text=True, timeout=300
    )
    peer = json.loads(answer.stdout.splitlines()[-1])
    pdis = importance.pdis(data, policies, HOW, GAMMA, BANDWIDTH, seed=4).values["p"]
    assert pdis == pytest.approx(peer["pdis"], rel=1e-5)
    robust = importance.doubly_robust(fitted, policies, GAMMA, BANDWIDTH, seed=4)
    on_data = robust.values["p"] * fitted.fits - robust.replicates["p"].sum()  # the value is the fits' mean
    assert on_data == pytest.approx(peer["dr"], rel=1e-4)
    assert pdis != pytest.approx(on_data, rel=1e-3)
