"""Weights from a regression of session returns: one vector for all, or a short menu of them.

In closed form, from the statistics of the whole log (:mod:`training.returns`). The *constant* is

    c = argmax_a  E[Δ(a)] − κ · sd[Δ(a)],   Δ(a) = V(a) − V(static),

with mean and deviation of the posterior: a trust region by evidence, which reaches as far as the log has
looked and no further. The *menu* is a policy: of J weight vectors around c, c among them, a state gets
the one with the largest

    b_j + wⱼᵀ(s − s̄),   b_j = E[V(a_j) − V(c)] − κ' · sd[V(a_j) − V(c)],   wⱼ = B (x_j − x_c),

B the posterior mean of the effects s ⊗ x, which the evidence has shrunk: where the log cannot tell who
wants what, all of them get c. Both are one small product a request, and can be read: what c is, and who
gets what instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from training import returns
from training.contract.arrays import Float64Array
from training.contract.fusion import Fusion
from training.contract.policy import Actor, make_actor
from training.contract.settings import ReturnRegressionSettings
from training.returns import ReturnModel
from training.trajectories import Transitions

CONSTANT, MENU = "constant", "return_regression"
ALGORITHMS = (CONSTANT, MENU)
_WIDE, _UNIFORM, _NEAR, _BEST, _ROUNDS = 3_000, 1_000, 1_000, 60, 12  # of the search for c
_STATES = 4_000  # of the log, that a menu is chosen on


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


def propose(
    fusion: Fusion, how: ReturnRegressionSettings, data: Transitions, seed: int
) -> dict[str, Proposal]:
    """The constant and the menu that the log of all arms speaks for.

    ``data`` holds whole sessions of every arm. Deterministic in ``seed``. Raises
    :class:`~training.contract.errors.DataError` for fewer than 50 sessions.
    """
    features = returns.Features(fusion, data.states.shape[1])
    model = returns.fit(features, returns.of_transitions(features, data, how.gamma))
    return from_model(model, initial_states(data, seed), how, seed)


def initial_states(data: Transitions, seed: int) -> Float64Array:
    """States float64[n, d] of some sessions' first requests, that proposals are chosen on."""
    first = np.flatnonzero(data.steps.numpy() == 0)
    chosen = np.random.default_rng(seed).permutation(len(first))[:_STATES]
    return data.states[first[chosen]].numpy().astype(np.float64)


def from_model(
    model: ReturnModel, states: Float64Array, how: ReturnRegressionSettings, seed: int
) -> dict[str, Proposal]:
    """What the model speaks for, on users like those of ``states`` float64[n, d]."""
    fusion, rng = model.features.fusion, np.random.default_rng(seed)
    constant, gain = best_constant(model, states.mean(axis=0), fusion.static_action, how, rng)
    about = {
        "sessions": model.rows,
        "explained": model.explained,
        "design_effect": model.design_effect,
        "weights": dict(zip(fusion.names, fusion.to_weights(constant).tolist(), strict=True)),
        "gain_over_static": gain,
    }
    menu, who = _menu(model, states, constant, how, rng)
    return {
        CONSTANT: Proposal("constant", {"action": constant}, {}, about),
        MENU: Proposal("menu", menu, {}, about | who),
    }


def best_constant(
    model: ReturnModel,
    state: Float64Array,
    origin: np.ndarray,
    how: ReturnRegressionSettings,
    rng: np.random.Generator,
) -> tuple[Float64Array, dict[str, float]]:
    """argmax of E[Δ] − κ · sd[Δ] over actions, Δ the difference to ``origin`` at the mean state.

    By a random search that closes in on its best (the posterior is a cheap function of 8 or so numbers, with
    more than one summit). Returns the action float64[k] and Δ's ``value`` and ``deviation``.
    """
    origin = np.asarray(origin, dtype=np.float64)
    k, most = len(origin), 1.0 - how.margin
    at_origin = _at(model, state, origin[None])

    def judged(actions: Float64Array) -> tuple[Float64Array, Float64Array]:
        return _gains(model, _at(model, state, actions) - at_origin)

    steps = rng.normal(size=(_WIDE, k)) * rng.uniform(0.05, 1.0, (_WIDE, 1))
    tried = np.vstack([origin, np.clip(origin + steps, -most, most), rng.uniform(-most, most, (_UNIFORM, k))])
    for nth in range(_ROUNDS):
        value, deviation = judged(tried)
        best = tried[np.argsort(how.caution * deviation - value, kind="stable")[:_BEST]]
        steps = rng.normal(size=(_NEAR, k)) * 0.3 * 0.7**nth
        tried = np.vstack([best, np.clip(best[rng.integers(0, len(best), _NEAR)] + steps, -most, most)])
    value, deviation = judged(tried)
    chosen = int(np.argmax(value - how.caution * deviation))
    return tried[chosen], {"value": float(value[chosen]), "deviation": float(deviation[chosen])}


def _menu(
    model: ReturnModel,
    states: Float64Array,
    constant: Float64Array,
    how: ReturnRegressionSettings,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of the menu policy, and what it promises over the constant."""
    size, k, most = how.menu_candidates, len(constant), 1.0 - how.margin
    steps = rng.normal(size=(size, k)) * rng.uniform(0.1, how.menu_reach, (size, 1))
    actions = np.vstack([constant, np.clip(constant + steps, -most, most)])
    mean = states.mean(axis=0)
    at = _at(model, mean, actions)
    value, deviation = _gains(model, at - at[0])
    bias = value - how.menu_caution * deviation
    part = model.features.groups["interaction"]
    effects = (model.theta[part.start - 1 :] * model.scale[part.start - 1 :]).reshape(-1, k)  # B, [d, k]
    x = model.features.of_actions(actions)[:, :k]
    weights = (x - x[0]) @ effects.T
    worth = bias + (states - mean) @ weights.T
    # one vector after the other, each the one that adds most to what the states can have
    kept, reached = [0], worth[:, 0].copy()
    for _ in range(how.menu - 1):
        more = np.maximum(worth - reached[:, None], 0.0).mean(axis=0)
        best = int(np.argmax(more))
        if more[best] <= 1e-3 * abs(model.level):
            break
        kept.append(best)
        reached = np.maximum(reached, worth[:, best])
    tensors = {"actions": actions[kept], "bias": bias[kept], "weights": weights[kept], "mean": mean}
    taken = np.bincount(worth[:, kept].argmax(axis=1), minlength=len(kept)) / len(states)
    return tensors, {
        "menu": len(kept),
        "share_of_the_constant": float(taken[0]),
        "gain_over_the_constant": float(reached.mean() - worth[:, 0].mean()),
    }


def _at(model: ReturnModel, state: Float64Array, actions: Float64Array) -> Float64Array:
    """Standardised features of the actions in one state, float64[n, p]."""
    return model.standardised(model.features.rows(np.repeat(state[None], len(actions), axis=0), actions))


def _gains(model: ReturnModel, differences: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Mean and deviation float64[n] of differences of features [n, p]."""
    variance = np.einsum("ij,ij->i", differences @ model.covariance, differences)
    return differences @ model.theta, np.sqrt(np.maximum(variance, 0.0))
