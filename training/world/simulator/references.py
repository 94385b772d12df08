"""What can be reached in the world: static weights, the best constants, the best per kind, the oracle.

Every policy is judged on the same sessions with the same luck (common random numbers), so differences
are far better known than the values themselves. Nothing here changes the world.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

import cma
import numpy as np

from training.contract.fusion import top
from training.contract.policy import Policy
from training.world.simulator import response
from training.world.simulator.constants import EVENT_COLUMNS, KINDS
from training.world.simulator.drivers import clustered_mean
from training.world.simulator.sessions import ALIVE, TRUNCATED, Outcome, Requests, Sessions
from training.world.simulator.world import World

# (states, requests) → actions [b, k], as learnt policies have it
Choose = Callable[[np.ndarray, Requests], np.ndarray]
# (requests, scene) → scores [b, candidates]: for rankers that are no fusion formula
Score = Callable[[Requests], np.ndarray]
# (states, requests) → actions [b, k] and scores [b, candidates]
Play = Callable[[np.ndarray, Requests], tuple[np.ndarray, np.ndarray]]
Observe = Callable[[Requests, np.ndarray, Outcome], None]


@dataclass(frozen=True)
class Evaluation:
    """True results of one policy over the bench's sessions; arrays are by session."""

    session_return: np.ndarray
    discounted: np.ndarray
    requests: np.ndarray
    satisfaction: np.ndarray
    play_s: np.ndarray
    adtime_s: np.ndarray  # from the session's start to its last feedback
    plays: np.ndarray
    positive_plays: np.ndarray  # plays with a positive interaction
    user_row: np.ndarray
    kind: np.ndarray
    truncated: np.ndarray

    def summary(self) -> dict[str, Any]:
        mean, low, high = clustered_mean(self.session_return, self.user_row)
        return {
            "sessions": len(self.session_return),
            "session_return_mean": mean,
            "session_return_ci": [low, high],
            "discounted_return_mean": float(self.discounted.mean()),
            "requests_per_session": float(self.requests.mean()),
            "satisfaction": float(self.satisfaction.mean()),
            "play_s": float(self.play_s.mean()),
            "adtime_s": float(self.adtime_s.mean()),
            "upi_rate": float(self.positive_plays.sum() / max(self.plays.sum(), 1.0)),
            "truncated": float(self.truncated.mean()),
            "by_kind": {
                name: float(self.session_return[self.kind == k].mean())
                for k, name in enumerate(KINDS)
                if (self.kind == k).any()
            },
        }

    def difference(self, other: "Evaluation") -> tuple[float, float, float]:
        """Mean paired difference to ``other`` on the same sessions, with its 95 % interval."""
        return clustered_mean(self.session_return - other.session_return, self.user_row)


class Bench:
    """A fixed set of sessions, one of each of ``sessions`` users drawn by activity, begun at noon."""

    def __init__(self, world: World, day: date, sessions: int = 2_000, seed: int = 0) -> None:
        self.world, self.settings, self.seed = world, world.settings, seed
        self.scene = world.scene_of(day)
        self.states = world.states_on(day)
        activity = world.population.activity
        rng = np.random.default_rng([world.seed, 4, seed])
        self.user_row = rng.choice(len(activity), size=sessions, p=activity / activity.sum())
        self.number = 10_000 * (seed + 1) + np.arange(sessions)

    def evaluate(self, choose: Choose) -> Evaluation:
        """Play every session with the actions of ``choose``."""
        fusion = self.settings.fusion

        def play(states: np.ndarray, requests: Requests) -> tuple[np.ndarray, np.ndarray]:
            actions = choose(states, requests)
            return actions, fusion.score(requests.predictions, fusion.to_weights(actions))

        return self.play(play)

    def evaluate_policy(self, policy: Policy) -> Evaluation:
        """Play every session as the service does with the policy: ranked by itself where it can."""

        def play(states: np.ndarray, requests: Requests) -> tuple[np.ndarray, np.ndarray]:
            actions = policy.act_in_parts(states)
            return actions, policy.scores(requests.predictions, states, actions)

        return self.play(play)

    def evaluate_constant(self, action: np.ndarray) -> Evaluation:
        """Play every session with one action float[k], or with one of each kind float[kinds, k]."""
        fusion = self.settings.fusion
        weights = np.atleast_2d(fusion.to_weights(action))
        weights = np.broadcast_to(weights, (len(KINDS), weights.shape[1]))
        kind = self.world.population.kind
        return self.evaluate_ranker(
            lambda requests: fusion.score(requests.predictions, weights[kind[requests.user_row]])
        )

    def evaluate_ranker(self, score: Score) -> Evaluation:
        return self._run(score, lambda requests, places, outcome: None)

    def play(self, play: Play, observe: Observe = lambda requests, places, outcome: None) -> Evaluation:
        """Play every session with the scores of ``play(states, requests)`` → (actions, scores).

        ``observe(requests, places, outcome)`` sees every batch and what was shown of it.
        """
        return self._run(
            lambda requests: play(self.states.assemble(self.running, requests), requests)[1], observe
        )

    def _run(self, score: Score, observe: Observe) -> Evaluation:
        start = np.full(len(self.user_row), self.scene.day_start_us + 12 * 3_600_000_000)
        long_term = self.world.long_term[self.user_row]
        self.running = sessions = Sessions(self.scene, self.user_row, self.number, start, long_term)
        live = np.arange(len(self.user_row))
        plays, positive = np.zeros(len(live)), np.zeros(len(live))
        interactions = [
            EVENT_COLUMNS.index(s.column) for s in self.settings.signals if s.positive_interaction
        ]
        while len(live):
            requests = sessions.requests(live)
            places = top(score(requests), self.settings.world.page)
            outcome = sessions.respond_places(requests, places)
            played = outcome.play_time_ms > 0
            plays[live] += played.sum(axis=1)
            positive[live] += (played & outcome.events[..., interactions].any(axis=-1)).sum(axis=1)
            observe(requests, places, outcome)
            live = live[outcome.ended == ALIVE]
        return Evaluation(
            session_return=sessions.reward,
            discounted=sessions.discounted,
            requests=sessions.step,
            satisfaction=sessions.satisfaction,
            play_s=sessions.play_s,
            adtime_s=(sessions.end_us - sessions.start_us) / 1e6,
            plays=plays,
            positive_plays=positive,
            user_row=self.user_row,
            kind=self.world.population.kind[self.user_row],
            truncated=np.isin(sessions.ended.astype(str), TRUNCATED),
        )


def compare_with_static(bench: Bench, policy: Policy) -> dict[str, Any]:
    """True session return of a policy and of static weights on the same sessions, and the difference.

    Each is ``{"mean", "lower", "upper"}`` with a 95 % interval (users as clusters).
    """

    static = bench.evaluate_constant(bench.settings.fusion.static_action)
    learnt = bench.evaluate_policy(policy)

    def interval(values: tuple[float, float, float]) -> dict[str, float]:
        return dict(zip(("mean", "lower", "upper"), values, strict=True))

    return {
        "sessions": len(bench.user_row),
        "policy": interval(clustered_mean(learnt.session_return, bench.user_row)),
        "static": interval(clustered_mean(static.session_return, bench.user_row)),
        "difference": interval(learnt.difference(static)),
    }


def best_constants(
    bench: Bench, *, per_kind: bool = False, generations: int = 12, population: int = 14, seed: int = 1
) -> np.ndarray:
    """Best constant action float[k] by CMA-ES from the static weights; ``per_kind`` gives float[kinds, k].

    Kinds do not meet each other, so one simulation judges a candidate of each kind at once.
    """
    static = bench.settings.fusion.static_action.astype(float)
    options = {
        "bounds": [-1.0, 1.0],
        "popsize": population,
        "seed": seed,
        "verbose": -9,
        "maxiter": generations,
    }
    start = np.clip(static, -0.95, 0.95)
    count = len(KINDS) if per_kind else 1
    searches = [cma.CMAEvolutionStrategy(start, 0.5, {**options, "seed": seed + k}) for k in range(count)]
    for _ in range(generations):
        asked = [search.ask() for search in searches]
        cost = np.zeros((count, population))
        for member in range(population):
            result = bench.evaluate_constant(np.array([actions[member] for actions in asked]))
            for k in range(count):
                mine = result.kind == k if per_kind else slice(None)
                cost[k, member] = -result.session_return[mine].mean() if result.kind[mine].size else 0.0
        for search, actions, costs in zip(searches, asked, cost, strict=True):
            search.tell(actions, costs.tolist())
    best = np.clip([search.result.xfavorite for search in searches], -1.0, 1.0)
    return best if per_kind else best[0]


@dataclass(frozen=True)
class Oracle:
    """Ranks by true worth; no policy can know as much, and none needs to use the formula.

    It knows each user's kind and fatigue, and the true probabilities of every candidate at this moment
    (no prediction noise). The value of an item is its expected reward plus, for a longer session, λ times
    its expected worth to the user minus κ times the seconds it takes; λ and κ are one number a kind.
    """

    bench: Bench
    satisfaction_price: np.ndarray  # λ [kinds]
    second_price: np.ndarray  # κ [kinds]

    def __call__(self, requests: Requests) -> np.ndarray:
        scene = self.bench.scene
        items, user = requests.item_rows, requests.user_row
        duration_s = scene.duration_s[items]
        logits = scene.tire(requests.logits, items, requests.fatigue)
        p = response.probabilities(logits, duration_s, scene.constants)
        play_s = p[..., response.PLAY]
        known = scene.population.duration_known[items]
        reward = scene.settings.reward
        integrity = np.where(known, np.minimum(play_s / duration_s, 1.0), 0.0)
        value = (
            reward.play_time_weight * np.minimum(play_s, reward.play_time_cap_s)
            + reward.integrity_weight * integrity
            + p[..., scene.signals] @ scene.signal_weights
        )
        kind = scene.population.kind[user]
        worth = scene.expected_worth(user, p, duration_s)
        return (
            value + self.satisfaction_price[kind][:, None] * worth - self.second_price[kind][:, None] * play_s
        )


def fit_oracle(bench: Bench, *, generations: int = 8, population: int = 8, seed: int = 1) -> Oracle:
    """Oracle with the prices that give the longest-valued sessions on the bench, by CMA-ES per kind."""
    searches = [
        cma.CMAEvolutionStrategy(
            [2.0, 0.0], 0.5, {"CMA_stds": [4.0, 0.02], "popsize": population, "seed": seed + k, "verbose": -9}
        )
        for k in range(len(KINDS))
    ]
    for _ in range(generations):
        asked = [search.ask() for search in searches]
        cost = np.zeros((len(KINDS), population))
        for member in range(population):
            prices = np.array([prices[member] for prices in asked])
            result = bench.evaluate_ranker(Oracle(bench, prices[:, 0], prices[:, 1]))
            for k in range(len(KINDS)):
                mine = result.session_return[result.kind == k]
                cost[k, member] = -mine.mean() if mine.size else 0.0
        for search, prices, costs in zip(searches, asked, cost, strict=True):
            search.tell(prices, costs.tolist())
    prices = np.array([search.mean for search in searches])
    return Oracle(bench, prices[:, 0], prices[:, 1])
