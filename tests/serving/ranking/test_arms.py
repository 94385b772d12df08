import json

import numpy as np
import pytest
import redis

from serving.ranking import arms
from tests.serving.conftest import settings_file
from training.contract import in_service
from training.contract.errors import SettingsError
from training.contract.settings import Settings, ShareSettings, load_settings

USERS = range(1, 40_001)
TRIED = "a challenger's digest"


def test_shares_are_met_within_sampling_error():
    wanted = {"static": 0.05, "random": 0.02, "noise": 0.10, "box": 0.03, "challenger": 0.07}
    shares = ShareSettings(**wanted)
    drawn = [arms.draw(shares, "mtf", 7, user, TRIED) for user in USERS]
    for arm, share in (*wanted.items(), ("champion", 0.73)):
        assert arms.share_of(shares, arm) == pytest.approx(share)
        deviation = (share * (1 - share) / len(USERS)) ** 0.5
        assert drawn.count(arm) / len(USERS) == pytest.approx(share, abs=4 * deviation)


def test_a_user_keeps_the_arm_and_a_salt_changes_it():
    shares = ShareSettings(static=0.25, random=0.25, noise=0.25)
    first = [arms.draw(shares, "one", 7, user) for user in USERS[:2000]]
    assert first == [arms.draw(shares, "one", 7, user) for user in USERS[:2000]]
    same = sum(a == arms.draw(shares, "two", 7, user) for a, user in zip(first, USERS, strict=False))
    assert same / 2000 == pytest.approx(0.25, abs=0.05)  # as independent draws agree


def test_growing_the_last_share_takes_users_from_the_champion_only():
    before, after = ShareSettings(noise=0.02), ShareSettings(noise=0.2)
    moved = {
        (arms.draw(before, "mtf", 7, user, TRIED), arms.draw(after, "mtf", 7, user, TRIED))
        for user in USERS
        if arms.draw(before, "mtf", 7, user, TRIED) != arms.draw(after, "mtf", 7, user, TRIED)
    }
    assert moved == {("champion", "noise")}


@pytest.mark.parametrize("arm", ["static", "random", "noise", "box", "challenger"])
def test_a_share_of_one_takes_everybody(arm):
    shares = ShareSettings(**{"static": 0.0, "random": 0.0, "noise": 0.0, arm: 1.0})
    assert {arms.draw(shares, "mtf", 7, user, TRIED) for user in USERS[:2000]} == {arm}


def test_no_shares_leave_everybody_to_the_champion():
    shares = ShareSettings(static=0.0, random=0.0, noise=0.0)
    assert {arms.draw(shares, "mtf", 7, user, TRIED) for user in USERS[:2000]} == {"champion"}


def test_the_steps_of_a_canary_take_users_from_the_champion_only():
    before = ShareSettings(static=0.1, random=0.1, noise=0.1, box=0.1, challenger=0.01)
    after = before.model_copy(update={"challenger": 0.5})
    moved = {
        (arms.draw(before, "mtf", 7, user, TRIED), arms.draw(after, "mtf", 7, user, TRIED))
        for user in USERS
        if arms.draw(before, "mtf", 7, user, TRIED) != arms.draw(after, "mtf", 7, user, TRIED)
    }
    assert moved == {("champion", "challenger")}


def test_an_epoch_draws_its_users_apart_from_those_of_the_last():
    shares = ShareSettings(static=0.25, random=0.25, noise=0.25)
    first, second = ([arms.draw(shares, "mtf", epoch, user) for user in USERS] for epoch in (7, 8))
    assert sum(a == b for a, b in zip(first, second, strict=True)) / len(USERS) == pytest.approx(
        0.25, abs=0.01
    )


def test_an_epochs_end_leaves_a_canarys_users_in_it_but_those_who_are_drawn_elsewhere():
    shares = ShareSettings(static=0.1, random=0.05, noise=0.05, challenger=0.2)
    first, second = ([arms.draw(shares, "mtf", epoch, user, TRIED) for user in USERS] for epoch in (7, 8))
    tried = [after for before, after in zip(first, second, strict=True) if before == "challenger"]
    assert "champion" not in tried
    assert tried.count("challenger") / len(tried) == pytest.approx(
        0.8, abs=0.02
    )  # the rest explores, or is static
    came = [before for before, after in zip(first, second, strict=True) if after == "challenger"]
    assert "champion" not in came


def test_every_challenger_has_users_of_its_own():
    shares = ShareSettings(static=0.0, random=0.0, noise=0.0, challenger=0.2)
    one, two = (
        {user for user in USERS if arms.draw(shares, "mtf", 7, user, tried) == "challenger"} for tried in "ab"
    )
    assert len(one & two) / len(one) == pytest.approx(0.2, abs=0.02)


def share(settings: Settings, **changes: float) -> None:
    with in_service.changing(settings) as row:
        row.change_shares(changes, "a test")


@pytest.fixture(params=["files", "redis"])
def either(request, tmp_path, monkeypatch) -> Settings:
    """Settings by which the shares are in a file, or in Redis."""
    if request.param == "redis":
        port = request.getfixturevalue("redis_port")
        redis.Redis(port=port).flushall()
        monkeypatch.setenv("MTF__STORE__ONLINE", "redis")
        monkeypatch.setenv("MTF__STORE__REDIS_URL", f"127.0.0.1:{port}")
        monkeypatch.setenv("MTF__SERVING__INDEX", "redis")
    return load_settings(settings_file(tmp_path))


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
def assignment(settings, refused) -> arms.Assignment:
    return arms.Assignment(settings, refused.append)


def test_shares_change_while_serving_and_are_remembered_with_their_reason(either):
    settings, assignment = either, arms.Assignment(either)
    assert assignment.shares == settings.serving.shares and not assignment.look()
    share(settings, static=0.3, box=0.01)
    assert assignment.look() and not assignment.look()
    assert (assignment.shares.static, assignment.shares.box, assignment.shares.noise) == (0.3, 0.01, 0.02)
    assert arms.Assignment(settings).shares == assignment.shares  # also after a restart
    [event] = in_service.read(settings).history
    assert (event["action"], event["reason"], event["shares"]["static"]) == ("shares", "a test", 0.3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"static": 0.9, "challenger": 0.2}, "more than 1"),
        ({"random": 0.05, "noise": 0.05, "box": 0.05}, "more than serving.max_exploration, 0.1"),
        ({"static": -0.1}, "static"),
        ({"static": float("nan")}, "static"),
        ({"nobody": 0.1}, "nobody"),
    ],
)
def test_shares_that_cannot_be_in_force_are_refused_before_they_are_written(settings, changes, reason):
    with pytest.raises(SettingsError, match=reason):
        share(settings, **changes)
    assert not settings.layout.shares.exists() and in_service.read(settings).history == []


@pytest.mark.parametrize("content", ['{"static": 0.9, "challenger": 0.2}', '{"static": "x"}', "{", "[1]"])
def test_a_bad_shares_file_changes_nothing_and_is_told_once(settings, assignment, refused, content):
    share(settings, static=0.3)
    assignment.look()
    settings.layout.shares.write_text(content)
    assert not assignment.look() and not assignment.look()
    assert assignment.shares.static == 0.3 and assignment.refused == refused[0] and len(refused) == 1
    settings.layout.shares.write_text(json.dumps({"static": 0.2}))
    assert assignment.look() and assignment.refused is None


def test_a_running_session_keeps_its_arm_until_the_share_is_nothing(settings, assignment):
    state = np.zeros(settings.state_spec.width, dtype=np.float32)
    user = next(u for u in USERS if arms.draw(settings.serving.shares, "mtf", 7, u) == "static")
    assert assignment.arm(user, 7, None, state, challenger=None) == "static"
    share(settings, static=0.0001)
    assignment.look()
    assert arms.draw(assignment.shares, "mtf", 7, user) != "static"
    assert assignment.arm(user, 7, "static", state, challenger=None) == "static"
    assert assignment.arm(user, 7, None, state, challenger=None) != "static"  # its next session
    share(settings, static=0.0)
    assignment.look()
    assert assignment.arm(user, 7, "static", state, challenger=None) != "static"  # stopped means stopped


def test_a_session_of_a_challenger_that_is_gone_goes_on_with_the_champion(settings, assignment):
    share(settings, challenger=0.5)
    assignment.look()
    assert assignment.arm(1, 7, "challenger", None, challenger=TRIED) == "challenger"
    assert assignment.arm(1, 7, "challenger", None, challenger=None) == "champion"
    assert {assignment.arm(u, 7, None, None, challenger=None) for u in USERS[:500]} >= {"champion"}
    assert "challenger" not in {assignment.arm(u, 7, None, None, challenger=None) for u in USERS[:500]}


def test_listed_cohorts_are_not_explored_on():
    settings = Settings(
        serving={
            "no_exploration_for": ["is_lowactive_period", "user_active_degree=low_active"],
            "shares": {"static": 0.0, "random": 0.3, "noise": 0.3, "box": 0.4},
            "max_exploration": 1.0,
        },
        gate={"evidence": "offline"},
    )
    assignment = arms.Assignment(settings)
    names = settings.state_spec.entry_names
    plain = np.zeros(len(names), dtype=np.float32)
    assert {assignment.arm(u, 7, None, plain, challenger=None) for u in USERS[:500]} == set(arms.EXPLORING)
    for name in settings.serving.no_exploration_for:
        state = plain.copy()
        state[names.index(name)] = 1.0
        assert {assignment.arm(u, 7, None, state, challenger=None) for u in USERS[:500]} == {"champion"}
    # they are more of the cohort than the champion's other users, and not compared with another arm
    assert all(assignment.by_exception(u, 7, "champion") for u in USERS[:500])
    assert not any(assignment.by_exception(u, 7, "noise") for u in USERS[:500])
    # nobody knows whether the user is one of them
    assert {assignment.arm(u, 7, None, None, challenger=None) for u in USERS[:500]} == {"champion"}


def test_a_cohort_that_the_state_does_not_have_is_refused():
    with pytest.raises(ValueError, match="'hist_count' is no flag or category of the profile"):
        Settings(serving={"no_exploration_for": ["hist_count"]})


def test_the_shadow_is_drawn_apart_from_the_arms(settings, assignment):
    assert not any(assignment.shadowed(user) for user in USERS[:100])
    share(settings, static=0.5, shadow=0.5)
    assignment.look()
    both = [
        (arms.draw(assignment.shares, "mtf", 7, user) == "static", assignment.shadowed(user))
        for user in USERS[:8000]
    ]
    for pair in ((False, False), (False, True), (True, False), (True, True)):
        assert both.count(pair) / len(both) == pytest.approx(0.25, abs=0.025)
