"""The posterior of session returns given the statistics, with the penalties that the evidence asks for.

y = zᵀθ + ε,  ε ~ N(0, σ²),  θ_j ~ N(0, τ_g²) for the features j of a group g: Bayesian linear regression
whose variances σ² and τ_g² maximise the marginal likelihood (MacKay, "Bayesian interpolation", 1992, the
fixed point of γ_g = p_g − tr Σ_g / τ_g²). A group that the log says nothing of goes to τ_g = 0 by itself: a
small log keeps the constant, a large one learns what the state has to do with the weights, each entry or
trait of which has groups of its own (automatic relevance determination).

:func:`learn` fits twice: with every entry of the state, for the few traits along which users differ in what
they want, and with these traits, for what each of them wants.

Rows of one user are not independent. The design effect, the variance of the score over clusters of users
against what independent rows would have, divides all statistics: the posterior is as wide as the users allow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack
from scipy.sparse import csr_array

from training.contract.arrays import Float64Array
from training.contract.errors import DataError
from training.contract.fusion import Fusion
from training.returns.design import Design
from training.returns.features import Features
from training.returns.statistics import Parts, Statistics, Sums, entries_of_log, of_log
from training.trajectories import Transitions
from training.trajectories.requests import Log, Targets, log_of

LEAST = 50  # sessions
_ROUNDS, _ROUNDS_FROM_LIKE = 60, 8
_TOLERANCE = 2e-2  # gain of a round in log evidence, under which the fixed point is called reached
_LEAST, _MOST = 1e-7, 10.0  # τ² of a standardised feature, in σ²
_OUT = 0.05  # n τ² in σ² of a group that is falling: of what it could say, the log tells less than this share
_STILL = 0.1  # of an entry's deviation among all requests: below it a first request says nothing of it
_FREE = 100.0  # τ² of the state's own part, in σ²: hardly any penalty
_CAUTION = 0.25  # of the largest group of a surface: no other one's share of its variance is taken to be less


@dataclass(frozen=True)
class ReturnModel:
    """Posterior N(``theta``, ``covariance``) of the standardised features' effects on a session's return.

    ``level`` is the mean return of the rows, ``b`` Σ z (y − level) float64[p]; ``variances`` are τ² by group,
    ``noise`` is σ², both per row; ``design_effect`` has been taken into the covariance. ``explained`` is the
    share of the returns' variance (R²).
    """

    design: Design
    b: Float64Array
    theta: Float64Array
    covariance: Float64Array
    level: float
    variances: Mapping[str, float]
    noise: float
    design_effect: float
    explained: float

    @property
    def features(self) -> Features:
        return self.design.features

    def cautious(self) -> "ReturnModel":
        """The posterior for judging: what the evidence has left out of a surface may be there.

        The fixed point takes τ_g² = 0 for what the log shows no sign of. That is how one should act, and not
        how sure one may be: a log of 5,000 sessions says of squares, products and cosines that they are none
        as often as that they are. So no group of a surface, the common one or a trait's, is taken to be less
        than half as large (in deviation: :data:`_CAUTION` in variance) as the surface's largest; and this not
        smaller than the log could have seen, which is an effect of σ² / n for each weight.
        """
        members = self.design.members()
        variances = dict(self.variances)
        unseen = self.features.k * self.noise * self.design_effect / self.design.rows
        for surface in self.features.surfaces:
            own = [name for name in surface if name in members]
            most = max([unseen, *(variances[name] * len(members[name]) for name in own)])
            variances |= {name: max(variances[name], _CAUTION * most / len(members[name])) for name in own}
        theta, covariance = _posterior(
            self.design, self.b, self.design_effect, self.noise, variances, members
        )
        return replace(self, theta=theta, covariance=covariance, variances=variances)

    def action_variances(self) -> Float64Array:
        """τ² of each feature of an action (:meth:`Features.of_actions`, not standardised), float64[features]:
        how much its effect, common to all states, was allowed to be."""
        found = np.zeros(self.features.action.stop - self.features.action.start)
        for name in self.features.surfaces[0]:
            part = self.features.groups[name]
            at = slice(part.start - self.features.action.start, part.stop - self.features.action.start)
            found[at] = self.variances.get(name, 0.0) * self.design.scale[part.start - 1 : part.stop - 1] ** 2
        return found

    def functional(
        self, states: np.ndarray, actions: np.ndarray, weights: np.ndarray | None = None
    ) -> Float64Array:
        """float64[p], the mean of the standardised features over pairs of states [n, d] and actions [n, k]:
        its product with θ is the policy's mean return, less :attr:`level`. ``weights`` [n], else equal."""
        return self.design.change @ self.features.mean_row(states, actions, weights)

    def predicted(self, states: np.ndarray, actions: np.ndarray) -> Float64Array:
        """What sessions that begin in states [n, d] and hold actions [n, k] return, float64[n]."""
        found: Float64Array = self.level + self.features.rows(states, actions) @ (
            self.design.change.T @ self.theta
        )
        return found

    def surface(self, state: Float64Array) -> "Surface":
        """What the actions return to users in one state [d]."""
        features, scale = self.features, self.design.scale
        own = np.arange(features.action.start, features.action.stop) - 1
        of_action = np.zeros((len(self.theta), len(own)))  # standardised features by those of an action
        of_action[own, np.arange(len(own))] = scale[own]
        for trait, u in enumerate(features.of_states(state - self.design.centre[: features.d])):
            rows = features.products.start - 1 + trait * features.modulated + np.arange(features.modulated)
            of_action[rows, np.arange(features.modulated)] = u * scale[rows]
        few = csr_array(of_action.T)  # a number a trait in every row
        return Surface(features, few @ self.theta, few @ (few @ self.covariance).T)

    def slopes(self, actions: Float64Array) -> Float64Array:
        """float64[n, d]: what each of actions [n, k] returns more by a unit of each entry of the state."""
        features, part = self.features, slice(self.features.products.start - 1, None)
        by_trait = (self.theta[part] * self.design.scale[part]).reshape(features.traits, features.modulated)
        of_action = features.of_actions(actions)[:, : features.modulated] @ by_trait.T
        return of_action if features.projection is None else of_action @ features.projection.T

    def effects(self, functionals: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Means float64[m] and covariance float64[m, m] of functionals float64[m, p]."""
        return functionals @ self.theta, functionals @ self.covariance @ functionals.T


@dataclass(frozen=True)
class Surface:
    """Posterior N(``theta``, ``covariance``) in one state of the effects of :meth:`Features.of_actions`."""

    features: Features
    theta: Float64Array
    covariance: Float64Array

    def gains(self, actions: Float64Array, origin: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Mean and deviation float64[n] of what actions [n, k] return more than ``origin`` [k]."""
        differences = self.features.of_actions(actions) - self.features.of_actions(origin[None])
        variance = np.einsum("ij,ij->i", differences @ self.covariance, differences)
        return differences @ self.theta, np.sqrt(np.maximum(variance, 0.0))


def learn(fusion: Fusion, data: Transitions | Log, gamma: float, rank: int) -> ReturnModel:
    """The model of a log of whole sessions, with at most ``rank`` traits of the state.

    ``gamma`` discounts the return-to-go. Raises :class:`DataError` for fewer than :data:`LEAST` sessions.
    """
    return learn_log(fusion, log_of(data), Targets(gamma), rank).model


def learn_parts(
    fusion: Fusion, data: Transitions | Log, gamma: float, rank: int
) -> tuple[ReturnModel, Parts]:
    """The same model, and the statistics of both parts of the reward, with the same traits.

    Raises as :func:`learn`, and ValueError where ``data`` was loaded without its ``watch_rewards``.
    """
    learnt = learn_log(fusion, log_of(data), Targets(gamma, parts=True), rank)
    return learnt.model, learnt.sums.parts


class Learnt(NamedTuple):
    """A log's model, the sums that it is made of, and the initial states [m, d] that were asked for."""

    model: ReturnModel
    sums: Sums
    initial: Float64Array


_NONE = np.zeros(0, dtype=np.int64)


def learn_log(fusion: Fusion, log: Log, of: Targets, rank: int, initial: np.ndarray = _NONE) -> Learnt:
    """In three passes over the log: its counts, every entry, the traits. ``initial`` int64[m] are numbers of
    sessions whose first states are asked for."""
    entries = Features(fusion, log.width())
    found = entries_of_log(entries, log, of, np.sort(initial))
    statistics = found.sums.whole
    projection = traits(fit(entries, statistics), statistics, rank, found.spread.deviation)
    features = Features(fusion, entries.d, projection)
    sums = of_log(features, log, of)
    states = found.initial.states[np.argsort(found.initial.numbers)].astype(np.float64)
    return Learnt(fit(features, sums.whole), sums, states[np.argsort(np.argsort(initial))])


def traits(model: ReturnModel, statistics: Statistics, rank: int, spread: Float64Array) -> Float64Array:
    """P float64[d, r], r ≤ ``rank``: the states' directions u = s P that most move what a weight brings.

    With B [d, k] the effects of s ⊗ x and C the states' covariance, s B is what a state changes in the effect
    of each log-share (a deviation of it). P = B V, V the first right singular vectors of C^½ B: the u are
    uncorrelated, of variance 1, the one that explains most first. Directions without any effect are left out.

    So are entries that hardly vary among the rows of the model beside ``spread``, their deviation [d] among
    all requests: those of the session itself, of which a first request has next to nothing. What little they
    say there says nothing of the values that they take later.
    """
    features, rows = model.features, statistics.rows.sum()
    total = statistics.zz.sum(axis=0)
    mean = total[0, features.state] / rows
    covariance = total[features.state, features.state] / rows - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    part = slice(features.products.start - 1, None)
    effects = (model.theta[part] * model.design.scale[part]).reshape(features.d, features.k)
    linear = slice(features.action.start - 1, features.action.start - 1 + features.k)
    scale = model.design.scale[linear]
    per_deviation = effects * np.divide(1.0, scale, out=np.zeros(features.k), where=scale > 0.0)
    per_deviation[np.sqrt(np.maximum(np.diag(covariance), 0.0)) < _STILL * spread] = 0.0
    _, sizes, right = np.linalg.svd(root @ per_deviation, full_matrices=False)
    some = sizes[:rank] > 1e-9 * max(model.noise, 1e-300) ** 0.5
    found: Float64Array = (per_deviation @ right[:rank].T / np.maximum(sizes[:rank], 1e-300))[:, some]
    return found


def fit(features: Features, statistics: Statistics) -> ReturnModel:
    """The model of the statistics. Raises :class:`DataError` for fewer than :data:`LEAST` rows."""
    if statistics.rows.sum() < LEAST:
        raise DataError(
            f"{statistics.rows.sum():.0f} sessions are too few to learn from their returns, which takes "
            f"{LEAST}; wait for more days or explore on more users (serving.shares)"
        )
    targets = _Targets(Design(features, statistics), statistics)
    first = _evidence(targets, 1.0, None, _ROUNDS)
    return _evidence(targets, _design_effect(targets, first), first, _ROUNDS)


def fit_like(model: ReturnModel, statistics: Statistics) -> ReturnModel:
    """The model of the same rows with another reward, from whose penalties and design effect it sets out: a
    few rounds are enough from there."""
    return _evidence(_Targets(model.design, statistics), model.design_effect, model, _ROUNDS_FROM_LIKE)


class _Targets:
    """The centred returns y of a design's rows, their mean ``level``, and sums with them."""

    def __init__(self, design: Design, statistics: Statistics) -> None:
        self.design = design
        self.level = float(statistics.zy.sum(axis=0)[0] / design.rows)
        zy = statistics.zy - self.level * statistics.zz[:, 0, :]
        self.b_of = zy @ design.change.T  # [clusters, p]
        self.b = self.b_of.sum(axis=0)
        self.yy = float(
            (statistics.yy - 2.0 * self.level * statistics.zy[:, 0] + self.level**2 * statistics.rows).sum()
        )


def _evidence(
    targets: _Targets, design_effect: float, like: ReturnModel | None, most_rounds: int
) -> ReturnModel:
    """The fixed point of the marginal likelihood, see the module; sought from the penalties of ``like``.

    Groups that go out on the way are left out of what is inverted: most of them do, in most logs.
    """
    design = targets.design
    n, yy = design.rows / design_effect, targets.yy / design_effect
    inside = design.members()
    noise = yy / n
    variances = {name: 0.01 * noise for name in inside}
    if like is not None:
        least = 2.0 * _OUT / n
        variances = {name: max(like.variances[name] / like.noise, least) * noise for name in inside}
    for _ in range(most_rounds):
        variances["state"] = _FREE * noise
        used = np.concatenate(list(inside.values()))
        a, b = design.a[np.ix_(used, used)] / design_effect, targets.b[used] / design_effect
        own = np.split(np.arange(len(used)), np.cumsum([len(at) for at in inside.values()])[:-1])
        penalty = np.concatenate([np.full(len(at), noise / variances[name]) for name, at in inside.items()])
        inverse = _inverse(a + np.diag(penalty))
        theta = inverse @ b
        determined = 1.0 - np.diag(inverse) * penalty
        left = yy - 2.0 * theta @ b + theta @ a @ theta
        found = {
            name: np.clip(theta[at] @ theta[at] / max(determined[at].sum(), 1e-6), 0.0, _MOST * noise)
            for name, at in zip(inside, own, strict=True)
            if name != "state"
        }
        gone = {name for name, new in found.items() if n * new < _OUT * noise and new < variances[name]}
        gain = sum(
            0.5 * determined[at].sum() * np.log(found[name] / variances[name]) ** 2
            for name, at in zip(inside, own, strict=True)
            if name != "state" and name not in gone
        )
        variances |= found | dict.fromkeys(gone, _LEAST * noise)
        inside = {name: at for name, at in inside.items() if name not in gone}
        noise = left / max(n - determined.sum(), 1.0)
        if gain < _TOLERANCE:
            break
    full_theta, covariance = _spread_out(design, used, theta, inverse * noise, noise)
    return ReturnModel(
        design=design,
        b=targets.b,
        theta=full_theta,
        covariance=covariance,
        level=targets.level,
        variances=variances,
        noise=float(noise),
        design_effect=design_effect,
        explained=float(1.0 - left / yy),
    )


def _posterior(
    design: Design,
    b: Float64Array,
    design_effect: float,
    noise: float,
    variances: Mapping[str, float],
    members: Mapping[str, np.ndarray],
) -> tuple[Float64Array, Float64Array]:
    """θ and its covariance for given σ² and τ² of the groups."""
    used = np.concatenate(list(members.values()))
    penalty = np.concatenate([np.full(len(at), noise / variances[name]) for name, at in members.items()])
    inverse = _inverse(design.a[np.ix_(used, used)] / design_effect + np.diag(penalty))
    return _spread_out(design, used, inverse @ (b[used] / design_effect), inverse * noise, noise)


def _spread_out(
    design: Design, used: np.ndarray, theta: Float64Array, covariance: Float64Array, noise: float
) -> tuple[Float64Array, Float64Array]:
    """θ and covariance over all features, from those of the ``used`` ones."""
    every = np.zeros(len(design.scale))
    every[used] = theta
    of_all = np.diag(np.where(design.scale > 0.0, _LEAST * noise, 0.0))
    of_all[np.ix_(used, used)] = covariance
    return every, of_all


def _inverse(matrix: Float64Array) -> Float64Array:
    """Of a symmetric positive definite matrix, in half of a general one's time."""
    factor, failed = lapack.dpotrf(matrix, lower=1, clean=0)
    lower, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    found: Float64Array = np.tril(lower) + np.tril(lower, -1).T
    return found


def _design_effect(targets: _Targets, posterior: ReturnModel) -> float:
    """Variance of the clusters' scores against that of independent rows, over the actions' features; ≥ 1."""
    design = targets.design
    clusters = int((design.by_cluster > 0).sum())
    if clusters < 2:
        return 1.0
    scores = targets.b_of - design.fitted(posterior.theta)  # Σ z (y − zᵀθ) of each cluster
    at = np.arange(design.features.action.start - 1, design.features.action.stop - 1)
    at = at[design.scale[at] > 0.0]
    between = np.square(scores[:, at] - scores[:, at].mean(axis=0)).sum(axis=0) * clusters / (clusters - 1)
    independent = posterior.noise * np.diag(design.a)[at]
    return max(1.0, float((between / independent).mean()))
