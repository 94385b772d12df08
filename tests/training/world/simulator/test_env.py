"""The gymnasium interfaces: gymnasium's own checker, autoreset, seeds."""

import numpy as np
from gymnasium.utils.env_checker import check_env

from training.world.simulator.env import FusionEnv, FusionVectorEnv
from training.world.simulator.world import World


def test_environment_passes_gymnasiums_checker(calm: World) -> None:
    check_env(FusionEnv(calm.settings, world=calm), skip_render_check=True)


def test_vector_environment_steps_and_begins_anew(calm: World) -> None:
    env = FusionVectorEnv(calm.settings, 64, world=calm)
    states, _ = env.reset(seed=3)
    assert env.observation_space.contains(states)
    assert (states[:, env.states.spec.entry_names.index("sess_requests")] == 0).all()
    again = FusionVectorEnv(calm.settings, 64, world=calm)
    np.testing.assert_array_equal(again.reset(seed=3)[0], states)
    entry = env.states.spec.entry_names.index("sess_requests")
    actions = np.tile(calm.settings.fusion.static_action, (64, 1))
    ends, before = 0, np.zeros(64, dtype=bool)
    for _ in range(40):
        states, reward, terminated, truncated, _ = env.step(actions)
        assert env.observation_space.contains(states)
        assert (reward[before] == 0).all()  # the step of a reset, whatever the action
        assert (states[before, entry] == 0).all()
        assert (states[~before, entry] > 0).all()
        assert not (terminated & truncated).any()
        before = terminated | truncated
        ends += before.sum()
    assert ends > 64
