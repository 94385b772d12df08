"""The session estimator: what a policy's weights, held over a session, return by the model of the whole log.

V̂(π) = level + mean over logged states s of E[θᵀ z(s, π(s))]: the direct method on session returns
(:mod:`training.returns`), with the model's posterior as its uncertainty. A difference of two policies is a
linear functional of θ, so its interval is exact given the model.

What the arms are known to have returned tests the model and widens it: the mean residual of each arm's
sessions has an error of its own, and what the residuals scatter beyond these errors, τ², is added to the
variance of every policy that was not an arm of the log as it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from training import returns
from training.contract.fusion import Fusion
from training.contract.settings import EvaluationSettings
from training.evaluation.acting import Actions
from training.evaluation.intervals import Estimates
from training.returns import ReturnModel
from training.returns.statistics import returns_to_go
from training.trajectories import Transitions

_DRAWS = 400  # of the posterior


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
    at: Transitions,
    policies: Mapping[str, Actions],
    fusion: Fusion,
    settings: EvaluationSettings,
    seed: int,
) -> SessionReturns:
    """Estimates on ``data`` of all arms; ``policies`` act on the states of ``at``, rows of it.

    Raises :class:`~training.contract.errors.DataError` for fewer than 50 sessions.
    """
    features = returns.Features(fusion, data.states.shape[1])
    model = returns.fit(features, returns.of_transitions(features, data, settings.gamma))
    states = at.states.numpy()
    functionals = np.stack([model.functional(states, actions.here.numpy()) for actions in policies.values()])
    functionals[:, : features.d] = 0.0  # whoever serves meets the same users
    mean, covariance = model.effects(functionals)
    arms, misfit = _fit_of_arms(model, data, settings)
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    draws = rng.normal(size=(_DRAWS, len(mean))) @ root.T + misfit * rng.normal(size=(_DRAWS, len(mean)))
    draws -= draws.mean(axis=0)
    return SessionReturns(
        Estimates(
            values={name: model.level + float(mean[p]) for p, name in enumerate(policies)},
            replicates={name: model.level + mean[p] + draws[:, p] for p, name in enumerate(policies)},
            confidence=settings.confidence,
        ),
        arms,
        misfit,
    )


def _fit_of_arms(
    model: ReturnModel, data: Transitions, settings: EvaluationSettings
) -> tuple[dict[str, dict[str, Any]], float]:
    """How the model fits the sessions of each arm, and τ."""
    y, _ = returns_to_go(data, settings.gamma)
    first = np.flatnonzero(data.steps.numpy() == 0)
    arms = data.arms.numpy()[first]
    predicted = np.concatenate(
        [
            model.level
            + model.standardised(model.features.rows(data.states[part].numpy(), data.actions[part].numpy()))
            @ model.theta
            for part in np.array_split(first, max(1, -(-len(first) // 4_096)))
        ]
    )
    left = y[first] - predicted
    found, excess = {}, []
    known = [
        (i, name) for i, name in enumerate(data.arm_names) if (arms == i).sum() >= settings.min_arm_sessions
    ]
    # every arm at once: the level of each is the whole's, split
    quantile = norm.ppf(0.5 + 0.5 * settings.confidence ** (1.0 / max(len(known), 1)))
    for index, name in known:
        own = left[arms == index]
        error = float(np.sqrt(model.noise * model.design_effect / len(own)))
        residual = float(own.mean())
        excess.append(residual**2 - error**2)
        found[name] = {
            "sessions": len(own),
            "observed": float(y[first][arms == index].mean()),
            "predicted": float(predicted[arms == index].mean()),
            "error": error,
            "explained": bool(abs(residual) <= quantile * error),
        }
    return found, math.sqrt(max(0.0, sum(excess) / len(excess))) if excess else 0.0
