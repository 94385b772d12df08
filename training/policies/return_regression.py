"""Weights from a regression of session returns: one vector for all, or a short menu of them.

In closed form, from the statistics of the whole log (:mod:`training.returns`). The *constant* is

    c = argmax_a  E[Δ(a)] − κ · sd[Δ(a)],   Δ(a) = V(a) − V(static),

with mean and deviation of the posterior: a trust region by evidence, which reaches as far as the log has
looked and no further. The *menu* is a policy. The model says in a few traits u of the state what users differ
in (:func:`training.returns.model.traits`); for the centres u_j of J clusters of the users' traits

    a_j = argmax_a  E[V(a) − V(c) | u_j] − κ' · sd[V(a) − V(c) | u_j],

and a state gets the vector, c among them, with the largest E[V(a_j) − V(c) | u(s)] less the same deviations,
which is linear in the state: b_j + wⱼᵀ(s − s̄). Where the log cannot tell who wants what, all of them get c.
Both are one small product a request, and can be read: what c is, and who gets what instead.

A *sweep* is a menu for each of several rewards, which weigh what users do against the time that they stay.
All come from the statistics of one pass over the log (:class:`training.returns.Parts`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2

from training import returns
from training.contract.arrays import Float64Array
from training.contract.fusion import Fusion
from training.contract.policy import Actor, make_actor
from training.contract.settings import ReturnRegressionSettings
from training.returns import Parts, ReturnModel, Surface
from training.trajectories import Transitions
from training.trajectories.requests import Log, Targets, log_of

CONSTANT, MENU = "constant", "return_regression"
ALGORITHMS = (CONSTANT, MENU)
_STATES = 4_000  # of the log, that a menu is chosen on


class _Effort(NamedTuple):
    """Of a search: actions tried around those known and anywhere, then near the best of each round."""

    around: int
    anywhere: int
    near: int
    best: int
    rounds: int


_FROM_NOTHING, _FROM_KNOWN = _Effort(3_000, 1_000, 500, 40, 9), _Effort(500, 200, 250, 30, 8)


@dataclass(frozen=True)
class Proposal:
    """A policy as :func:`training.contract.policy.save_policy` takes it, and what a person reads of it."""

    kind: str
    tensors: Mapping[str, np.ndarray]
    options: Mapping[str, Any]
    summary: Mapping[str, Any]

    def actor(self) -> Actor:
        """What serves, as it would be read from its file."""
        tensors = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in self.tensors.items()}
        return make_actor(self.kind, tensors, self.options)


def leaning_name(factor: float) -> str:
    """What the menu is called whose reward counts the interaction part ``factor`` times."""
    return MENU if factor == 1.0 else f"{MENU} x{factor:g}"


def propose(
    fusion: Fusion,
    how: ReturnRegressionSettings,
    data: Transitions | Log,
    seed: int,
    leanings: Sequence[float] = (),
) -> dict[str, Proposal]:
    """The constant and the menu that the log of all arms speaks for; and a menu of each of ``leanings``, by
    :func:`leaning_name`.

    ``data`` holds whole sessions of every arm. Deterministic in ``seed``. Raises
    :class:`~training.contract.errors.DataError` for fewer than 50 sessions.
    """
    log, of = log_of(data), Targets(how.gamma, parts=bool(leanings))
    chosen = some_sessions(log.counts(of).sessions, seed)
    model, sums, states = returns.learn_log(fusion, log, of, how.rank, chosen)
    found = from_model(model, states, how, seed)
    if not leanings:
        return found
    return found | sweep(model, sums.parts, leanings, found[MENU], states, how, seed)


def some_sessions(count: int, seed: int) -> np.ndarray:
    """Of a log's sessions those, int64[n], on whose initial states proposals are chosen."""
    return np.random.default_rng(seed).permutation(count)[:_STATES]


def initial_states(data: Transitions, seed: int) -> Float64Array:
    """States float64[n, d] of these sessions' first requests."""
    first = np.flatnonzero(data.steps.numpy() == 0)
    return data.states[first[some_sessions(len(first), seed)]].numpy().astype(np.float64)


def from_model(
    model: ReturnModel,
    states: Float64Array,
    how: ReturnRegressionSettings,
    seed: int,
    known: Float64Array | None = None,
) -> dict[str, Proposal]:
    """What the model speaks for, on users like those of ``states`` float64[n, d]; sought near actions
    ``known`` [n, k] to be good for a reward much like its own, where they are given."""
    fusion, rng = model.features.fusion, np.random.default_rng(seed)
    mean = states.mean(axis=0)
    constant, gain = best_action(
        model.surface(mean), fusion.static_action, how.caution, how.margin, rng, known
    )
    about = {
        "sessions": model.design.rows,
        "explained": model.explained,
        "design_effect": model.design_effect,
        "weights": dict(zip(fusion.names, fusion.to_weights(constant).tolist(), strict=True)),
        "gain_over_static": gain,
    }
    menu, who = _menu(model, states, constant, how, rng, known)
    return {
        CONSTANT: Proposal("constant", {"action": constant}, {}, about),
        MENU: Proposal("menu", menu, {}, about | who),
    }


def sweep(
    model: ReturnModel,
    parts: Parts,
    leanings: Iterable[float],
    menu: Proposal,
    states: Float64Array,
    how: ReturnRegressionSettings,
    seed: int,
) -> dict[str, Proposal]:
    """By :func:`leaning_name` a menu for each of ``leanings`` but 1, whose are ``model`` and ``menu``.

    From 1 outwards, each from where the one before ended: neighbours have much the same penalties and menus.
    """
    found, factors = {}, sorted(leanings)
    for way in ([f for f in factors if f > 1.0], [f for f in reversed(factors) if f < 1.0]):
        near, like = menu.tensors["actions"], model
        for factor in way:
            like = returns.fit_like(like, parts.leaning(factor))
            one = from_model(like, states, how, seed, near)[MENU]
            found[leaning_name(factor)], near = one, one.tensors["actions"]
    return found


def best_action(
    surface: Surface,
    origin: np.ndarray,
    caution: float,
    margin: float,
    rng: np.random.Generator,
    known: Float64Array | None = None,
) -> tuple[Float64Array, dict[str, float]]:
    """argmax of E[Δ] − ``caution`` · sd[Δ] over actions, Δ the difference to ``origin`` [k] in one state.

    By a random search that closes in on its best (the posterior is a cheap function of 8 or so numbers, with
    more than one summit). Where good actions ``known`` [n, k] are told it begins there, with a third of the
    effort. Returns the action float64[k] and Δ's ``value`` and ``deviation``.
    """
    origin = np.asarray(origin, dtype=np.float64)
    k, most = len(origin), 1.0 - margin
    start, effort = origin[None], _FROM_NOTHING
    if known is not None:
        start, effort = np.vstack([origin, known]), _FROM_KNOWN
    steps = rng.normal(size=(effort.around, k)) * rng.uniform(0.05, 1.0, (effort.around, 1))
    around = np.clip(np.resize(start, steps.shape) + steps, -most, most)
    tried = np.vstack([start, around, rng.uniform(-most, most, (effort.anywhere, k))])
    for nth in range(effort.rounds):
        value, deviation = surface.gains(tried, origin)
        best = tried[np.argsort(caution * deviation - value, kind="stable")[: effort.best]]
        steps = rng.normal(size=(effort.near, k)) * 0.3 * 0.7**nth
        tried = np.vstack([best, np.clip(best[rng.integers(0, len(best), len(steps))] + steps, -most, most)])
    value, deviation = surface.gains(tried, origin)
    chosen = int(np.argmax(value - caution * deviation))
    return tried[chosen], {"value": float(value[chosen]), "deviation": float(deviation[chosen])}


def _menu(
    model: ReturnModel,
    states: Float64Array,
    constant: Float64Array,
    how: ReturnRegressionSettings,
    rng: np.random.Generator,
    known: Float64Array | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of the menu policy, and what it promises over the constant."""
    mean, found, price = states.mean(axis=0), [constant], [0.0]
    for centre in _centres(model, states, how.menu - 1, rng):
        surface = model.surface(centre)
        action, gain = best_action(surface, constant, how.menu_caution, how.margin, rng, known)
        if gain["value"] > how.menu_caution * gain["deviation"]:
            found.append(action)
            price.append(how.menu_caution * gain["deviation"])
    actions = np.stack(found)
    bias = model.surface(mean).gains(actions, constant)[0] - np.array(price)
    slopes = model.slopes(actions)
    weights = slopes - slopes[0]
    worth = bias + (states - mean) @ weights.T
    taken = np.bincount(worth.argmax(axis=1), minlength=len(actions)) / len(states)
    kept = np.flatnonzero((taken > 0.0) | (np.arange(len(actions)) == 0))
    tensors = {"actions": actions[kept], "bias": bias[kept], "weights": weights[kept], "mean": mean}
    return tensors, {
        "menu": len(kept),
        "share_of_the_constant": float(taken[0]),
        "gain_over_the_constant": float(worth.max(axis=1).mean()),
    }


def _centres(
    model: ReturnModel, states: Float64Array, count: int, rng: np.random.Generator
) -> list[Float64Array]:
    """Mean states float64[d] of at most ``count`` clusters of states [n, d], by their traits (k-means)."""
    traits = model.features.of_states(states)
    count = min(count, len(np.unique(traits, axis=0)))
    if count < 1 or not model.features.traits:
        return []
    _, label = kmeans2(traits, count, minit="++", rng=rng)
    return [states[label == cluster].mean(axis=0) for cluster in np.unique(label)]
