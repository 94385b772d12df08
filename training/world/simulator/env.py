"""The world as gymnasium environments: one session an episode, the fusion weights as the action."""

from datetime import date
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from training.contract.settings import Settings
from training.world.simulator.sessions import ALIVE, TRUNCATED, Requests, Sessions, top
from training.world.simulator.world import World

_EPISODE_NUMBERS = 1_000_000  # session numbers of episodes lie above those of simulated days


def _spaces(settings: Settings) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    observation = gymnasium.spaces.Box(-np.inf, np.inf, (settings.state_spec.width,), np.float32)
    action = gymnasium.spaces.Box(-1.0, 1.0, (len(settings.heads),), np.float32)
    return observation, action


class FusionVectorEnv(gymnasium.vector.VectorEnv):
    """``num_envs`` sessions side by side, stepped together in numpy; next-step autoreset.

    Observation: state float32[n, d] of the settings' specification. Action: float32[n, k] in [-1, 1],
    the normalised fusion weights. Reward: eq. (2) of the request. Terminated: the user left; truncated:
    the hard end of a session or midnight. Users are drawn by their activity, sessions begin at noon of
    ``day`` (default: the world's first). Nothing of an episode is kept in ``world``.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (gymnasium's interface)

    def __init__(
        self, settings: Settings, num_envs: int = 256, *, world: World | None = None, day: date | None = None
    ) -> None:
        self.settings, self.num_envs = settings, num_envs
        self.single_observation_space, self.single_action_space = _spaces(settings)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.world = World(settings) if world is None else world
        day = day or date.fromisoformat(settings.world.start_day)
        self.scene, self.states = self.world.scene_of(day), self.world.states_on(day)
        activity = self.world.population.activity
        self._users = np.cumsum(activity / activity.sum())
        self._ended = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if isinstance(seed, list):
            seed = None if seed[0] is None else hash(tuple(seed)) % 2**32
        super().reset(seed=seed)
        self.sessions = self._fresh(self.num_envs)
        self._ended[:] = False
        return self._observe(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        going = np.flatnonzero(~self._ended)
        reward = np.zeros(self.num_envs)
        reasons = np.full(self.num_envs, ALIVE, dtype=object)
        if len(going):
            requests = self._requests.part(going)
            fusion = self.settings.fusion
            weights = fusion.to_weights(np.clip(np.asarray(actions)[going], -1.0, 1.0))
            places = top(fusion.score(requests.predictions, weights), self.settings.world.page)
            outcome = self.sessions.respond_places(requests, places)
            reward[going], reasons[going] = outcome.reward, outcome.ended
        again = np.flatnonzero(self._ended)  # an episode that ended begins anew, whatever the action
        if len(again):
            self.sessions.adopt(again, self._fresh(len(again)))
        truncated = np.isin(reasons.astype(str), TRUNCATED)
        terminated = (reasons != ALIVE) & ~truncated
        self._ended = terminated | truncated
        return self._observe(), reward, terminated, truncated, {}

    def _fresh(self, count: int) -> Sessions:
        rows = np.searchsorted(self._users, self.np_random.random(count)).clip(max=len(self._users) - 1)
        number = self.np_random.integers(_EPISODE_NUMBERS, 2**40, count)
        start = np.full(count, self.scene.day_start_us + 12 * 3_600_000_000)
        return Sessions(self.scene, rows, number, start, self.world.long_term[rows])

    def _observe(self) -> np.ndarray:
        self._requests: Requests = self.sessions.requests(np.arange(self.num_envs))
        return self.states.assemble(self.sessions, self._requests)


class FusionEnv(gymnasium.Env):
    """One session at a time: :class:`FusionVectorEnv` of one, for tools that want a plain environment."""

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's interface)

    def __init__(self, settings: Settings, *, world: World | None = None, day: date | None = None) -> None:
        self._vector = FusionVectorEnv(settings, 1, world=world, day=day)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        first = int(self.np_random.integers(2**31))
        observation, info = self._vector.reset(seed=first)
        return observation[0], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._vector.step(np.asarray(action)[None])
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info
