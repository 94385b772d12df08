"""Transitions straight from simulated sessions: the logs of experiments, without lake and warehouse.

What a learner gets here is what :func:`training.trajectories.load` gives it of a served day: the same
states, actions, densities and rewards, and the same rule for sessions whose end is not known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.contract import exploration
from training.contract.settings.exploration import Unit
from training.trajectories import Transitions, sequence
from training.world.simulator.references import Bench, Choose
from training.world.simulator.sessions import LEFT, Outcome, Requests

Rank = Callable[[Requests, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Arm:
    """A share of the sessions: actions N(mean(s), std²) truncated to [-1, 1], or mean(s) + U(-box, box)
    cut to [-1, 1], or the mean itself. The deviation is drawn once for each ``unit``: with ``session`` its
    uniforms are the session's, as in the service (:func:`training.contract.exploration.session_uniforms`).

    ``rank(requests, states, actions)`` gives the scores float[b, candidates]; None is the fusion formula.
    """

    name: str
    mean: Choose
    std: float | None = None
    share: float = 1.0
    rank: Rank | None = None
    box: float | None = None
    unit: Unit = "request"

    @property
    def explores(self) -> bool:
        return self.box is not None or self.std is not None

    def drawn(self, mean: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions float64[b, k] by uniforms [b, k], and their log-densities float64[b]."""
        if self.box is not None:
            actions = exploration.sample_box_at(mean, self.box, uniforms)
            return actions, exploration.log_density_box(actions, mean, self.box)
        assert self.std is not None
        actions = exploration.sample_at(mean, self.std, uniforms)
        return actions, exploration.log_density(actions, mean, self.std)


def random_arm(heads: int, std: float = 1.0, share: float = 1.0, unit: Unit = "request") -> Arm:
    """The random group: a Gaussian without a prior (method §3)."""
    return Arm("random", lambda states, requests: np.zeros((len(states), heads)), std, share, unit=unit)


def collect(bench: Bench, arms: Sequence[Arm], seed: int, arm_of: np.ndarray | None = None) -> Transitions:
    """Play every session of ``bench`` with the arm it is drawn for; rows by session, then step.

    ``arm_of`` int64[sessions] are the sessions' places in ``arms``, else they are drawn by the arms' shares.
    The last request of a session whose end is not known (the hard end, midnight) is left out.
    """
    rng = np.random.default_rng([seed, 5, bench.seed])  # benches of one seed share no luck
    shares = np.array([arm.share for arm in arms])
    if arm_of is None:
        arm_of = rng.choice(len(arms), size=len(bench.user_row), p=shares / shares.sum())
    fusion, parts = bench.settings.fusion, []
    of_sessions = np.random.default_rng([seed, 6, bench.seed]).random((len(arm_of), len(fusion.heads)))
    drawn_once = np.array([arm.explores and arm.unit == "session" for arm in arms])

    def play(states: np.ndarray, requests: Requests) -> tuple[np.ndarray, np.ndarray]:
        mean = np.zeros((len(requests), len(fusion.heads)))
        actions, densities = mean.copy(), np.full(len(requests), np.nan)
        scores = np.zeros(requests.predictions.shape[:2])
        for index, arm in enumerate(arms):
            mine = np.flatnonzero(arm_of[requests.session] == index)
            if not len(mine):
                continue
            part = requests.part(mine)
            mean[mine] = actions[mine] = arm.mean(states[mine], part)
            if arm.explores:
                once = arm.unit == "session"
                uniforms = of_sessions[part.session] if once else rng.random(mean[mine].shape)
                actions[mine], densities[mine] = arm.drawn(mean[mine], uniforms)
            scores[mine] = (
                fusion.score(part.predictions, fusion.to_weights(actions[mine]))
                if arm.rank is None
                else arm.rank(part, states[mine], actions[mine])
            )
        parts.append({"states": states, "action_means": mean, "actions": actions, "log_densities": densities})
        return actions, scores

    def observe(requests: Requests, places: np.ndarray, outcome: Outcome) -> None:
        factors = bench.scene.reward_factors(outcome.events, outcome.play_time_ms, outcome.duration_ms)
        weights = bench.scene.reward_weights
        parts[-1] |= {
            "sessions": requests.session,
            "steps": requests.step,
            "rewards": outcome.reward,
            "left": outcome.ended == LEFT,
            "watch_rewards": (factors[..., :2] @ weights[:2]).sum(axis=1),
            "reward_factors": factors.sum(axis=1),
            "item_rewards": factors @ weights,
            "item_scores": np.take_along_axis(requests.predictions, places[..., None], axis=1),
        }

    bench.play(play, observe)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arm = arm_of[rows["sessions"]]
    rows |= {
        "users": bench.scene.population.user_id[bench.user_row[rows["sessions"]]],
        "by_session": drawn_once[arm],
        "arms": arm,
    }
    return sequence(rows, rows.pop("left"), tuple(one.name for one in arms))
