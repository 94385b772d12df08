"""One interface to the estimators: logged data and policies in, estimates with intervals and warnings out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.contract.errors import DataError
from training.contract.policy import Policy
from training.contract.settings import Settings
from training.evaluation import conservative_ope, fqe, importance, lstd_q, session_returns
from training.evaluation.acting import Actions, act, logged
from training.evaluation.intervals import Estimates, renamed
from training.evaluation.session_returns import SessionReturns
from training.trajectories import Transitions

CLOSED = ("session_return", "lstd_q")  # those that read the log of all arms, in closed form
FITTED = ("fqe", "conservative_ope")
WEIGHTED = ("pdis", "dr")  # those that weigh logged sessions by their densities
LOGGED = "__logged__"  # the logging policy among the fitted ones, for calibration


@dataclass(frozen=True)
class Judgement:
    """Estimates by estimator, and by policy how much of the log speaks of it.

    The fitted estimators (conservative_ope, fqe) also hold :data:`LOGGED`. Weighted ones (pdis, dr) that the
    log does not allow are missing, and ``unavailable`` says why. ``warnings[estimator][policy]`` are
    sentences for the person who reads the estimate.
    """

    estimates: Mapping[str, Estimates]
    overlap: Mapping[str, Mapping[str, Any]]
    warnings: Mapping[str, Mapping[str, list[str]]]
    unavailable: str | None

    def renamed(self, names: Mapping[str, str]) -> "Judgement":
        """The same, the policies of ``names`` called otherwise."""
        return Judgement(
            {
                estimator: Estimates(renamed(e.values, names), renamed(e.replicates, names), e.confidence)
                for estimator, e in self.estimates.items()
            },
            renamed(self.overlap, names),
            {estimator: renamed(own, names) for estimator, own in self.warnings.items()},
            self.unavailable,
        )


def estimate(
    data: Transitions,
    policies: Mapping[str, Actions],
    settings: Settings,
    seed: int,
    closed: Mapping[str, Estimates] | None = None,
) -> Judgement:
    """The session return of each policy, by each of ``evaluation.estimators``; those in closed form, which
    read the whole log, are given (:func:`closed_forms`).

    ``data`` must hold initial states. Deterministic in ``seed`` and the number of threads.
    """
    how, gamma = settings.evaluation, settings.learner.gamma
    bandwidth = how.bandwidth or settings.serving.noise_std
    fitted_policies = {**policies, LOGGED: logged(data)}
    overlap, unavailable = {}, None
    if {*FITTED, *WEIGHTED} & {*how.estimators}:
        sessions = importance.logged_sessions(data)
        if len(sessions) < 2:
            unavailable = (
                f"{len(sessions)} sessions have a density for every action ({sessions.left_out} have not, "
                f"{sessions.partial} are partial)"
            )
        else:
            overlap = {
                name: importance.overlap(data, actions, sessions, bandwidth, how.weight_clip)
                for name, actions in policies.items()
            }

    found: dict[str, Estimates] = dict(closed or {})
    if "conservative_ope" in how.estimators:
        found["conservative_ope"] = conservative_ope.estimate(data, fitted_policies, how, gamma, seed)
    if {"fqe", "dr"} & set(how.estimators):
        fitted = fqe.fit(data, fitted_policies, how, gamma, seed)
        if "fqe" in how.estimators:
            found["fqe"] = fqe.estimate(fitted)
        if "dr" in how.estimators and not unavailable:
            found["dr"] = importance.doubly_robust(fitted, policies, gamma, bandwidth, seed)
    if "pdis" in how.estimators and not unavailable:
        found["pdis"] = importance.pdis(data, policies, how, gamma, bandwidth, seed)
    found = {name: found[name] for name in how.estimators if name in found}
    warnings = {
        name: {
            policy: _weighted_warnings(name, own, how.min_effective_sessions)
            for policy, own in overlap.items()
        }
        if name in WEIGHTED
        else {policy: [] for policy in policies}
        for name in found
    }
    return Judgement(found, overlap, warnings, unavailable)


def closed_forms(
    every: Transitions,
    policies: Mapping[str, Policy],
    settings: Settings,
    seed: int,
    leanings: Mapping[float, Policy] | None = None,
) -> tuple[dict[str, Estimates], SessionReturns | None]:
    """Those of ``session_return`` and ``lstd_q`` that the settings name, on the log of all arms.

    ``session_return`` reads all of it; policies are followed through the last sessions, of
    ``evaluation.transitions`` rows about. It is missing where the log has too few sessions for it, unless the
    gate's verdict rests on it: :class:`~training.contract.errors.DataError`. ``leanings`` are for it.
    """
    how, found, session = settings.evaluation, {}, None
    sessions = every.sessions.numpy()
    recent = every.take(torch.from_numpy(_last_sessions(sessions, how.transitions)))
    if "session_return" in how.estimators:
        try:
            session = session_returns.estimate(every, recent, policies, settings, seed, leanings)
            found["session_return"] = session.estimates
        except DataError:
            if settings.gate.estimator == "session_return":
                raise
    if "lstd_q" in how.estimators:
        found["lstd_q"] = lstd_q.estimate(recent, act(recent, policies), settings.fusion, how, seed)
    return found, session


def _last_sessions(sessions: np.ndarray, rows: int) -> np.ndarray:
    """int64[n], ascending: rows of the fewest last sessions that hold ``rows``, or all."""
    counts = np.bincount(sessions)
    last = len(counts) - int(np.searchsorted(np.cumsum(counts[::-1]), rows)) - 1
    return np.flatnonzero(sessions >= max(last, 0))


def _weighted_warnings(estimator: str, overlap: Mapping[str, Any], least: float) -> list[str]:
    found = [
        f"it values the policy with exploration of deviation {overlap['bandwidth']:g} around its actions"
    ]
    if overlap["effective_sessions"] < least:
        found.append(
            f"{overlap['effective_sessions']:.1f} effective sessions of {overlap['sessions']}, less than "
            f"{least:g}: the log says little of this policy"
        )
    if overlap["sessions_left_out"]:
        found.append(f"{overlap['sessions_left_out']} sessions left out: not every action has a density")
    if overlap["sessions_cut"] and estimator == "pdis":
        found.append(f"{overlap['sessions_cut']} sessions have no known end: their later rewards are missing")
    if overlap["clipped"]:
        found.append(f"{overlap['clipped']:.1%} of the weights clipped: biased towards the logging policy")
    return found
