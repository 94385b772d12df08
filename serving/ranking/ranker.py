"""Ranking, without input or output: an arm and a state give an action, an action gives an order."""

from typing import NamedTuple

import numpy as np

from serving.policy.timed import TimedPolicy, TooSlow
from serving.ranking import arms
from serving.ranking.deviations import Uniforms
from training.contract.errors import PolicyError
from training.contract.exploration import TruncatedNormal, UniformBox
from training.contract.fusion import Fusion
from training.contract.log import NO_POLICY, POLICY, POLICY_SLOW, STATIC_VERSION
from training.contract.policy import Policy
from training.contract.settings import ServingSettings


class Decision(NamedTuple):
    """What was decided for one request, as it is logged.

    ``action`` and ``mean`` are float32[k] in [-1, 1]; ``mean`` is the centre μ of the distribution
    that ``action`` was drawn from (before truncation), and ``log_density`` the density of the draw;
    without a draw ``mean`` is ``action``, and ``log_density`` and ``exploration_unit`` are None.
    ``exploration_unit`` is what the draw was for, ``request`` or ``session``.
    """

    arm: str
    policy_version: str
    action: np.ndarray
    mean: np.ndarray
    log_density: float | None = None
    fallback: str | None = None
    exploration_unit: str | None = None


class PolicyAnswer(NamedTuple):
    """What a policy answered for one state: float32[k], or None and the failure's name, if it was asked."""

    version: str
    action: np.ndarray | None = None
    failure: str | None = None


def asks(arm: str) -> bool:
    """Whether an arm serves a policy's action, or one around it."""
    return arm not in (arms.STATIC, arms.RANDOM)


def act(policy: Policy | TimedPolicy, states: np.ndarray) -> list[PolicyAnswer]:
    """A policy's answers for states float32[n, d], in one call; if it fails for one, only for that one."""
    try:
        return [PolicyAnswer(policy.version, action) for action in policy.act(states)]
    except TooSlow:
        return [PolicyAnswer(policy.version, failure=POLICY_SLOW)] * len(states)
    except PolicyError:
        if len(states) > 1:
            return [one for state in states for one in act(policy, state[None])]
        return [PolicyAnswer(policy.version, failure=POLICY)]


def decide(
    arm: str,
    answer: PolicyAnswer | None,
    missing: str | None,
    fusion: Fusion,
    settings: ServingSettings,
    uniforms: Uniforms,
) -> Decision:
    """The action of an arm for one state; ``uniforms`` are what it deviates by, if it does.

    ``answer`` is the challenger's answer for its arm and the champion's for the others, None when there is
    no such policy; ``missing`` says why there is no state to act by (:data:`STORE`, or :data:`STALE`: it is
    made of features that are too old), None when there is one. Champion and challenger fall back to static
    weights without a policy or a state. The noise and the box arm then draw around the static action; the
    random arm needs neither. All name a missing state as their fallback because a transition should not be
    learnt from without a good one.
    """
    k = len(fusion.heads)
    static = fusion.static_action
    if arm == arms.STATIC:
        return Decision(arm, STATIC_VERSION, static, static, fallback=missing)
    if arm == arms.RANDOM:
        drawn = TruncatedNormal(np.zeros(k, dtype=np.float32), settings.random_std)
        return _drawn(arm, STATIC_VERSION, drawn, settings, uniforms, missing)

    mean, version, fallback = static, STATIC_VERSION, missing
    if answer is None:
        fallback = missing if arm in arms.EXPLORING else NO_POLICY
    elif missing is None:
        fallback = answer.failure
        if answer.action is not None:
            mean, version = answer.action, answer.version
    if arm == arms.NOISE:
        noisy = TruncatedNormal(mean, settings.noise_std)
        return _drawn(arm, version, noisy, settings, uniforms, fallback)
    if arm == arms.BOX:
        return _drawn(arm, version, UniformBox(mean, settings.box_width), settings, uniforms, fallback)
    return Decision(arm, version, mean, mean, fallback=fallback)


def score(
    decision: Decision,
    policy: Policy | None,
    state: np.ndarray | None,
    predictions: np.ndarray,
    fusion: Fusion,
) -> tuple[Decision, np.ndarray, np.ndarray]:
    """The decision that is served, its weights float64[k], and scores float64[n] of predictions [n, k].

    A policy that ranks by itself does so where it serves as it is (champion and challenger); every other
    action is fused by the formula. A policy that cannot rank falls back to static weights.
    """
    itself = decision.arm in (arms.CHAMPION, arms.CHALLENGER) and decision.fallback is None
    if policy is not None and policy.ranks and itself:
        assert state is not None  # a missing one is a fallback
        try:
            scores = policy.scores(predictions, state, decision.action)
            return decision, fusion.to_weights(decision.action), scores
        except PolicyError:
            static = fusion.static_action
            decision = Decision(decision.arm, STATIC_VERSION, static, static, fallback=POLICY)
    weights = fusion.to_weights(decision.action)
    return decision, weights, fusion.score(predictions, weights)


def _drawn(
    arm: str,
    version: str,
    distribution: TruncatedNormal | UniformBox,
    settings: ServingSettings,
    uniforms: Uniforms,
    fallback: str | None,
) -> Decision:
    action = distribution.at(uniforms(len(distribution.mean)))
    density = distribution.log_density(action)
    return Decision(arm, version, action, distribution.mean, density, fallback, settings.exploration.unit)
