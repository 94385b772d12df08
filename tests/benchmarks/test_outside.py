"""The benchmark outside end to end, at a tiny size, and what its page rests on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import recsim
from training.contract.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.peers]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", recsim.WORLDS)
def test_a_session_has_its_luck_whatever_it_is_shown(name: str) -> None:
    numbers = np.array([3, 5, 8])
    with recsim.Sessions(recsim.WORLDS[name]) as sessions:
        static = sessions.settings.fusion.static_action
        once, again = sessions.constant(numbers, static), sessions.constant(numbers[1:], static)
        other = sessions.constant(numbers, np.array([-1.0, 1.0]))
    np.testing.assert_array_equal(once.returns[1:], again.returns)
    first, first_other = (played.rows["state"][:3] for played in (once, other))
    np.testing.assert_array_equal(first, first_other)
    assert (once.returns != other.returns).all() and (once.steps > 1).all()


def test_a_log_holds_whole_sessions_that_deviate_once() -> None:
    with recsim.Sessions(recsim.WORLDS["interest_evolution"]) as sessions:
        log = recsim.collect(sessions, np.arange(40, 60), seed=1)
        settings = sessions.settings
    session, steps = log.sessions.numpy(), log.steps.numpy()
    assert log.states.shape[1] == settings.state_spec.width
    assert set(np.unique(session)) == set(range(20)) and (log.users.numpy() == session + 40).all()
    for number in range(20):
        own = session == number
        np.testing.assert_array_equal(steps[own], np.arange(own.sum()))
        assert (log.actions[own] == log.actions[own][0]).all()
        np.testing.assert_array_equal(log.next_states[own][:-1], log.states[own][1:])
        np.testing.assert_array_equal(log.dones[own][:-1], 0.0)
        assert log.dones[own][-1] == 1.0
    assert log.by_session.all() and log.log_densities.isfinite().all()


def test_the_command_ends_with_a_page_and_keeps_what_it_has_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "outside", "--out", str(tmp_path)]
    command += ["--worlds", "long_term_satisfaction", "--seeds", "2", "--sizes", "120"]
    command += ["--steps", "20", "--search", "4", "--judge", "10"]
    first = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    kept = read_json(tmp_path / "outside.json")
    again = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "seed 1" in first.stdout and "seed 1" not in again.stdout
    assert kept["results"] == read_json(tmp_path / "outside.json")["results"]
    seeds = kept["results"]["worlds"]["long_term_satisfaction"]
    for seed in seeds:
        found = seed["sizes"]["120"]
        assert found["returns"]["pool's choice"] == found["returns"][found["chosen"]]
        assert set(found["judge"]) == {"constant", "return_regression", "batchrl_mtf"}
        assert all(500.0 < value < 1_500.0 for value in found["returns"].values())
    assert seeds[0] != seeds[1]
