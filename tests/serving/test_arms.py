import pytest

from serving import arms
from training.contract.settings import ShareSettings

USERS = range(1, 40_001)


def test_shares_are_met_within_sampling_error():
    shares = ShareSettings(static=0.05, random=0.02, noise=0.10)
    drawn = [arms.draw(shares, "mtf", user) for user in USERS]
    for arm, share in (("static", 0.05), ("random", 0.02), ("noise", 0.10), ("champion", 0.83)):
        deviation = (share * (1 - share) / len(USERS)) ** 0.5
        assert drawn.count(arm) / len(USERS) == pytest.approx(share, abs=4 * deviation)


def test_a_user_keeps_the_arm_and_a_salt_changes_it():
    shares = ShareSettings(static=0.25, random=0.25, noise=0.25)
    first = [arms.draw(shares, "one", user) for user in USERS[:2000]]
    assert first == [arms.draw(shares, "one", user) for user in USERS[:2000]]
    same = sum(a == arms.draw(shares, "two", user) for a, user in zip(first, USERS, strict=False))
    assert same / 2000 == pytest.approx(0.25, abs=0.05)  # as independent draws agree


def test_growing_the_last_share_takes_users_from_the_champion_only():
    before, after = ShareSettings(noise=0.02), ShareSettings(noise=0.2)
    moved = {
        (arms.draw(before, "mtf", user), arms.draw(after, "mtf", user))
        for user in USERS
        if arms.draw(before, "mtf", user) != arms.draw(after, "mtf", user)
    }
    assert moved == {("champion", "noise")}


@pytest.mark.parametrize("arm", ["static", "random", "noise"])
def test_a_share_of_one_takes_everybody(arm):
    shares = ShareSettings(**{"static": 0.0, "random": 0.0, "noise": 0.0, arm: 1.0})
    assert {arms.draw(shares, "mtf", user) for user in USERS[:2000]} == {arm}


def test_no_shares_leave_everybody_to_the_champion():
    shares = ShareSettings(static=0.0, random=0.0, noise=0.0)
    assert {arms.draw(shares, "mtf", user) for user in USERS[:2000]} == {"champion"}
