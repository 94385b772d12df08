"""One unit of a table: a method, learnt or searched with one seed in one world, and what it truly brings."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from training.contract import sources
from training.contract.policy import Policy, PolicyHeader, constant_policy, make_actor
from training.contract.settings import Settings
from training.evaluation import assess
from training.experiments import controls
from training.experiments.ground import Ground, concatenated
from training.experiments.table import Method
from training.policies import return_regression
from training.policies.learner import Learner
from training.policies.networks import standardisation
from training.policies.retrain import ALGORITHMS, reproducible
from training.trajectories import Transitions
from training.warehouse.reward_weights import leaning
from training.world.simulator.references import Bench, Evaluation, fit_oracle
from training.world.simulator.sessions import Requests

Progress = Callable[[float, str], None]  # share of the work, and what is being done
_REPORT = 50  # steps between reports of progress
PROBES = 1_000  # states on which methods and seeds are compared


@dataclass(frozen=True)
class Learnt:
    """What a method came to. ``policy`` is None for a ranker that has no actions."""

    evaluate: Callable[[Bench], Evaluation]
    policy: Policy | None
    curve: list[dict[str, float]] = field(default_factory=list)
    transitions: int = 0


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
    summary = truth.summary()
    result = {
        "truth": summary,
        "offline": offline,
        "curve": learnt.curve,
        "transitions": learnt.transitions,
        "budget_sessions": method.budget_sessions,
        "learning_s": learning_s,
        "seconds": time.monotonic() - started,
    }
    names = ("session_return", "discounted", "play_s", "adtime_s", "plays", "positive_plays", "user_row")
    return result, {name: getattr(truth, name) for name in names} | actions


def learn(ground: Ground, method: Method, settings: Settings, progress: Progress) -> Learnt:
    """Run the method with its budget: the fixed log for learners, simulated sessions for searches."""
    if method.kind == "learner":
        return _learner(ground, method, settings, progress)
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
    return _acting(_policy(settings, method.name, "deterministic", tensors, {}))


def _learner(ground: Ground, method: Method, settings: Settings, progress: Progress) -> Learnt:
    how, seed = settings.learner, ground.seed
    (algorithm,) = how.algorithms  # the table says so
    if algorithm in return_regression.ALGORITHMS:
        return _regression(ground, method, settings, algorithm)
    curve_bench, curve = ground.curve(), []
    marks = {
        how.steps * (i + 1) // ground.table.judge.checkpoints for i in range(ground.table.judge.checkpoints)
    }
    data: Transitions | None = None
    learner: Learner | None = None
    for part in range(method.rounds):
        so_far = None if learner is None else _of(learner, settings, method)
        data = _log_of_round(ground, method, settings, part, data, so_far)
        train, _ = ground.split(data)
        train = _rewarded(train, settings, method, ground.table.reward_leaning)
        before, learner = learner, ALGORITHMS[algorithm](how, train, 1_000 * part + seed, settings.fusion)
        if before is not None:
            learner.load_weights(before.state())
            learner.step_count = before.step_count
        while learner.step_count < how.steps * (part + 1) // method.rounds:
            losses = learner.step()
            done = learner.step_count
            if done % _REPORT == 0:
                progress(done / how.steps, f"{algorithm} step {done} of {how.steps}")
            if done in marks:
                truth = _acting(_of(learner, settings, method)).evaluate(curve_bench)
                point = dict(zip(learner.curves, losses.tolist(), strict=True))
                curve.append({"step": done, "session_return": float(truth.session_return.mean()), **point})
    assert learner is not None
    return replace(_acting(_of(learner, settings, method)), curve=curve, transitions=len(learner.data))


def _regression(ground: Ground, method: Method, settings: Settings, algorithm: str) -> Learnt:
    """The closed forms: on the log, or in rounds, each after the first with noise around what was learnt."""
    policy: Policy | None = None
    data: Transitions | None = None
    for part in range(method.rounds):
        data = _log_of_round(ground, method, settings, part, data, policy)
        how = settings.learner.return_regression
        one = return_regression.propose(settings.fusion, how, data, 1_000 * part + ground.seed)[algorithm]
        policy = _policy(settings, method.name, one.kind, dict(one.tensors), dict(one.options))
    assert policy is not None and data is not None
    return replace(_acting(policy), transitions=len(data))


def _log_of_round(
    ground: Ground,
    method: Method,
    settings: Settings,
    part: int,
    data: Transitions | None,
    policy: Policy | None,
) -> Transitions:
    """The fixed log; with rounds, the log so far and a further part around the policy learnt so far."""
    log = ground.table.logs[method.log]
    if method.rounds == 1:
        return ground.log(method.log)
    sessions = log.sessions // method.rounds
    if policy is None or data is None:
        return ground.collect(log, ground.static, sessions, part=1)
    fresh = ground.collect(log, lambda states, requests: policy.act_in_parts(states), sessions, part + 1)
    return concatenated([data, fresh])


def _rewarded(data: Transitions, settings: Settings, method: Method, factor: float) -> Transitions:
    """The log with the reward that the method is trained with; the truth is always the standard one."""
    if method.reward is None:
        return data
    lean = leaning(settings, method.reward, factor)
    weights = [lean.reward.play_time_weight, lean.reward.integrity_weight, *(s.weight for s in lean.signals)]
    assert data.reward_factors is not None
    watching = data.reward_factors[:, :2] @ torch.tensor(weights[:2])
    return replace(
        data, rewards=data.reward_factors @ torch.tensor(weights), watch_rewards=watching, item_rewards=None
    )


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


def _acting(policy: Policy) -> Learnt:
    """A policy ranks by its own order where it has one, else by the fusion formula."""

    def play(states: np.ndarray, requests: Requests) -> tuple[np.ndarray, np.ndarray]:
        actions = policy.act_in_parts(states)
        return actions, policy.scores(requests.predictions, states, actions)

    return Learnt(lambda bench: bench.play(play), policy)


def _of(learner: Learner, settings: Settings, method: Method) -> Policy:
    return _policy(settings, method.name, learner.actor, *learner.export())


def _policy(
    settings: Settings, version: str, kind: str, tensors: dict[str, np.ndarray], options: dict[str, Any]
) -> Policy:
    tensors = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
    header = PolicyHeader(kind, version, settings.state_spec, settings.fusion, options)
    return Policy(header, "", make_actor(kind, tensors, options))


def sources_sha256() -> str:
    """Of the sources that a unit's result depends on."""
    return sources.sha256_of("training.experiments.unit")
