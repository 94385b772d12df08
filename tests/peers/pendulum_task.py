"""Gymnasium's Pendulum-v1 as a log: what ours and the peer learn from, and how both are evaluated.

Imported by a test of ours and by a script of the peer's, so only numpy and gymnasium. The pendulum never
terminates: an episode is cut after 200 steps, and its last step, whose end is no end, is left out of the log.
"""

from collections.abc import Callable

import gymnasium
import numpy as np

LENGTH = 200  # steps of an episode
TORQUE = 2.0  # an action of 1
REWARD_UNIT = 10.0  # the log's rewards are divided by it, for both


def swing_up(observations: np.ndarray) -> np.ndarray:
    """Torque in [-1, 1], [n, 1], that pumps energy and catches the pendulum near the top."""
    cosine, sine, speed = observations.T
    angle = np.arctan2(sine, cosine)
    missing = 15.0 * (1.0 - cosine) - 0.5 * speed**2  # energy, of 1 kg m² / 3, up to that at rest on top
    torque = np.where(cosine > 0.9, -(12.0 * angle + 3.0 * speed), 0.5 * missing * np.sign(speed + 1e-6))
    return np.clip(torque / TORQUE, -1.0, 1.0)[:, None]


def play(act: Callable[[np.ndarray], np.ndarray], seeds: range) -> dict[str, np.ndarray]:
    """One episode a seed, in step: observations [n, 201, 3], actions [n, 200, 1], rewards [n, 200]."""
    environments = [gymnasium.make("Pendulum-v1") for _ in seeds]
    observations = [np.stack([e.reset(seed=s)[0] for e, s in zip(environments, seeds, strict=True)])]
    actions, rewards = [], []
    for _ in range(LENGTH):
        action = np.clip(act(observations[-1]), -1.0, 1.0).astype(np.float32)
        steps = [e.step(TORQUE * a) for e, a in zip(environments, action, strict=True)]
        actions.append(action)
        observations.append(np.stack([step[0] for step in steps]))
        rewards.append(np.array([step[1] for step in steps], dtype=np.float32))
    return {
        "observations": np.stack(observations, axis=1).astype(np.float32),
        "actions": np.stack(actions, axis=1),
        "rewards": np.stack(rewards, axis=1),
    }


def log(episodes: int = 100, seed: int = 0) -> dict[str, np.ndarray]:
    """Episodes of the controller, in each of which another share of the actions is drawn at random."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.2, 1.0, (episodes, 1))

    def act(observations: np.ndarray) -> np.ndarray:
        drawn = rng.uniform(-1.0, 1.0, (episodes, 1))
        return np.where(rng.random((episodes, 1)) < share, drawn, swing_up(observations))

    return play(act, range(10_000, 10_000 + episodes))


def returns(act: Callable[[np.ndarray], np.ndarray], episodes: int = 20) -> float:
    """Mean undiscounted return of the same episodes for everyone."""
    return float(play(act, range(episodes))["rewards"].sum(axis=1).mean())
