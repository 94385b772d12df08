"""Which arm serves a user: a sticky draw by a salted hash, so that sessions are never split."""

import hashlib

from training.contract.settings import ShareSettings

CHAMPION = "champion"  # the promoted policy, served as it is
STATIC = "static"  # hand-tuned weights: the control
RANDOM = "random"  # exploration: Gaussian without a prior
NOISE = "noise"  # exploration: the champion's action + Gaussian noise
ARMS = (CHAMPION, STATIC, RANDOM, NOISE)


def position(salt: str, user_id: int) -> float:
    """The user's place in [0, 1): uniform over users, independent between salts."""
    digest = hashlib.blake2b(f"{salt}:{user_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def draw(shares: ShareSettings, salt: str, user_id: int) -> str:
    """The user's arm. It changes only when the shares or the salt do.

    The arms lie on [0, 1) in the order static, random, noise, champion, so growing one share takes
    users from the champion and moves no user of the arms before it.
    """
    place = position(salt, user_id)
    for arm, share in ((STATIC, shares.static), (RANDOM, shares.random), (NOISE, shares.noise)):
        if place < share:
            return arm
        place -= share
    return CHAMPION
