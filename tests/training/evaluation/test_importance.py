"""Importance sampling on a decision process whose values are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import truncnorm

from training.contract import exploration
from training.contract.settings import EvaluationSettings
from training.evaluation import fqe, importance
from training.evaluation.acting import Actions
from training.evaluation.intervals import effective_size
from training.trajectories import Transitions

GAMMA, STOP, STD, LONGEST = 0.9, 0.3, 0.6, 40


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def sessions(count: int, seed: int, longest: int = LONGEST, stop: float = STOP) -> Transitions:
    """x' = ½ (x + a), r = 1 + x + a, actions of N(0, STD²) truncated; ends with probability ``stop``."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {name: [] for name in ("s", "a", "r", "next_s", "done", "session", "step")}
    for session in range(count):
        x = rng.uniform(-0.5, 0.5)
        for step in range(longest):
            a = float(exploration.sample(np.zeros(1), STD, rng)[0])
            done = rng.random() < stop or step == longest - 1
            after = 0.5 * (x + a)
            for name, value in zip(rows, (x, a, 1 + x + a, after, done, session, step), strict=True):
                rows[name].append(value)
            if done:
                break
            x = after
    columns = {name: torch.tensor(np.array(values, dtype=np.float64)) for name, values in rows.items()}
    a = columns["a"].float()[:, None]
    follows = (columns["done"] == 0).float()[:, None]
    return Transitions(
        states=columns["s"].float()[:, None],
        actions=a,
        rewards=columns["r"].float(),
        next_states=columns["next_s"].float()[:, None] * follows,
        next_actions=torch.roll(a, -1, dims=0) * follows,
        dones=columns["done"].float(),
        action_means=torch.zeros_like(a),
        log_densities=torch.from_numpy(exploration.log_density(a.double().numpy(), np.zeros((1, 1)), STD)),
        sessions=columns["session"].long(),
        users=columns["session"].long(),
        steps=columns["step"].long(),
        by_session=torch.zeros(len(a), dtype=torch.bool),
        arms=torch.zeros(len(a), dtype=torch.int64),
        arm_names=("random",),
    )


def true_value(mean: float, bandwidth: float) -> float:
    """Of constant ``mean`` smoothed: linear in x and a, so expectations go through."""
    a = truncnorm((-1 - mean) / bandwidth, (1 - mean) / bandwidth, mean, bandwidth).mean()
    x, total = 0.0, 0.0
    for step in range(LONGEST):
        total += (GAMMA * (1 - STOP)) ** step * (1 + x + a)
        x = 0.5 * (x + a)
    return float(total)


def constant(data: Transitions, action: float) -> Actions:
    return Actions(torch.full_like(data.actions, action), torch.full_like(data.actions, action))


HOW = EvaluationSettings(
    steps=600, lr=3e-3, hidden=(32,), batch_size=128, replicates=4, bootstraps=200, confidence=0.99
)


@pytest.fixture(scope="module")
def log() -> Transitions:
    return sessions(3_000, seed=2)


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.5])
def test_pdis_finds_the_value_of_the_smoothed_policy(log, mean):
    estimates = importance.pdis(log, {"p": constant(log, mean)}, HOW, GAMMA, 0.3, seed=2)
    found, truth = estimates.interval("p"), true_value(mean, 0.3)
    assert found["lower"] <= truth <= found["upper"], (truth, found)
    assert found["upper"] - found["lower"] < 1.5  # values go from 1.5 to 5


def test_doubly_robust_finds_it_too_and_more_narrowly(log):
    policies = {"low": constant(log, -0.4), "high": constant(log, 0.2)}
    fitted = fqe.fit(log, policies, HOW.model_copy(update={"replicates": 8}), GAMMA, seed=3)
    robust = importance.doubly_robust(fitted, policies, GAMMA, 0.3, seed=4)
    weighted = importance.pdis(log, policies, HOW, GAMMA, 0.3, seed=4)
    for name, mean in (("low", -0.4), ("high", 0.2)):
        found, truth = robust.interval(name), true_value(mean, 0.3)
        assert found["lower"] <= truth <= found["upper"], (truth, found)
        assert robust.replicates[name].std() < weighted.replicates[name].std()
    truth = true_value(0.2, 0.3) - true_value(-0.4, 0.3)
    difference = robust.difference("high", "low")
    assert 0 < difference["lower"] <= truth <= difference["upper"]


def test_doubly_robust_corrects_a_wrong_q(log):
    """Weights alone must put right a Q that was never fitted."""
    policies = {"p": constant(log, -0.4)}
    fitted = fqe.fit(log, policies, HOW.model_copy(update={"steps": 1}), GAMMA, seed=3)
    wrong, truth = fqe.estimate(fitted).values["p"], true_value(-0.4, 0.3)
    found = importance.doubly_robust(fitted, policies, GAMMA, 0.3, seed=4).values["p"]
    assert abs(wrong - truth) > 1.0 and abs(found - truth) < 0.15


def by_hand(data: Transitions, mean: float, bandwidth: float) -> float:
    """PDIS one decision at a time, in plain Python."""

    def density(a: float, centre: float, std: float) -> float:
        phi = math.exp(-0.5 * ((a - centre) / std) ** 2) / (std * math.sqrt(2 * math.pi))

        def cumulative(x: float) -> float:
            return 0.5 * (1 + math.erf((x - centre) / std / math.sqrt(2)))

        return phi / (cumulative(1.0) - cumulative(-1.0))

    tracks: dict[int, list[tuple[float, float]]] = {}
    for session, a, r, logged in zip(
        data.sessions.tolist(),
        data.actions[:, 0].tolist(),
        data.rewards.tolist(),
        data.log_densities.tolist(),
        strict=True,
    ):
        track = tracks.setdefault(session, [])
        before = track[-1][0] if track else 1.0
        track.append((before * density(a, mean, bandwidth) / math.exp(logged), r))
    total = 0.0
    for t in range(max(len(track) for track in tracks.values())):
        weights = [track[min(t, len(track) - 1)][0] for track in tracks.values()]
        rewards = [track[t][1] if t < len(track) else 0.0 for track in tracks.values()]
        total += GAMMA**t * sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights)
    return total


@given(mean=st.floats(-1, 1), bandwidth=st.floats(0.05, 2), seed=st.integers(0, 10), n=st.integers(2, 12))
@hypothesis_settings(max_examples=30, deadline=None)
def test_pdis_is_what_a_loop_over_decisions_gives(mean, bandwidth, seed, n):
    data = sessions(n, seed)
    mean = float(np.float32(mean))
    found = importance.pdis(data, {"p": constant(data, mean)}, HOW, GAMMA, bandwidth, seed=0).values["p"]
    assert found == pytest.approx(by_hand(data, mean, bandwidth), rel=1e-4, abs=1e-6)


def test_a_policy_that_explores_as_the_log_did_has_every_session(log):
    """Weights of 1: the estimate is the mean return, and nothing is lost."""
    same = importance.overlap(log, constant(log, 0.0), importance.logged_sessions(log), STD, None)
    assert same["effective_sessions"] == pytest.approx(same["sessions"]) == 3_000
    assert same["usable_decisions"] == same["usable_sessions"] == 1.0 and same["clipped"] == 0.0
    value = importance.pdis(log, {"p": constant(log, 0.0)}, HOW, GAMMA, STD, seed=2).values["p"]
    discounted = GAMMA ** log.steps.double() * log.rewards.double()
    assert value == pytest.approx(float(discounted.sum()) / 3_000, rel=1e-6)


def test_overlap_shrinks_away_from_the_log_and_grows_with_the_bandwidth(log):
    logged = importance.logged_sessions(log)
    near, far = (importance.overlap(log, constant(log, mean), logged, 0.2, None) for mean in (0.0, 0.9))
    assert far["effective_sessions"] < near["effective_sessions"] < 3_000
    sizes = list(near["effective_by_bandwidth"].values())
    assert sizes[0] == near["effective_sessions"] and sizes[1] > sizes[0]


def test_clipping_is_counted_and_pulls_towards_the_log(log):
    policy = constant(log, 0.9)
    clipped = importance.weights(log, policy, importance.logged_sessions(log), 0.2, clip=2.0)
    free = importance.weights(log, policy, importance.logged_sessions(log), 0.2)
    assert 0.0 < clipped.clipped < 0.5 and free.clipped == 0.0
    assert clipped.effective_sessions > free.effective_sessions
    how = HOW.model_copy(update={"weight_clip": 2.0})
    values = [importance.pdis(log, {"p": policy}, h, GAMMA, 0.2, seed=2).values["p"] for h in (how, HOW)]
    assert values[0] < values[1]  # the log's own value is lower


def test_sessions_without_a_density_or_a_beginning_are_left_out_as_a_whole(log):
    data = log.take(torch.nonzero(log.sessions < 50).flatten())
    long = [s for s in range(50) if int((data.sessions == s).sum()) >= 3]
    a, b, c = long[:3]
    densities = data.log_densities.clone()
    densities[torch.nonzero(data.sessions == a).flatten()[1]] = math.nan
    data = replace(data, log_densities=densities)
    gone = (data.sessions == b) & (data.steps == 0)
    unfinished = (data.sessions == c) & (data.dones == 1)
    data = data.take(torch.nonzero(~(gone | unfinished)).flatten())
    logged = importance.logged_sessions(data)
    assert (logged.left_out, logged.partial, logged.cut, len(logged)) == (1, 1, 1, 48)
    assert set(logged.sessions) == set(range(50)) - {a, b}
    shuffled = data.take(torch.randperm(len(data)))
    policy = {"p": constant(data, 0.3)}
    again = importance.pdis(shuffled, policy, HOW, GAMMA, 0.3, seed=0).values["p"]
    assert again == pytest.approx(importance.pdis(data, policy, HOW, GAMMA, 0.3, seed=0).values["p"])


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=20))
def test_effective_size_lies_between_one_and_all(weights):
    size = float(effective_size(np.array(weights)))
    assert size == 0.0 or 1.0 - 1e-9 <= size <= len(weights) + 1e-9
