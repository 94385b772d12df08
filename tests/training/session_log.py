"""Sessions whose return is known: a quadratic function of the log-shares of the weights that they were given.

    return = 10 − (b + e s_0) Σ_i (x_i − x*_i)² + c s_0 (x_0 − x*_0) + u + ε,   x = log-shares of the weights

with x* those of the best action, u the user's own and ε noise, spread evenly over the session's requests.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from training.contract.fusion import Fusion, Head
from training.contract.policy import Policy, constant_policy
from training.contract.state import StateFeature, StateSpec
from training.returns import Features
from training.trajectories import Transitions

FUSION = Fusion((Head("click", 0.1, 0.0, 2.0, 1.0), Head("like", 0.1, 0.0, 1.0, 0.5)))
FEATURES = Features(FUSION, 2)
SPEC = StateSpec(tuple(StateFeature(name, "profile", "identity", (name,)) for name in ("s_0", "s_1")))
BEST = (0.3, -0.6)
LENGTH = 3  # requests a session


@dataclass(frozen=True)
class Sessions:
    """What the returns are made of; see the module."""

    best: tuple[float, float] = BEST  # an action
    effect: float = 2.0  # b
    interaction: float = 0.0  # c
    curvature: float = 0.0  # e
    noise: float = 2.0  # deviation of ε
    users: int | None = None  # None: as many as sessions
    of_users: float = 0.0  # deviation of u
    static: float = 0.0  # share of the sessions that are served static weights

    def true_return(self, actions: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        """Mean return float64[n] of weights held over a session; without states, of users as they are."""
        x, best = (FEATURES.of_actions(np.atleast_2d(a))[:, :2] for a in (actions, self.best))
        off = np.square(x - best).sum(axis=1)
        level = 10.0 - self.effect * off
        if states is None:
            return level
        return level + states[:, 0] * (self.interaction * (x - best)[:, 0] - self.curvature * off)

    def log(self, count: int, seed: int = 0) -> Transitions:
        """Each session holds one action, uniform over the box, or static weights."""
        rng = np.random.default_rng(seed)
        users = count if self.users is None else self.users
        user = rng.integers(0, users, count)
        static = rng.random(count) < self.static
        actions = np.where(static[:, None], FUSION.static_action, rng.uniform(-1.0, 1.0, (count, 2)))
        states = rng.normal(size=(count, 2))
        own = rng.normal(0.0, self.of_users, users)[user] + rng.normal(0.0, self.noise, count)
        returns = self.true_return(actions, states) + own

        def rows(values: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.from_numpy(np.repeat(values, LENGTH, axis=0)).to(dtype)

        steps = torch.arange(LENGTH).repeat(count)
        last = (steps == LENGTH - 1).float()
        return Transitions(
            states=rows(states),
            actions=rows(actions),
            rewards=rows(returns / LENGTH),
            next_states=rows(states) * (1.0 - last[:, None]),
            next_actions=rows(actions) * (1.0 - last[:, None]),
            dones=last,
            action_means=rows(np.where(static[:, None], actions, 0.0)),
            log_densities=rows(np.where(static, np.nan, -2.0 * np.log(2.0)), torch.float64),
            sessions=rows(np.arange(count), torch.int64),
            users=rows(user, torch.int64),
            steps=steps,
            by_session=rows(~static, torch.bool),
            arms=rows(static, torch.int64),
            arm_names=("random", "static"),
        )


def in_parts(time: Sessions, interaction: Sessions, count: int, seed: int = 0) -> Transitions:
    """One log, whose rewards have a time part and an interaction part of different best weights."""
    logs = [part.log(count, seed) for part in (time, interaction)]  # the same sessions
    return replace(logs[0], rewards=logs[0].rewards + logs[1].rewards, watch_rewards=logs[0].rewards)


def with_rewards(data: Transitions, rewards: np.ndarray) -> Transitions:
    return replace(data, rewards=torch.from_numpy(rewards).float())


def constant(action: object, version: str) -> Policy:
    return constant_policy(SPEC, FUSION, np.asarray(action), version)
