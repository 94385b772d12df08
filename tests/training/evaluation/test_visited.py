"""Which states a policy would meet: of sessions that were ranked like it, with the user's own traits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.training.session_log import FUSION
from training.contract.policy import Policy, PolicyHeader, constant_policy
from training.contract.session import DECAY
from training.contract.settings import Settings
from training.contract.state import StateFeature, StateSpec
from training.evaluation import session_returns
from training.evaluation.intervals import Estimates
from training.evaluation.visited import Visited
from training.trajectories import Transitions

SPEC = StateSpec(
    (
        StateFeature("trait", "profile", "identity", ("trait",)),
        StateFeature("shown", "session", "identity", ("shown",)),
        StateFeature("requests", "session", "identity", ("requests",)),
    )
)
LONGEST = 8


def log(count: int, seed: int = 0, users: int | None = None) -> Transitions:
    """Sessions that hold an action each. ``shown`` is the decayed mean of its first entry so far: the state
    gives the action away. A session returns 10 times that entry, whoever has it, and some noise."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST + 1, count)
    session = np.repeat(np.arange(count), lengths)
    step = np.arange(len(session)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    held = rng.uniform(-1.0, 1.0, (count, 2))
    trait = rng.normal(size=count)
    states = np.stack([trait[session], np.where(step > 0, held[session, 0], 0.0), step], axis=1)
    rewards = (10.0 * held[:, 0] + rng.normal(0.0, 2.0, count))[session] / lengths[session]
    last = step == lengths[session] - 1
    following = np.where(last[:, None], 0.0, np.roll(states, -1, axis=0))

    def rows(values: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    return Transitions(
        states=rows(states),
        actions=rows(held[session]),
        rewards=rows(rewards),
        next_states=rows(following),
        next_actions=rows(np.where(last[:, None], 0.0, held[session])),
        dones=rows(last),
        action_means=rows(np.zeros((len(session), 2))),
        log_densities=rows(np.full(len(session), -2.0 * np.log(2.0)), torch.float64),
        sessions=rows(session, torch.int64),
        users=rows(session, torch.int64),
        steps=rows(step, torch.int64),
        by_session=torch.ones(len(session), dtype=torch.bool),
        arms=torch.zeros(len(session), dtype=torch.int64),
        arm_names=("random",),
    )


def push(states: np.ndarray) -> np.ndarray:
    """A little further than what was shown: at the log's states the mean of all that was tried."""
    return np.stack([np.clip(states[:, 1] + 0.3, -1.0, 1.0), np.zeros(len(states))], axis=1).astype(
        np.float32
    )


def pushed_so_far() -> list[float]:
    """By step, the decayed mean that the policy's own actions have made."""
    found, mean, weight = [], 0.0, 0.0
    for _ in range(LONGEST):
        found.append(mean)
        mean = (DECAY * weight * mean + min(mean + 0.3, 1.0)) / (DECAY * weight + 1.0)
        weight = DECAY * weight + 1.0
    return found


def test_a_policy_meets_what_its_own_actions_lead_to() -> None:
    data = log(4_000)
    states, actions = Visited(data, SPEC, 3_000, seed=1).by(push)
    shown, requests = states[:, 1], states[:, 2]
    assert (shown[requests == 0] == 0.0).all()
    for step, expected in enumerate(pushed_so_far()):
        assert shown[requests == step].mean() == pytest.approx(expected, abs=0.06)
    np.testing.assert_array_equal(actions, push(states))


def test_users_stay_who_they_are_and_are_the_same_for_every_policy() -> None:
    data = log(500)
    visited = Visited(data, SPEC, 600, seed=1)
    (pushed, _), (still, actions) = visited.by(push), visited.by(lambda s: np.zeros((len(s), 2), np.float32))
    np.testing.assert_array_equal(pushed[:, [0, 2]], still[:, [0, 2]])
    assert not np.array_equal(pushed[:, 1], still[:, 1])
    assert abs(still[:, 1]).mean() < 0.15 and (actions == 0.0).all()
    assert 600 <= len(still) < 600 + LONGEST
    # as long as the users' own sessions: a trait comes with every step up to its last
    own = {float(trait): int((data.states[:, 0] == trait).sum()) for trait in data.states[:, 0]}
    for trait, count in zip(*np.unique(still[:, 0], return_counts=True), strict=True):
        assert count == own[float(trait)]


def test_a_log_of_single_requests_and_one_of_one_session_are_followed() -> None:
    data = log(50)
    for part in (data.take(data.steps == 0), data.take(data.sessions == int(data.sessions[-1]))):
        states, actions = Visited(part, SPEC, 1_000, seed=1).by(push)
        assert len(states) == len(actions) == len(part)


def test_rows_say_of_which_session_they_are() -> None:
    visited = Visited(log(500), SPEC, 600, seed=1)
    states, _ = visited.by(push)
    assert len(visited.sessions) == len(states)
    for session in np.unique(visited.sessions):
        own = states[visited.sessions == session]
        assert len(np.unique(own[:, 0])) == 1  # a trait of its own
        assert list(own[:, 2]) == list(range(len(own)))


def judged(data: Transitions, **acts: Callable[[np.ndarray], np.ndarray]) -> Estimates:
    settings = Settings(
        heads=[
            {"name": head.name, "low": head.low, "high": head.high, "static": head.static}
            for head in FUSION.heads
        ]
    )
    policies = {"static": constant_policy(SPEC, FUSION, FUSION.static_action, "static")}
    policies |= {n: Policy(PolicyHeader("constant", n, SPEC, FUSION), "", act) for n, act in acts.items()}
    return session_returns.estimate(data, data, policies, settings, 0).estimates


def test_what_moving_weights_brings_is_in_the_interval_and_not_in_the_value() -> None:
    def by(swing: float) -> Callable[[np.ndarray], np.ndarray]:
        """One weight up and down from request to request, the other at rest."""
        return lambda s: np.stack([swing * (1.0 - 2.0 * (s[:, 2] % 2)), np.full(len(s), 0.2)], axis=1).astype(
            np.float32
        )

    found = judged(log(3_000), rests=by(0.0), moves=by(0.3), again=by(0.3), swings=by(0.6))
    width = {
        name: interval["upper"] - interval["lower"]
        for name in ("rests", "moves", "swings")
        for interval in [found.difference(name, "static")]
    }
    assert width["swings"] > 1.5 * width["moves"] > 3.0 * width["rests"]
    # whatever moving brings, it brings the same to those that move alike
    alike = found.difference("moves", "again")
    assert alike["lower"] == pytest.approx(0.0, abs=1e-6) == alike["upper"]


def test_what_reads_the_session_is_valued_by_what_it_does_there() -> None:
    """At the log's own states the mean of these actions is that of all that was tried, .3 higher."""
    data = log(3_000)
    found = judged(data, push=push)
    static = FUSION.static_action[0]
    at_the_log = 10.0 * (push(data.states.numpy())[:, 0].mean() - static)
    served = np.minimum(np.array(pushed_so_far()) + 0.3, 1.0)[data.steps.numpy()]
    truth = 10.0 * (served.mean() - static)
    assert truth > at_the_log + 1.0
    interval = found.difference("push", "static")
    assert abs(interval["value"] - truth) < 0.6
