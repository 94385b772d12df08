"""What exploring arms deviate by: once a session or for each request, and the same where it has to be."""

import subprocess
import sys

import numpy as np
import pytest

from serving.ranking.deviations import Deviations
from training.contract.settings import Settings

K = 8


def deviations(unit: str, replayed: bool = False, **settings) -> Deviations:
    return Deviations(Settings(serving={"exploration": {"unit": unit}}, **settings), replayed)


def test_a_sessions_requests_deviate_alike_in_any_process():
    """Another worker, another replica, and the same one started again: none has anything to look up."""
    drawn = deviations("session").of(3, 5, "s1", "r1")(K)
    np.testing.assert_array_equal(deviations("session", replayed=True).of(3, 5, "s1", "r2")(K), drawn)
    code = (
        "from tests.serving.ranking.test_deviations import deviations\n"
        "print(deviations('session').of(3, 5, 's1', 'r3')(8).tolist())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == str(drawn.tolist())


@pytest.mark.parametrize("changed", [(4, 5, "s1"), (3, 6, "s1"), (3, 5, "s2")])
def test_another_session_user_or_epoch_deviates_otherwise(changed):
    one = deviations("session")
    assert not np.isin(one.of(*changed, "r1")(K), one.of(3, 5, "s1", "r1")(K)).any()


def test_the_seed_and_the_salt_are_part_of_it():
    base = deviations("session").of(3, 5, "s1", "r1")(K)
    salted = Deviations(Settings(serving={"salt": "other"}), replayed=False)
    for other in (deviations("session", seed=8), salted):
        assert not np.isin(other.of(3, 5, "s1", "r1")(K), base).any()


@pytest.mark.parametrize("replayed", [True, False])
def test_each_request_deviates_anew_and_a_replayed_one_as_before(replayed):
    one, again = deviations("request", replayed), deviations("request", replayed)
    first, second = one.of(3, 5, "s1", "r1")(K), one.of(3, 5, "s1", "r2")(K)
    assert not np.isin(first, second).any()
    assert np.array_equal(again.of(3, 5, "s1", "r1")(K), first) == replayed
