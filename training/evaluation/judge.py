"""Judge policies on the test split: estimates, paired differences, calibration, stability."""

import hashlib
from collections.abc import Mapping
from datetime import date
from itertools import permutations
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t

from training import trajectories
from training.contract.errors import DataError
from training.contract.policy import Policy
from training.contract.settings import Settings
from training.evaluation import conservative_ope, stability
from training.evaluation.conservative_ope import Actions
from training.policies.retrain import reproducible
from training.trajectories import Transitions

_LOGGED = "__logged__"


def evaluate(settings: Settings, day: date, policies: Mapping[str, Policy]) -> dict[str, Any]:
    """Estimate the named policies on the last sessions of the window that ends with ``day``.

    Returns the record:

    - ``estimates``: per policy ``lower``, ``value``, ``upper`` (Conservative-OPEstimator, discounted
      return of a session), ``alarm`` and its ``alarm_reasons`` (the value is not to be trusted),
      ``bound_share``, ``action_quantiles`` per head, ``mean_distance_to_logged``;
    - ``differences``: ``"a - b"`` for every ordered pair, paired by resample;
    - ``jump``: ``"a vs b"``, mean |a − a'| on the test states;
    - ``calibration``: ``estimate`` of the logging policy by the same estimator, the ``observed``
      discounted return of the test's whole sessions, ``sessions``, and ``bias`` (estimate − observed);
    - ``test``: what it rests on.

    Raises :class:`DataError` when the test split has no two sessions or no initial state.
    """
    data = trajectories.load(settings, day)
    test = data.test
    sessions, initial = len(torch.unique(test.sessions)), int((test.steps == 0).sum())
    if sessions < 2 or initial == 0:
        raise DataError(
            f"the test split of {day} has {sessions} sessions and {initial} initial states; raise "
            f"evaluation.test_share ({settings.evaluation.test_share}) or wait for more data"
        )
    seed = int.from_bytes(hashlib.sha256(f"judge/{settings.seed}/{day}".encode()).digest()[:6], "big")
    acts = _acts(test, policies)
    with reproducible(settings.learner.threads):
        estimates = conservative_ope.estimate(
            test,
            acts | {_LOGGED: Actions(test.actions, test.next_actions)},
            settings.evaluation,
            settings.learner.gamma,
            seed,
        )
    actions = {name: act.here.numpy() for name, act in acts.items()}
    logged = stability.LoggedActions(torch.cat([data.train.actions, test.actions]).numpy(), seed)
    heads = [head.name for head in settings.heads]
    records = {}
    for name in policies:
        interval = estimates.interval(name)
        distance = float(logged.distances(actions[name]).mean())
        reasons = _alarms(interval["value"], distance, test, logged.threshold, settings.learner.gamma)
        records[name] = {
            **interval,
            "alarm": bool(reasons),
            "alarm_reasons": reasons,
            "bound_share": stability.bound_share(actions[name]),
            "action_quantiles": stability.action_quantiles(actions[name], heads),
            "mean_distance_to_logged": distance,
            "version": policies[name].version,
        }
    pairs = list(permutations(policies, 2))
    return {
        "estimates": records,
        "differences": {f"{a} - {b}": estimates.difference(a, b) for a, b in pairs},
        "jump": {f"{a} vs {b}": stability.jump(actions[a], actions[b]) for a, b in pairs},
        "calibration": _calibration(
            estimates.interval(_LOGGED), test, settings.learner.gamma, settings.evaluation.confidence
        ),
        "test": {
            "transitions": len(test),
            "sessions": sessions,
            "initial_states": min(initial, settings.evaluation.initial_states),
            "arms": test.arm_counts(),
            "replicates": settings.evaluation.replicates,
            "steps": settings.evaluation.steps,
            "confidence": settings.evaluation.confidence,
            "distance_threshold": logged.threshold,
        },
    }


def _acts(test: Transitions, policies: Mapping[str, Policy]) -> dict[str, Actions]:
    """Every policy's action at s and at s', computed once for all fits and steps.

    Nearly every s' is the s of the next row, so each distinct state is acted on once.
    """
    both = torch.cat([test.states, test.next_states]).numpy()
    states, where = np.unique(both, axis=0, return_inverse=True)
    out = {}
    for name, policy in policies.items():
        actions = torch.from_numpy(policy.act_in_parts(states)[where.ravel()])
        out[name] = Actions(actions[: len(test)], actions[len(test) :])
    return out


def _alarms(value: float, distance: float, test: Transitions, threshold: float, gamma: float) -> list[str]:
    """Why a policy's value is an alarm and not a value (method §4); empty when nothing speaks against."""
    reasons = []
    if distance > threshold:
        reasons.append(
            f"its actions lie {distance:.3f} from the nearest logged one on average; 99 % of the logged "
            f"actions have another within {threshold:.3f}"
        )
    low = min(0.0, float(test.rewards.min())) / (1.0 - gamma)
    high = max(0.0, float(test.rewards.max())) / (1.0 - gamma)
    if not low <= value <= high:
        reasons.append(
            f"value {value:.3f} is impossible: rewards bound the return to [{low:.3f}, {high:.3f}]"
        )
    return reasons


def _calibration(
    estimate: dict[str, float], test: Transitions, gamma: float, confidence: float
) -> dict[str, Any]:
    """The estimate of the logging policy against what its whole sessions returned.

    A session is whole when it begins with step 0 and its end is known. ``observed`` and ``bias`` are
    null when fewer than two are; the interval of ``bias`` treats the two as independent, which is wide.
    """
    returns = whole_session_returns(test, gamma)
    count = len(returns)
    if count < 2:
        return {"estimate": estimate, "observed": None, "bias": None, "sessions": count}
    mean = float(returns.mean())
    half = float(student_t.ppf(0.5 + confidence / 2.0, count - 1) * returns.std(ddof=1) / count**0.5)
    bias = estimate["value"] - mean
    wide = float(np.hypot(half, estimate["upper"] - estimate["value"]))
    return {
        "estimate": estimate,
        "observed": {"lower": mean - half, "value": mean, "upper": mean + half},
        "bias": {"lower": bias - wide, "value": bias, "upper": bias + wide},
        "sessions": count,
    }


def whole_session_returns(data: Transitions, gamma: float) -> np.ndarray:
    """Σ_t γ^t r_t of every session that is there from step 0 to its known end, float64[sessions]."""
    sessions, steps = data.sessions.numpy(), data.steps.numpy()
    size = sessions.max() + 1
    rows = np.bincount(sessions, minlength=size)
    last = np.full(size, -1)
    np.maximum.at(last, sessions, steps)
    ended = np.bincount(sessions, weights=data.dones.numpy(), minlength=size) > 0
    whole = (rows > 0) & ended & (rows == last + 1)
    discounted = gamma**steps * data.rewards.numpy().astype(np.float64)
    return np.bincount(sessions, weights=discounted, minlength=size)[whole]
