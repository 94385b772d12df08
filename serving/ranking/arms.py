"""Which arm serves a user: a sticky draw by a salted hash, anew in each epoch; sessions are never split."""

import hashlib
from collections.abc import Callable

import numpy as np
import structlog

from training.contract import in_service
from training.contract.errors import InServiceError, SettingsError
from training.contract.log import ARMS, BOX, CHALLENGER, CHAMPION, EXPLORING, NOISE, RANDOM, STATIC, Id
from training.contract.settings import Settings, ShareSettings

__all__ = ["ARMS", "BOX", "CHALLENGER", "CHAMPION", "EXPLORING", "NOISE", "RANDOM", "STATIC", "Assignment"]

_log = structlog.get_logger("mtf.serving.arms")


def position(salt: str, user_id: Id) -> float:
    """The user's place in [0, 1): uniform over users, independent between salts."""
    digest = hashlib.blake2b(f"{salt}:{user_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def draw(shares: ShareSettings, salt: str, epoch: int, user_id: Id, challenger: str | None = None) -> str:
    """The user's arm in an epoch. It changes only when the shares, the epoch or the salt do.

    ``challenger`` is the digest of the policy on its way, None when there is none. The arms lie on [0, 1) in
    the order static, random, noise, box, and what is left. Growing one of the first four takes users from
    what is left and moves no user of the arms before it. What is left is the champion's but for the
    challenger's share of it, which is drawn by the challenger itself and not by the epoch: the steps of a
    canary take users from the champion only, an epoch's end moves none of them but those that it draws into
    one of the first four, and the next challenger has users of its own.
    """
    place, left = position(f"{salt}:{epoch}", user_id), 1.0
    for arm, share in (
        (STATIC, shares.static),
        (RANDOM, shares.random),
        (NOISE, shares.noise),
        (BOX, shares.box),
    ):
        if place < share:
            return arm
        place -= share
        left -= share
    if challenger is None or shares.challenger <= 0.0:
        return CHAMPION
    tried = position(f"{salt}:{challenger}", user_id) >= 1.0 - shares.challenger / left
    return CHALLENGER if tried else CHAMPION


def share_of(shares: ShareSettings, arm: str) -> float:
    if arm == CHAMPION:
        return max(0.0, 1.0 - sum(share_of(shares, other) for other in ARMS if other != CHAMPION))
    share: float = getattr(shares, arm)
    return share


class Assignment:
    """The shares in force, followed, and the arm that they give to a request.

    A user who is in the middle of a session keeps its arm when the shares change or an epoch ends, so that
    no session is split; only a share of 0 (and a challenger that is gone) takes effect at once, because that
    is how an arm is stopped. ``on_refused`` is called once for each reason to refuse them.
    """

    def __init__(self, settings: Settings, on_refused: Callable[[str], None] = lambda reason: None) -> None:
        self._settings = settings
        self._salt = settings.serving.salt
        self._on_refused = on_refused
        names = settings.state_spec.entry_names
        self._excluded = [names.index(name) for name in settings.serving.no_exploration_for]
        self._refused: str | None = None
        self._take(settings.serving.shares)
        self.look()

    @property
    def shares(self) -> ShareSettings:
        return self._shares

    @property
    def refused(self) -> str | None:
        """Why shares are in force that are not those of now; None when they are."""
        return self._refused

    def look(self) -> bool:
        """Take the shares in force; True when they are others now.

        Shares that cannot be in force, or that nobody tells, change nothing.
        """
        try:
            shares = in_service.read(self._settings).shares
        except (SettingsError, InServiceError, OSError) as error:
            if str(error) != self._refused:
                self._refused = str(error)
                self._on_refused(self._refused)
                _log.error("shares refused", reason=self._refused)
            return False
        self._refused = None
        if shares == self._shares:
            return False
        self._take(shares)
        _log.info("shares taken", **shares.model_dump())
        return True

    def _take(self, shares: ShareSettings) -> None:
        self._shares = shares
        self._stopped = frozenset(arm for arm in ARMS if share_of(shares, arm) <= 0.0)

    def arm(
        self, user_id: Id, epoch: int, held: str | None, state: np.ndarray | None, challenger: str | None
    ) -> str:
        """The arm of a request.

        ``epoch`` is that in which its session began; ``held`` is the session's arm so far, None for a new
        one; ``state`` float32[d] or None; ``challenger`` the digest of the policy to try, None without one.
        Where cohorts are excluded from exploration, so is a new session whose user's cohort is not known
        because the store gave no state.
        """
        arm = held
        if held is None or held in self._stopped:
            arm = draw(self._shares, self._salt, epoch, user_id, challenger)
            if arm in EXPLORING and self._is_excluded(state):
                arm = CHAMPION
        if arm == CHALLENGER and challenger is None:
            arm = CHAMPION
        assert arm is not None
        return arm

    def by_exception(self, user_id: Id, epoch: int, arm: str) -> bool:
        """Whether the user is with the champion only because their cohort is not explored on: the arm would
        have more of that cohort than those that it is compared with."""
        if not self._excluded or arm != CHAMPION:
            return False
        return draw(self._shares, self._salt, epoch, user_id) in EXPLORING

    def shadowed(self, user_id: Id) -> bool:
        """Whether the challenger ranks this user's requests beside, drawn apart from the arms."""
        share = self._shares.shadow
        return share > 0.0 and position(f"{self._salt}:shadow", user_id) < share

    def _is_excluded(self, state: np.ndarray | None) -> bool:
        if not self._excluded:
            return False
        return state is None or bool((state[self._excluded] > 0.5).any())
