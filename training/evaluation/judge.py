"""Judge policies on the test split: estimates, paired differences, calibration, stability."""

import hashlib
import math
from collections.abc import Collection, Mapping
from datetime import date
from itertools import permutations
from typing import Any

import numpy as np
import torch

from training import trajectories
from training.contract.errors import DataError
from training.contract.policy import Policy
from training.contract.settings import Settings
from training.evaluation import acting, pareto, stability
from training.evaluation.estimators import CLOSED, FITTED, LOGGED, WEIGHTED, closed_forms, estimate
from training.evaluation.intervals import Interval, mean_interval, renamed
from training.evaluation.pool import choose
from training.evaluation.session_returns import PARTS
from training.policies import return_regression
from training.policies.retrain import reproducible
from training.trajectories import Transitions

_ROWS = 5_000


def evaluate(
    settings: Settings,
    day: date,
    policies: Mapping[str, Policy],
    pool: Collection[str] = (),
    leanings: Mapping[float, Policy] | None = None,
) -> dict[str, Any]:
    """Judge the named policies on the window that ends with ``day``: :func:`assess`."""
    data = trajectories.load(settings, day, ("watch_rewards",) if leanings else (), every=True)
    seed = int.from_bytes(hashlib.sha256(f"judge/{settings.seed}/{day}".encode()).digest()[:6], "big")
    return assess(
        settings, data.train, data.test, policies, seed, every=data.every, pool=pool, leanings=leanings
    )


def assess(
    settings: Settings,
    train: Transitions,
    test: Transitions,
    policies: Mapping[str, Policy],
    seed: int,
    *,
    every: Transitions | None = None,
    pool: Collection[str] = (),
    leanings: Mapping[float, Policy] | None = None,
) -> dict[str, Any]:
    """Judge policies: by fits on the transitions of ``test``, in closed form on ``every`` (the log of all
    arms; ``test`` where there is none); those of ``train`` only say which actions are known.

    Of the policies named in ``pool`` the best goes on, see :func:`training.evaluation.pool.choose`: it is
    called ``challenger`` in the record, the others keep their names. ``static`` must be there, then.

    Returns the record:

    - ``chosen`` and ``pool`` (with ``pool`` given): the challenger's name among the pool, and of each member
      its difference to static weights, in intervals that hold for all of them at once;
    - ``trusted``: whether the session estimator explains what every arm is known to have returned, and
      ``arms`` how well; null and empty where it was not asked for;
    - ``pareto``: what the menus of ``leanings`` (by factor of the reward's interaction part) and the
      regression's own bring in both parts (:func:`training.evaluation.pareto.sweep`), or null;
    - ``estimates``: per policy ``lower``, ``value``, ``upper`` (discounted return of a session, by
      ``gate.estimator``), ``alarm`` and its ``alarm_reasons`` (the value is not to be trusted),
      ``bound_share``, ``action_quantiles`` per head, ``mean_distance_to_logged``;
    - ``differences``: ``"a - b"`` for every ordered pair, by the same estimator, paired by resample;
    - ``estimators`` and ``estimator_differences``: the same by each of ``evaluation.estimators``, with
      ``warnings``; ``unavailable`` says why a weighted one is missing, or is null;
    - ``overlap``: how much of the log speaks of a policy (:func:`training.evaluation.importance.overlap`);
    - ``jump``: ``"a vs b"``, mean |a − a'| on the test states;
    - ``calibration``: ``estimate`` of the logging policy by the gate's estimator (by the paper's where the
      gate's is a weighted one), the ``observed`` discounted return of the test's whole sessions,
      ``sessions``, and ``bias`` (estimate − observed); ``calibrations``: by each fitted estimator;
    - ``test``: what it rests on.

    Raises :class:`DataError` when ``test`` has no two sessions or no initial state, or the gate's
    estimator cannot be had from it.
    """
    how, gamma = settings.evaluation, settings.learner.gamma
    sessions, initial = len(torch.unique(test.sessions)), int((test.steps == 0).sum())
    if sessions < 2 or initial == 0:
        raise DataError(
            f"the test split has {sessions} sessions and {initial} initial states; raise "
            f"evaluation.test_share ({how.test_share}) or wait for more data"
        )
    log = test if every is None else every
    if not {*FITTED, *WEIGHTED} & {*how.estimators}:  # else they only say where policies act
        test = test.take(_some(test, seed))
    acts = acting.act(test, policies)
    with reproducible(settings.learner.threads):
        closed, session = closed_forms(log, policies, settings, seed, leanings)
        judgement = estimate(test, acts, settings, seed, closed)
    swept = None
    if leanings and session is not None:
        swept = pareto.sweep(session.parts, policies, leanings)
        for point in swept["points"]:
            policy = leanings.get(point["factor"]) or policies[return_regression.MENU]
            point |= _stable(policy, policies.get("champion"), test)
            value = sum(session.parts[part].estimates.values[point["name"]] for part in PARTS)
            point["alarm_reasons"] = _alarms(value, 0.0, test, math.inf, how.gamma)
    picked = None
    if pool and settings.gate.estimator in judgement.estimates:
        picked = choose(judgement.estimates[settings.gate.estimator], pool)
        names = {picked["chosen"]: "challenger"}
        policies, acts = renamed(policies, names), renamed(acts, names)
        judgement = judgement.renamed(names)
    chosen = judgement.estimates.get(settings.gate.estimator)
    if chosen is None:
        raise DataError(f"gate.estimator {settings.gate.estimator} cannot be had: {judgement.unavailable}")
    actions = {name: act.here.numpy() for name, act in acts.items()}
    logged = stability.LoggedActions(torch.cat([train.actions, test.actions]).numpy(), seed)
    heads = [head.name for head in settings.heads]
    observed = trajectories.whole_sessions(test, gamma)
    calibrations = {
        name: _calibration(estimates.interval(LOGGED), observed, how.confidence)
        for name, estimates in judgement.estimates.items()
        if LOGGED in estimates.values
    }
    records: dict[str, dict[str, Any]] = {}
    estimators: dict[str, dict[str, Any]] = {name: {} for name in judgement.estimates}
    for name in policies:
        interval = chosen.interval(name)
        distance = float(logged.distances(actions[name]).mean())
        # the closed forms say in their intervals how far the log has looked
        in_closed_form = settings.gate.estimator in CLOSED
        threshold = math.inf if in_closed_form else logged.threshold
        discount = how.gamma if in_closed_form else gamma
        reasons = _alarms(interval["value"], distance, test, threshold, discount)
        if settings.gate.estimator in WEIGHTED:
            overlap = judgement.overlap[name]
            if overlap["effective_sessions"] < how.min_effective_sessions:
                reasons.append(
                    f"{overlap['effective_sessions']:.1f} effective sessions of {overlap['sessions']}, less "
                    f"than {how.min_effective_sessions:g}"
                )
        records[name] = {
            **interval,
            "alarm": bool(reasons),
            "alarm_reasons": reasons,
            "bound_share": stability.bound_share(actions[name]),
            "action_quantiles": stability.action_quantiles(actions[name], heads),
            "mean_distance_to_logged": distance,
            "version": policies[name].version,
        }
        for estimator, estimates in judgement.estimates.items():
            own = estimates.interval(name)
            estimators[estimator][name] = {
                **own,
                "warnings": [
                    *judgement.warnings[estimator][name],
                    *_alarms(
                        own["value"],
                        distance,
                        test,
                        math.inf if estimator in CLOSED else logged.threshold,
                        how.gamma if estimator in CLOSED else gamma,
                    ),
                    *_miscalibrated(calibrations.get(estimator)),
                ],
            }
    pairs = list(permutations(policies, 2))
    differences = {
        estimator: {f"{a} - {b}": estimates.difference(a, b) for a, b in pairs}
        for estimator, estimates in judgement.estimates.items()
    }
    fitted = settings.gate.estimator if settings.gate.estimator in calibrations else "conservative_ope"
    return {
        **(picked or {}),
        "trusted": None if session is None else session.trusted,
        "arms": {} if session is None else dict(session.arms),
        "misfit": None if session is None else session.misfit,
        "pareto": swept,
        "estimates": records,
        "differences": differences[settings.gate.estimator],
        "estimators": estimators,
        "estimator_differences": differences,
        "unavailable": judgement.unavailable,
        "overlap": dict(judgement.overlap),
        "jump": {f"{a} vs {b}": stability.jump(actions[a], actions[b]) for a, b in pairs},
        "calibration": calibrations.get(fitted),
        "calibrations": calibrations,
        "test": {
            "transitions": len(test),
            "sessions": sessions,
            "initial_states": min(initial, how.initial_states),
            "arms": test.arm_counts(),
            "estimator": settings.gate.estimator,
            "replicates": how.replicates,
            "steps": how.steps,
            "confidence": how.confidence,
            "distance_threshold": logged.threshold,
        },
    }


def _some(data: Transitions, seed: int) -> torch.Tensor:
    """int64[n], ascending: a sample of rows, of at most :data:`_ROWS`."""
    rows = np.random.default_rng(seed).permutation(len(data))[:_ROWS]
    return torch.from_numpy(np.sort(rows))


def _stable(policy: Policy, champion: Policy | None, test: Transitions) -> dict[str, Any]:
    """What the gate asks of a policy's actions: its ``bound_share``, and its ``jump`` from the champion."""
    states = test.states.numpy()
    actions = policy.act_in_parts(states)
    jump = None if champion is None else stability.jump(actions, champion.act_in_parts(states))
    return {"bound_share": stability.bound_share(actions), "jump": jump}


def _alarms(value: float, distance: float, test: Transitions, threshold: float, gamma: float) -> list[str]:
    """Why a policy's value is an alarm and not a value (method §4); empty when nothing speaks against."""
    reasons = []
    if distance > threshold:
        reasons.append(
            f"its actions lie {distance:.3f} from the nearest logged one on average; 99 % of the logged "
            f"actions have another within {threshold:.3f}"
        )
    # requests of the longest session there is, where nothing is discounted
    requests = 1.0 / (1.0 - gamma) if gamma < 1.0 else float(test.steps.max()) + 1.0
    low = min(0.0, float(test.rewards.min())) * requests
    high = max(0.0, float(test.rewards.max())) * requests
    if not low <= value <= high:
        reasons.append(
            f"value {value:.3f} is impossible: rewards bound the return to [{low:.3f}, {high:.3f}]"
        )
    return reasons


def _calibration(estimate: Interval, observed: np.ndarray, confidence: float) -> dict[str, Any]:
    """The estimate of the logging policy against what its whole sessions returned, float64[sessions].

    A session is whole when it begins with step 0 and its end is known. ``observed`` and ``bias`` are
    null when fewer than two are; the interval of ``bias`` treats the two as independent, which is wide.
    """
    if len(observed) < 2:
        return {"estimate": estimate, "observed": None, "bias": None, "sessions": len(observed)}
    returned = mean_interval(observed, confidence)
    bias = estimate["value"] - returned["value"]
    wide = float(np.hypot(returned["upper"] - returned["value"], estimate["upper"] - estimate["value"]))
    return {
        "estimate": estimate,
        "observed": returned,
        "bias": {"lower": bias - wide, "value": bias, "upper": bias + wide},
        "sessions": len(observed),
    }


def _miscalibrated(calibration: Mapping[str, Any] | None) -> list[str]:
    """A warning when an estimator misses what the logging policy is known to have returned."""
    if calibration is None or calibration["bias"] is None:
        return []
    bias = calibration["bias"]
    if bias["lower"] <= 0.0 <= bias["upper"]:
        return []
    return [f"it values the logging policy {bias['value']:+.3f} off what its sessions returned"]
