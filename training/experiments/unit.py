"""One unit of a table: a method, learnt or searched with one seed in one world, and what it truly brings."""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from training.contract import code_sources
from training.contract.policy import constant_policy
from training.contract.settings import Settings
from training.evaluation import assess
from training.experiments import controls, learning
from training.experiments.ground import Ground
from training.experiments.learning import Learnt, Progress, acting, policy_of
from training.experiments.table import Method
from training.policies.networks import standardisation
from training.policies.retrain import reproducible
from training.world.simulator.references import fit_oracle

PROBES = 1_000  # states on which methods and seeds are compared


def run_unit(
    ground: Ground, method: Method, progress: Progress
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Learn, judge on the world's truth and offline; returns the result (plain JSON) and arrays by session.

    Arrays: ``session_return``, ``discounted``, ``play_s``, ``adtime_s``, ``plays``, ``positive_plays`` and
    ``user_row`` [sessions] of the judge's sessions, and ``actions`` [PROBES, k] where there are actions.
    """
    settings = ground.table.method_settings(ground.name, method)
    with reproducible(1):
        started = time.monotonic()
        learnt = learn(ground, method, settings, lambda share, what: progress(0.8 * share, what))
        learning_s = time.monotonic() - started
        progress(0.8, "true return")
        truth = learnt.evaluate(ground.judge())
        progress(0.9, "offline estimates")
        offline, actions = _offline(ground, learnt)
    log_sessions = ground.table.logs[method.log].sessions if method.kind == "learner" else 0
    result = {
        "truth": truth.summary(),
        "offline": offline,
        "curve": learnt.curve,
        "transitions": learnt.transitions,
        "sessions": method.budget_sessions or log_sessions,
        "tuning_runs": method.tuning_runs,
        "learning_s": learning_s,
        "seconds": time.monotonic() - started,
    }
    names = ("session_return", "discounted", "play_s", "adtime_s", "plays", "positive_plays", "user_row")
    return result, {name: getattr(truth, name) for name in names} | actions


def learn(ground: Ground, method: Method, settings: Settings, progress: Progress) -> Learnt:
    """Run the method with its budget: the fixed log for learners, simulated sessions for searches."""
    if method.kind == "learner":
        return learning.train(ground, method, settings, progress)
    if method.kind == "static":
        return _constant(settings, settings.fusion.static_action, method.name)
    if method.kind == "oracle":
        generations, population = 8, 8
        bench = ground.search(max(method.budget_sessions // (generations * population), 1))
        oracle = fit_oracle(bench, generations=generations, population=population, seed=ground.seed + 1)
        return Learnt(lambda bench: bench.evaluate_ranker(replace(oracle, bench=bench)), None)

    def spent(share: float) -> None:
        progress(share, f"{method.kind.replace('_', ' ')}")

    budget, seed = method.budget_sessions, ground.seed
    if method.kind == "cross_entropy":
        action = controls.cross_entropy(ground.search, budget, seed, spent)
        return _constant(settings, action, method.name)
    if method.kind == "bayesian":
        return _constant(settings, controls.bayesian(ground.search, budget, seed, spent), method.name)
    states = ground.log(ground.table.judge.log).states  # only to standardise
    mean, scale = (part.numpy() for part in standardisation(states))
    tensors = controls.evolution_strategies(ground.search, budget, seed, spent, mean, scale)
    return acting(policy_of(settings, method.name, "deterministic", tensors, {}))


def _offline(ground: Ground, learnt: Learnt) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """The judge's record of the policy on the last sessions of the judge's log, and its actions there."""
    if learnt.policy is None:
        return None, {}
    train, test = ground.split(ground.log(ground.table.judge.log))
    record = assess(ground.settings, train, test, {"policy": learnt.policy}, ground.seed)
    kept = ("estimates", "estimators", "overlap", "unavailable", "calibration")
    first = Ground(ground.table, ground.name, ground.table.seeds[0], ground.folder.parent)
    probes = first.split(first.log(ground.table.judge.log))[1].states.numpy()[:PROBES]
    return {name: record[name] for name in kept}, {"actions": learnt.policy.act_in_parts(probes)}


def _constant(settings: Settings, action: np.ndarray, name: str) -> Learnt:
    policy = constant_policy(settings.state_spec, settings.fusion, action, name)
    return Learnt(lambda bench: bench.evaluate_constant(np.asarray(action, dtype=np.float32)), policy)


def sources_sha256() -> str:
    """Of the sources that a unit's result depends on."""
    return code_sources.sha256_of("training.experiments.unit")
