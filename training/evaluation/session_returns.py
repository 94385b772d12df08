"""The session estimator: what a policy's weights, held over a session, return by the model of the whole log.

V̂(π) = level + mean of E[θᵀ z(s, π(s))] over the states s that π would meet
(:mod:`training.evaluation.visited`): the direct method on session returns (:mod:`training.returns`), with the
posterior as its uncertainty. A difference of two policies is a linear functional of θ, so its interval is
exact given the model.

The users are split in halves, each with a model of its own, and V̂ is the mean of both. What the closed
forms propose is the best that *their* model knows of, which flatters it: so they are made again from each
half, and judged by the other's model (cross-fitting). The intervals of the halves are independent. A
champion that a closed form has made of some of these days is flattered likewise: what the pool's own policy
of its kind loses by being made again is taken from it, by the share of the log that it was made of.

What the arms are known to have returned tests the models on the half that they have not seen, and widens
the intervals: the mean residual of each arm's sessions has an error of its own, and what the residuals
scatter beyond these errors, τ², is added to the variance of every policy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from training import returns
from training.contract.policy import Policy
from training.contract.settings import Settings
from training.evaluation.intervals import Estimates
from training.evaluation.visited import Visited
from training.policies import return_regression
from training.returns import ReturnModel
from training.returns.statistics import CLUSTERS, cluster_of, returns_to_go
from training.trajectories import Transitions

_DRAWS = 400  # of the posterior
_STATES = 4_000  # that policies act on, about


@dataclass(frozen=True)
class SessionReturns:
    """``estimates``; ``arms``: by arm its ``sessions``, what they ``observed``, what the model ``predicted``,
    the ``error`` of that, and whether it is ``explained``; ``misfit`` is τ, in units of the return."""

    estimates: Estimates
    arms: Mapping[str, Mapping[str, Any]]
    misfit: float

    @property
    def trusted(self) -> bool:
        """Whether the model explains what every arm is known to have returned."""
        return all(arm["explained"] for arm in self.arms.values())


def estimate(
    data: Transitions,
    recent: Transitions,
    policies: Mapping[str, Policy],
    settings: Settings,
    seed: int,
) -> SessionReturns:
    """Estimates on ``data`` of all arms; ``policies`` are followed through sessions of ``recent``, rows of
    it. Those named as an algorithm in closed form are made again from halves of the users.

    Raises :class:`~training.contract.errors.DataError` for fewer than 100 sessions.
    """
    how = settings.evaluation
    half = np.arange(CLUSTERS) % 2
    half_of = torch.from_numpy(half[cluster_of(data.users.numpy())])
    rank = settings.learner.return_regression.rank
    models = [returns.learn(settings.fusion, data.take(half_of == k), how.gamma, rank) for k in range(2)]
    spec = next(iter(policies.values())).header.spec
    visited = Visited(recent, spec, _STATES, seed)
    refit = [name for name in policies if name in return_regression.ALGORITHMS]
    met = {name: visited.by(policy.act_in_parts) for name, policy in policies.items()}
    rng = np.random.default_rng(seed)
    flattery = np.zeros(len(policies))  # what an own policy has above itself made again
    value, draws = np.zeros(len(policies)), np.zeros((_DRAWS, len(policies)))
    for model, other in zip(models, reversed(models), strict=True):
        served = dict(met)
        if refit:
            first = return_regression.initial_states(data, seed)
            proposed = return_regression.from_model(other, first, settings.learner.return_regression, seed)
            served |= {name: visited.by(proposed[name].actor()) for name in refit}
        functionals = np.stack([model.functional(*served[name]) for name in policies])
        functionals[:, : data.states.shape[1]] = 0.0  # whoever serves meets the same users
        mean, covariance = model.effects(functionals)
        for place, name in enumerate(policies):
            if name in refit:
                own = model.functional(*met[name])
                own[: data.states.shape[1]] = 0.0
                flattery[place] += 0.5 * (own @ model.theta - mean[place])
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        value += 0.5 * (model.level + mean)
        draws += 0.5 * rng.normal(size=draws.shape) @ root.T
    names = list(policies)
    for place, name in enumerate(names):
        kind = policies[name].header.lineage.get("algorithm")
        if name not in refit and kind in refit:
            value[place] -= _share_made_of(policies[name], data) * flattery[names.index(kind)]
    arms, misfit = _fit_of_arms(models, half, data, settings)
    draws += misfit * rng.normal(size=draws.shape)
    draws -= draws.mean(axis=0)
    return SessionReturns(
        Estimates(
            values={name: float(value[p]) for p, name in enumerate(policies)},
            replicates={name: value[p] + draws[:, p] for p, name in enumerate(policies)},
            confidence=how.confidence,
        ),
        arms,
        misfit,
    )


def _share_made_of(policy: Policy, data: Transitions) -> float:
    """The share of the log that a policy was made of, by the rows of its days; 0 for one without lineage."""
    rows = sum(day["rows"] for day in policy.header.lineage.get("partitions", {}).values())
    return min(1.0, rows / len(data))


def _fit_of_arms(
    models: Sequence[ReturnModel], half: np.ndarray, data: Transitions, settings: Settings
) -> tuple[dict[str, dict[str, Any]], float]:
    """How the models fit the sessions of each arm among the users that they have not seen, and τ."""
    how = settings.evaluation
    y = returns_to_go(data, how.gamma)
    first = np.flatnonzero(data.steps.numpy() == 0)
    predicted = np.zeros(len(first))
    halves = half[cluster_of(data.users.numpy()[first])]
    for k, model in enumerate(reversed(models)):
        for part in np.array_split(np.flatnonzero(halves == k), max(1, -(-len(first) // 4_096))):
            rows = first[part]
            z = model.features.rows(data.states[rows].numpy(), data.actions[rows].numpy())
            predicted[part] = model.level + model.standardised(z) @ model.theta
    left, arms = y[first] - predicted, data.arms.numpy()[first]
    # the halves' levels differ by luck, which is no arm's
    for k in range(2):
        left[halves == k] -= left[halves == k].mean()
    noise = float(np.mean([model.noise * model.design_effect for model in models]))
    found, excess = {}, []
    known = [(i, name) for i, name in enumerate(data.arm_names) if (arms == i).sum() >= how.min_arm_sessions]
    # with this confidence all arms at once
    quantile = norm.ppf(0.5 + 0.5 * how.confidence ** (1.0 / max(len(known), 1)))
    for index, name in known:
        own = left[arms == index]
        # of the arm's mean, and of the model's mean of it, which rests on as many sessions
        error = math.sqrt(2.0 * noise / len(own))
        residual = float(own.mean())
        excess.append(residual**2 - error**2)
        found[name] = {
            "sessions": len(own),
            "observed": float(y[first][arms == index].mean()),
            "predicted": float(y[first][arms == index].mean()) - residual,
            "error": error,
            "explained": bool(abs(residual) <= quantile * error),
        }
    return found, math.sqrt(max(0.0, sum(excess) / len(excess))) if excess else 0.0
