"""The A/B of the world's day through HTTP: shares as set, densities as drawn, and what is learnt from it."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from serving.ranking import arms
from tests.end_to_end.conftest import Loop
from training import trajectories
from training.contract.exploration import TruncatedNormal, UniformBox


@pytest.fixture(scope="module")
def decisions(loop: Loop) -> list[dict]:
    folder = loop.settings.layout.serving_log / "decisions"
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open()]


def test_users_meet_the_arms_in_the_shares_that_were_set(loop: Loop, decisions: list[dict]):
    arm_of: dict[int, set[str]] = {}
    for line in decisions:
        arm_of.setdefault(line["user_id"], set()).add(line["arm"])
    assert all(len(seen) == 1 for seen in arm_of.values())  # nobody changes, so no session is split
    users = Counter(next(iter(seen)) for seen in arm_of.values())
    total = sum(users.values())
    for arm in arms.ARMS:
        share = arms.share_of(loop.settings.serving.shares, arm)
        assert users[arm] / total == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / total))


def test_every_drawn_action_has_its_exact_density_and_follows_it(loop: Loop, decisions: list[dict]):
    serving = loop.settings.serving
    levels: dict[str, list[float]] = {arm: [] for arm in arms.EXPLORING}
    sessions: dict[tuple[int, str], np.ndarray] = {}
    for line in decisions:
        mean, action = np.array(line["action_mean"]), np.array(line["action"])
        if line["arm"] not in arms.EXPLORING:
            assert line["log_density"] is None and (mean == action).all()
            assert line["exploration_unit"] is None
            continue
        assert line["exploration_unit"] == "session"
        if line["arm"] == arms.BOX:
            expected = UniformBox(mean, serving.box_width).log_density(action)
            low, high = np.maximum(mean - serving.box_width, -1), np.minimum(mean + serving.box_width, 1)
            level = (action - low) / (high - low)
        else:
            std = serving.random_std if line["arm"] == arms.RANDOM else serving.noise_std
            expected = TruncatedNormal(mean, std).log_density(action)
            level = stats.truncnorm((-1 - mean) / std, (1 - mean) / std, loc=mean, scale=std).cdf(action)
        assert line["log_density"] == pytest.approx(expected, abs=1e-4)  # float32 in the log
        known = sessions.setdefault((line["user_id"], line["session_id"]), level)
        if known is level:
            levels[line["arm"]] += level.tolist()
        else:  # drawn once: the level is the session's, wherever the mean has gone
            np.testing.assert_allclose(level, known, atol=1e-4)
    # the distribution function of what is drawn, at what was drawn, is uniform
    for arm, drawn in levels.items():
        assert len(drawn) > 100, arm
        assert stats.kstest(drawn, "uniform").pvalue > 1e-4, arm


def test_the_mixed_exploration_set_has_equal_amounts_of_both_groups(loop: Loop):
    learner = loop.settings.learner.model_copy(update={"mixed_exploration": True})
    settings = loop.settings.model_copy(update={"learner": learner})
    built = trajectories.load(settings, loop.day)
    counts = built.train.arm_counts()
    assert counts.keys() == {"random", "noise"}
    assert counts["random"]["sessions"] == counts["noise"]["sessions"] > 0
    assert bool(built.train.log_densities.isfinite().all())
    assert {"static", "box"} <= built.test.arm_counts().keys()  # the judge sees every arm
