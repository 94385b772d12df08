"""Importance sampling by decisions: self-normalised (PDIS) and doubly robust (DR), with logged densities.

Our policies are deterministic and have no density, so what is estimated is the policy *smoothed*: it
explores around its action as the noise group does, a ~ N(π(s), h²) truncated to [-1, 1]. The bandwidth h
trades bias for variance: the smoothed policy is another one when h is wide, and has few effective
sessions when h is narrow.

With ρ_t the product of p_smoothed(a | s) / p_logged(a | s) up to decision t, and w_t = ρ_t / Σ ρ_t over
sessions (a session that has ended keeps its last ρ):

    PDIS  Σ_t γ^t Σ_i w_t^i r_t^i                     (Precup, Sutton, Singh, ICML 2000)
    DR    mean V(s_0) + Σ_t γ^t Σ_i w_t^i (r + γ (1 − done) V(s') − Q(s, a))
                                                      (weighted DR: Thomas, Brunskill, ICML 2016, §5)

**Drawn once a session** (``by_session``): the uniforms u of the deviation are drawn at the first request,
and every later action is a function of u and the state, a_t = F⁻¹(u; μ(s_t)). Given the first action it has
no density of its own, so ρ holds one factor, the first decision's; the later ones have ratio 1, and in DR the
value of s' is Q at the action that followed there. What is estimated is then the policy that draws its first
action from N(π(s_0), h²) and goes on as the log went on from there. That is the policy smoothed once a
session where neither π nor the log's mean moves within a session (a constant, judged on the random arm:
exactly), and else as far from it as π(s_t) − μ(s_t) moves.

Q is the fitted Q of :mod:`training.evaluation.fqe`, and V(s) its mean over draws of the smoothed policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.contract import exploration
from training.contract.settings import EvaluationSettings
from training.evaluation.acting import Actions
from training.evaluation.fitted_q import FittedQ
from training.evaluation.intervals import Estimates, effective_size, resample
from training.trajectories import Transitions

_DRAWS = 8  # of the smoothed policy a state, for V
_WIDER = (1, 2, 4, 8)  # multiples of the bandwidth whose effective sizes are reported
_USABLE = 0.01  # of an equal share: a decision that weighs less says next to nothing of the policy


@dataclass(frozen=True)
class Logged:
    """The n sessions that weights can be had for, as [n, T] grids of decisions.

    These begin with step 0, lack no step and have a density in every row. A session with a decision that
    was not drawn is left out as a whole: without one of its factors ρ is not known from there on.
    """

    rows: np.ndarray  # int64[n, T], of the data; 0 where there is no decision
    alive: np.ndarray  # bool[n, T]
    sessions: np.ndarray  # int64[n], their numbers in the data
    left_out: int  # sessions without a density in every row
    partial: int  # sessions that do not begin with step 0, or lack a step
    cut: int  # of the n, those whose end is not known: their later rewards are missing

    def __len__(self) -> int:
        return len(self.sessions)


def logged_sessions(data: Transitions) -> Logged:
    """Arranges the data's rows by session and step."""
    steps, densities = data.steps.numpy(), data.log_densities.numpy()
    numbers, session = np.unique(data.sessions.numpy(), return_inverse=True)
    count = np.bincount(session)
    last = np.full(len(numbers), -1)
    np.maximum.at(last, session, steps)
    whole = count == last + 1
    drawn = np.bincount(session, weights=~np.isfinite(densities)) == 0
    usable = whole & drawn
    grid = np.full((len(numbers), int(last.max()) + 1), -1)
    kept = usable[session]
    grid[session[kept], steps[kept]] = np.flatnonzero(kept)
    grid = grid[usable]
    grid = grid[:, : int((grid >= 0).sum(axis=1).max(initial=1))]
    ended = np.bincount(session, weights=data.dones.numpy()) > 0
    return Logged(
        rows=np.maximum(grid, 0),
        alive=grid >= 0,
        sessions=numbers[usable],
        left_out=int((whole & ~drawn).sum()),
        partial=int((~whole).sum()),
        cut=int((usable & ~ended).sum()),
    )


def _followed(data: Transitions, logged: Logged) -> np.ndarray:
    """bool[n, T]: decisions whose action followed from what was drawn at an earlier one of the session."""
    once = data.by_session.numpy()[logged.rows] & logged.alive
    followed: np.ndarray = once & (once.cumsum(axis=1) > 1)
    return followed


@dataclass(frozen=True)
class Weights:
    """ρ of one policy on the logged sessions, each decision's column divided by its largest."""

    relative: np.ndarray  # float64[n, T] in [0, 1]; an ended session keeps its last
    clipped: float  # share of the decisions whose ρ was clipped

    @property
    def effective_sessions(self) -> float:
        """Effective number of sessions at their own ends: what is left of n after every decision."""
        return float(effective_size(self.relative[:, -1]))


def weights(
    data: Transitions, policy: Actions, logged: Logged, bandwidth: float, clip: float | None = None
) -> Weights:
    """ρ_t of the smoothed policy; ``clip`` is the largest ρ_t allowed (unclipped, its mean is 1)."""
    density = exploration.log_density(
        data.actions.numpy().astype(np.float64), policy.here.numpy().astype(np.float64), bandwidth
    )
    factors = logged.alive & ~_followed(data, logged)
    ratio = np.where(factors, (density - data.log_densities.numpy())[logged.rows], 0.0)
    total = ratio.cumsum(axis=1)
    clipped = 0.0
    if clip is not None:
        clipped = float((total[logged.alive] > np.log(clip)).mean())
        total = np.minimum(total, np.log(clip))
    return Weights(np.exp(total - total.max(axis=0)), clipped)


def overlap(
    data: Transitions, policy: Actions, logged: Logged, bandwidth: float, clip: float | None
) -> dict[str, Any]:
    """How much of the log speaks of a policy: sizes, shares and counts, plain for a record."""
    own = weights(data, policy, logged, bandwidth, clip)
    share = own.relative / own.relative.mean(axis=0)
    wider = {h: weights(data, policy, logged, h, clip) for h in (bandwidth * m for m in _WIDER)}
    return {
        "bandwidth": bandwidth,
        "sessions": len(logged),
        "sessions_left_out": logged.left_out,
        "sessions_partial": logged.partial,
        "sessions_cut": logged.cut,
        "effective_sessions": own.effective_sessions,
        "effective_first_decisions": float(effective_size(own.relative[:, 0])),
        "effective_by_bandwidth": {f"{h:g}": w.effective_sessions for h, w in wider.items()},
        "usable_decisions": float((share[logged.alive] >= _USABLE).mean()),
        "usable_sessions": float((share[:, -1] >= _USABLE).mean()),
        "clipped": own.clipped,
    }


def pdis(
    data: Transitions,
    policies: Mapping[str, Actions],
    settings: EvaluationSettings,
    gamma: float,
    bandwidth: float,
    seed: int,
) -> Estimates:
    """Self-normalised per-decision importance sampling, on the data and on resamples of its sessions."""
    logged = logged_sessions(data)
    counts = resample(
        torch.arange(len(logged)), settings.bootstraps, torch.Generator().manual_seed(seed)
    ).numpy()
    rewards = np.where(logged.alive, data.rewards.numpy().astype(np.float64)[logged.rows], 0.0)
    found = {}
    for name, policy in policies.items():
        rho = weights(data, policy, logged, bandwidth, settings.weight_clip).relative
        found[name] = _discounted(counts, rho, rewards, gamma)
    return Estimates(
        values={name: float(v[0]) for name, v in found.items()},
        replicates={name: v[1:] for name, v in found.items()},
        confidence=settings.confidence,
    )


def doubly_robust(
    fitted: FittedQ, policies: Mapping[str, Actions], gamma: float, bandwidth: float, seed: int
) -> Estimates:
    """Weighted doubly robust with an ensemble's Q; as for FQE the value is the mean of all R + 1 fits.

    ``policies`` are some of those fitted. A replicate takes the Q and the sessions of one resample.
    """
    data, settings = fitted.data, fitted.settings
    logged = logged_sessions(data)
    rows, alive = torch.from_numpy(logged.rows), torch.from_numpy(logged.alive)
    used = torch.unique(rows[alive])
    place = torch.zeros(len(data), dtype=torch.int64)
    place[used] = torch.arange(len(used))
    at = place[rows]  # [n, T], into used

    here = torch.stack([actions.here[used] for actions in fitted.policies.values()])  # [P, u, k]
    q = fitted.values(data.states[used], data.actions[used].expand_as(here)).double()[:, :, at]
    v = _smoothed_values(fitted, data.states[used], here, bandwidth, seed)[:, :, at]  # [P, R + 1, n, T]
    # V(s') is V of the next decision, or Q of what followed there; where a session is cut, V of where it was
    there = torch.where(torch.from_numpy(_followed(data, logged)), q, v)
    next_v = torch.cat([there[..., 1:] * alive[:, 1:], torch.zeros_like(v[..., :1])], dim=-1)
    last = rows.gather(1, alive.sum(dim=1, keepdim=True) - 1).flatten()
    cut = torch.nonzero(data.dones[last] == 0).flatten()
    if len(cut):
        beyond_cut = torch.stack([actions.next[last[cut]] for actions in fitted.policies.values()])
        beyond = _smoothed_values(fitted, data.next_states[last[cut]], beyond_cut, bandwidth, seed)
        next_v[:, :, cut, alive[cut].sum(dim=1) - 1] = beyond
    residual = torch.where(alive, data.rewards[rows] + gamma * next_v - q, 0.0).numpy()

    counts = fitted.counts[:, torch.from_numpy(logged.sessions)].numpy()  # [R + 1, n]
    values = {name: np.zeros(fitted.fits) for name in policies}
    for p, name in enumerate(fitted.policies):
        if name not in policies:
            continue
        rho = weights(data, policies[name], logged, bandwidth, settings.weight_clip).relative
        for f in range(fitted.fits):
            own, begin = counts[f : f + 1], v[p, f, :, 0].numpy()
            corrections = _discounted(own, rho, residual[p, f], gamma)
            values[name][f] = (own @ begin / own.sum() + corrections)[0]
    return Estimates(
        values={name: float(v.mean()) for name, v in values.items()},
        replicates={name: v[1:] for name, v in values.items()},
        confidence=settings.confidence,
    )


def _discounted(counts: np.ndarray, rho: np.ndarray, terms: np.ndarray, gamma: float) -> np.ndarray:
    """Σ_t γ^t Σ_i w_t^i x_t^i with sessions counted ``counts`` [c, n] times: float64[c].

    ``rho`` and ``terms`` are [n, T]. Weights are normalised over sessions at each t; where none of those
    counted weighs anything, the decision adds nothing.
    """
    total = counts @ rho
    sums = counts @ (rho * terms)
    means = np.divide(sums, total, out=np.zeros_like(total), where=total > 0)
    return means @ gamma ** np.arange(rho.shape[1])


def _smoothed_values(
    fitted: FittedQ, states: torch.Tensor, actions: torch.Tensor, bandwidth: float, seed: int
) -> torch.Tensor:
    """V(s) = mean of Q(s, a) over draws a of the smoothed policies: float64[P, R + 1, n].

    The same luck for every policy, so that their difference does not hold it.
    """
    total = torch.zeros(len(actions), fitted.fits, len(states), dtype=torch.float64)
    for draw in range(_DRAWS):
        sampled = [
            exploration.sample(a.numpy().astype(np.float64), bandwidth, np.random.default_rng([seed, draw]))
            for a in actions
        ]
        total += fitted.values(states, torch.from_numpy(np.stack(sampled)).float())
    return total / _DRAWS
