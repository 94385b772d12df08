"""A policy's true returns, and every estimator of it on a fresh log."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from training.contract import exploration
from training.contract.policy import load_policy
from training.evaluation import acting
from training.evaluation.estimators import closed_forms, estimate
from training.experiments.estimators.bench import TRUTH, Sizes, around, bench_of, served_log, world_of
from training.policies.retrain import reproducible

WHOLE_CONFIDENCE = 0.95


def measure_truth(settings_json: str, sizes: Sizes, folder: Path, name: str) -> dict[str, Any]:
    """True returns of the policy, and of the smoothed policy that pdis and dr are estimates of."""
    bench = bench_of(settings_json, sizes.truth_sessions, TRUTH)
    policy = load_policy(folder / f"{name}.safetensors")
    bandwidth = bench.settings.evaluation.bandwidth or bench.settings.serving.noise_std
    rng = np.random.default_rng([bench.settings.seed, TRUTH])
    plain = bench.evaluate(around(policy))
    smoothed = bench.evaluate(
        lambda states, requests: exploration.sample(
            policy.act_in_parts(states).astype(np.float64), bandwidth, rng
        )
    )
    return {
        "session_return": float(plain.session_return.mean()),
        "discounted": float(plain.discounted.mean()),
        "smoothed_discounted": float(smoothed.discounted.mean()),
        "discounted_error": float(plain.discounted.std() / math.sqrt(len(plain.discounted))),
        "reward_a_request": float(plain.session_return.sum() / plain.requests.sum()),
    }


def judge(
    settings_json: str, sizes: Sizes, folder: Path, names: tuple[str, ...], seed: int, sessions: int
) -> dict[str, Any]:
    """Every estimator of the named policies on a fresh log, and differences to the first of them."""
    data = served_log(settings_json, folder, sessions, seed)
    settings = world_of(settings_json).settings
    policies = {name: load_policy(folder / f"{name}.safetensors") for name in names}
    with reproducible(1):
        closed, _ = closed_forms(data, policies, settings, seed)
        judgement = estimate(data, acting.act(data, policies), settings, seed, closed)
    return {
        "transitions": len(data),
        "estimates": {e: {n: v.interval(n) for n in names} for e, v in judgement.estimates.items()},
        "differences": {
            e: {n: v.difference(n, names[0]) for n in names[1:]} for e, v in judgement.estimates.items()
        },
        "effective_sessions": {n: judgement.overlap[n]["effective_sessions"] for n in names},
    }


def judge_closed(
    settings_json: str, sizes: Sizes, folder: Path, names: tuple[str, ...], seed: int, sessions: int
) -> dict[str, Any]:
    """The estimators in closed form of all policies on a fresh log: differences to the first of them, in
    intervals of :data:`WHOLE_CONFIDENCE`."""
    data = served_log(settings_json, folder, sessions, seed)
    settings = world_of(settings_json).settings
    how = settings.evaluation.model_copy(update={"confidence": WHOLE_CONFIDENCE})
    settings = settings.model_copy(update={"evaluation": how})
    policies = {name: load_policy(folder / f"{name}.safetensors") for name in names}
    with reproducible(1):
        closed, session = closed_forms(data, policies, settings, seed)
    assert session is not None  # it is among the estimators
    return {
        "differences": {e: {n: v.difference(n, names[0]) for n in names[1:]} for e, v in closed.items()},
        "trusted": session.trusted,
    }
