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

Where the log shows no sign of something the model leaves it out, which is no way to be sure: the judge's
posterior is :meth:`~training.returns.ReturnModel.cautious`. And a model of weights that hold says nothing of
what a policy brings by *moving* them within a session. Say that the moment changes the effect of each feature
φ_f of the weights by v_f, of the variance τ_f² that the model allows the feature's own effect. Moving then
brings the mean of Σ_f v_f (φ_f(a) − its mean over the session), whose covariance between policies, at worst
(v_f in line with how a policy moves), is

    Σ_f τ_f² · mean over requests of (φ_f(a) − φ̄_f(session)) (φ_f(a') − φ̄_f'(session)).

It is added to the uncertainty; for weights that hold it is 0.

What the arms are known to have returned tests the models on the half that they have not seen, and widens
the intervals: the mean residual of each arm's sessions has an error of its own, and what the residuals
scatter beyond these errors, τ², is added to the variance of every policy.

The parts of the reward, time and interaction, are valued in the same way by models of each part alone. What
is made again from half of the users lies elsewhere on the trade-off between them than what is made from all.
For the whole that is of second order, for a part it is not: half of what the two halves' lie apart, by both
models, is added to the uncertainty, with the same luck for all policies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import norm

from training import returns
from training.contract.arrays import Float32Array, Float64Array
from training.contract.policy import Policy
from training.contract.settings import Settings
from training.evaluation.intervals import Estimates
from training.evaluation.visited import Visited
from training.policies import return_regression
from training.returns import Features, ReturnModel
from training.returns.statistics import CLUSTERS, cluster_of
from training.trajectories import Transitions
from training.trajectories.requests import InMemory
from training.trajectories.to_go import returns_to_go

PARTS = ("time", "interaction")
_DRAWS = 400  # of the posterior
_STATES = 4_000  # that policies act on, about
_HOLDS = 1e-6  # of a feature of the weights: what moves less within every session is rounding

Met = tuple[Float32Array, Float32Array]  # states [n, d] that a policy meets, and its actions [n, k] there


@dataclass(frozen=True)
class SessionReturns:
    """``estimates``; ``arms``: by arm its ``sessions``, what they ``observed``, what the model ``predicted``,
    the ``error`` of that, and whether it is ``explained``; ``misfit`` is τ, in units of the return.
    ``parts``: the same of each of :data:`PARTS` alone, where it was asked for."""

    estimates: Estimates
    arms: Mapping[str, Mapping[str, Any]]
    misfit: float
    parts: Mapping[str, "SessionReturns"] = field(default_factory=dict)

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
    leanings: Mapping[float, Policy] | None = None,
) -> SessionReturns:
    """Estimates on ``data`` of all arms; ``policies`` are followed through sessions of ``recent``, rows of
    it. Those named as an algorithm in closed form are made again from halves of the users.

    With ``leanings``, by factor the menus for rewards that lean so (but 1), all of them and ``policies`` are
    valued by both parts of the reward, too; ``data`` must have its ``watch_rewards``, then.

    Raises :class:`~training.contract.errors.DataError` for fewer than 100 sessions.
    """
    how, regression = settings.evaluation, settings.learner.return_regression
    half = np.arange(CLUSTERS) % 2
    half_of = half[cluster_of(data.users.numpy())]
    models, parts = [], []
    for k in range(2):
        mine = InMemory(data, half_of == k)
        if leanings:
            model, both = returns.learn_parts(settings.fusion, mine, how.gamma, regression.rank)
            parts.append(both)
        else:
            model = returns.learn(settings.fusion, mine, how.gamma, regression.rank)
        models.append(model)
    leaning = {return_regression.leaning_name(factor): one for factor, one in (leanings or {}).items()}
    every = {**policies, **leaning}
    visited = Visited(recent, next(iter(every.values())).header.spec, _STATES, seed)
    refit = [name for name in every if name in return_regression.ALGORITHMS or name in leaning]
    served = {name: visited.by(policy.act_in_parts) for name, policy in every.items()}
    made: list[dict[str, Met]] = [{}, {}]  # those in closed form, as each half makes them
    if refit:
        first = return_regression.initial_states(data, seed)
        for k, model in enumerate(models):
            proposed = return_regression.from_model(model, first, regression, seed)
            if leanings:
                menu = proposed[return_regression.MENU]
                proposed |= return_regression.sweep(model, parts[k], leanings, menu, first, regression, seed)
            made[k] = {name: visited.by(proposed[name].actor()) for name in refit}
    # the parts' models of a half have the features of the whole's, and so the functionals
    known = [
        _Functionals(
            {name: _functional(model, met) for name, met in served.items()},
            {name: _functional(model, met) for name, met in made[1 - k].items()},
            {name: _functional(model, met) for name, met in made[k].items()} if leanings else {},
        )
        for k, model in enumerate(models)
    ]

    moves = _moves(settings, served, visited.sessions)

    def valued(
        fitted: Sequence[ReturnModel],
        names: Sequence[str],
        to_go: Float64Array,
        rng: np.random.Generator,
        of_part: bool,
    ) -> SessionReturns:
        judges = [model.cautious() for model in fitted]
        value, draws = _valued(judges, known, {name: every[name] for name in names}, data, rng, of_part)
        draws += _moving(judges, [moves.get(name) for name in names], rng)
        arms, misfit = _fit_of_arms(judges, half, data, to_go, settings)
        draws += misfit * rng.normal(size=draws.shape)
        draws -= draws.mean(axis=0)
        values = {name: float(value[p]) for p, name in enumerate(names)}
        replicates = {name: value[p] + draws[:, p] for p, name in enumerate(names)}
        return SessionReturns(Estimates(values, replicates, how.confidence), arms, misfit)

    whole = returns_to_go(data, how.gamma)
    found = valued(models, list(policies), whole, np.random.default_rng(seed), False)
    if not leanings:
        return found
    time = returns_to_go(data, how.gamma, data.watch_rewards)
    of_parts = {}
    for place, (part, to_go) in enumerate(zip(PARTS, (time, whole - time), strict=True)):
        fitted = [
            returns.fit_like(model, getattr(own, part)) for model, own in zip(models, parts, strict=True)
        ]
        rng = np.random.default_rng([seed, place])
        of_parts[part] = valued(fitted, list(every), to_go, rng, True)
    return replace(found, parts=of_parts)


@dataclass(frozen=True)
class _Functionals:
    """Of a half's models, float64[p] by name: of what the policies do, and of what those in closed form do
    that the other half makes, and (with leanings) this one."""

    served: Mapping[str, Float64Array]
    of_other: Mapping[str, Float64Array]
    of_own: Mapping[str, Float64Array]


def _functional(model: ReturnModel, met: Met) -> Float64Array:
    functional = model.functional(*met)
    functional[: model.features.d] = 0.0  # whoever serves meets the same users
    return functional


def _moves(settings: Settings, served: Mapping[str, Met], sessions: np.ndarray) -> dict[str, Float64Array]:
    """How policies move their weights within the ``sessions`` int64[n] that they are followed through: the
    deviations of :meth:`Features.of_actions` from their session's mean, [n, features]. Without those that
    hold theirs."""
    found = {}
    width = next(iter(served.values()))[0].shape[1]
    features, requests = Features(settings.fusion, width), np.bincount(sessions)
    of_session = csr_array((1.0 / requests[sessions], (sessions, np.arange(len(sessions)))))
    for name, (_, actions) in served.items():
        seen = features.of_actions(actions)
        moved = seen - (of_session @ seen)[sessions]
        if np.abs(moved).max() > _HOLDS:
            found[name] = moved
    return found


def _moving(
    judges: Sequence[ReturnModel], moves: Sequence[Float64Array | None], rng: np.random.Generator
) -> Float64Array:
    """Draws [draws, policies] of what moving the weights brings; 0 without ``moves``, for what holds them."""
    found = np.zeros((_DRAWS, len(moves)))
    moving = [own for own in moves if own is not None]
    if moving:
        deviation = np.sqrt(np.mean([model.action_variances() for model in judges], axis=0))
        scaled = np.stack([(own * deviation).ravel() for own in moving])
        places = [place for place, own in enumerate(moves) if own is not None]
        found[:, places] = _normal(scaled @ scaled.T / len(moving[0]), rng)
    return found


def _normal(covariance: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Draws float64[draws, m] of N(0, covariance), which need not have full rank."""
    values, vectors = np.linalg.eigh(covariance)
    draws: Float64Array = (
        rng.normal(size=(_DRAWS, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    )
    return draws


def _valued(
    judges: Sequence[ReturnModel],
    known: Sequence[_Functionals],
    policies: Mapping[str, Policy],
    data: Transitions,
    rng: np.random.Generator,
    of_part: bool,
) -> tuple[Float64Array, Float64Array]:
    """What the halves' models say of policies: values float64[policies] and draws about 0 [draws, policies].

    What is in closed form is valued as the other half makes it. ``of_part``: the models are of a part of the
    reward.
    """
    names = list(policies)
    again = known[0].of_other.keys()
    flattery = np.zeros(len(names))  # what an own policy has above itself made again
    apart = np.zeros(len(names))  # what the first half's have above the second's: no model flatters that
    value, draws = np.zeros(len(names)), np.zeros((_DRAWS, len(names)))
    for sign, model, own in zip((1.0, -1.0), judges, known, strict=True):
        functionals = np.stack([own.of_other.get(name, own.served[name]) for name in names])
        mean, covariance = model.effects(functionals)
        for place, name in enumerate(names):
            if name in again:
                flattery[place] += 0.5 * (own.served[name] @ model.theta - mean[place])
                if of_part:
                    apart[place] += 0.5 * sign * (own.of_own[name] @ model.theta - mean[place])
        value += 0.5 * (model.level + mean)
        draws += 0.5 * _normal(covariance, rng)
    if of_part:
        draws += 0.5 * rng.normal(size=(_DRAWS, 1)) * apart
    for place, name in enumerate(names):
        kind = _kind(policies[name], names)
        if name not in again and kind in again and kind in names:
            value[place] -= _share_made_of(policies[name], data) * flattery[names.index(kind)]
    return value, draws


def _kind(policy: Policy, names: Sequence[str]) -> str | None:
    """Which of ``names`` is made as a policy was, by its lineage."""
    lineage = policy.header.lineage
    leaning = return_regression.leaning_name(lineage.get("leaning", 1.0))
    return leaning if "leaning" in lineage and leaning in names else lineage.get("algorithm")


def _share_made_of(policy: Policy, data: Transitions) -> float:
    """The share of the log that a policy was made of, by the rows of its days; 0 for one without lineage."""
    rows = sum(day["rows"] for day in policy.header.lineage.get("partitions", {}).values())
    return min(1.0, rows / len(data))


def _fit_of_arms(
    models: Sequence[ReturnModel], half: np.ndarray, data: Transitions, y: Float64Array, settings: Settings
) -> tuple[dict[str, dict[str, Any]], float]:
    """How the models fit the sessions of each arm among the users that they have not seen, and τ.

    ``y`` float64[N] are the returns-to-go of the rows of ``data``.
    """
    how = settings.evaluation
    first = np.flatnonzero(data.steps.numpy() == 0)
    predicted = np.zeros(len(first))
    halves = half[cluster_of(data.users.numpy()[first])]
    for k, model in enumerate(reversed(models)):
        for part in np.array_split(np.flatnonzero(halves == k), max(1, -(-len(first) // 4_096))):
            rows = first[part]
            predicted[part] = model.predicted(data.states[rows].numpy(), data.actions[rows].numpy())
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
