"""What a user does with what is shown, given the true probabilities: eq. (W5) to (W7)."""

import numpy as np
from scipy.special import expit

from training.world.simulator import randomness
from training.world.simulator.constants import EVENTS, HEADS, WorldConstants

CLICK, LONG_VIEW, LIKE, FOLLOW, COMMENT, FORWARD, HATE, PLAY = range(len(HEADS))
_NO_CLICK, _CLICK_ONLY, _LONG = range(3)
# purposes of random draws within one request (1 to 9 are the candidates' and the predictions')
_LOOK, _CLASS, _PLAY, _REPLAY, _NO_PLAY, _EXCEPTION, _INTERACT = 10, 11, 12, 13, 14, 15, 20


def long_view_mark(duration_s: np.ndarray) -> np.ndarray:
    """Seconds from which a play is a long view: all of a short video, 18 s of any other."""
    return np.minimum(duration_s, 18.0)


def probabilities(logits: np.ndarray, duration_s: np.ndarray, c: WorldConstants) -> np.ndarray:
    """True logits [..., h] to P(event | looked at) and expected seconds [..., h].

    A long view needs a click, and a click of a video of at most 8 s is a long view, eq. (W5).
    """
    p = expit(logits)
    p[..., LONG_VIEW] = np.minimum(p[..., LONG_VIEW], c.long_view_ceiling * p[..., CLICK])
    short = duration_s <= 8.0
    p[..., LONG_VIEW] = np.where(short, p[..., CLICK], p[..., LONG_VIEW])
    p[..., PLAY] = expected_play(p, _scale(logits[..., PLAY], p, duration_s, c), duration_s, c)
    return p


def _scale(log_play: np.ndarray, p: np.ndarray, duration_s: np.ndarray, c: WorldConstants) -> np.ndarray:
    """θ of eq. (W6): mean seconds past the long-view mark, before the video ends."""
    long = np.maximum(p[..., LONG_VIEW], 1e-4)
    rest = _short_plays(p, duration_s, c)
    mean = (np.exp(np.clip(log_play, -3.0, 6.0)) - rest) / long
    return np.clip(mean - long_view_mark(duration_s), 2.0, 300.0)


def _short_plays(p: np.ndarray, duration_s: np.ndarray, c: WorldConstants) -> np.ndarray:
    """Expected seconds of the plays that are no long views."""
    idle = c.short_play_s * (1.0 - c.no_play_share) * np.minimum(duration_s / 7.0, 1.0)
    return (1.0 - p[..., CLICK]) * idle + (p[..., CLICK] - p[..., LONG_VIEW]) * c.click_play_s


def expected_play(p: np.ndarray, theta: np.ndarray, duration_s: np.ndarray, c: WorldConstants) -> np.ndarray:
    """Expected seconds of an impression that is looked at, eq. (W6)."""
    room = duration_s - long_view_mark(duration_s)
    reach = np.exp(-room / theta)
    long = long_view_mark(duration_s) + theta * (1.0 - reach) + reach * c.replay * duration_s
    return _short_plays(p, duration_s, c) + p[..., LONG_VIEW] * long


def attention(page: int, c: WorldConstants) -> np.ndarray:
    """[page]: probability that a position is looked at."""
    return c.attention ** np.arange(page)


def sample(
    keys: np.ndarray,
    logits: np.ndarray,
    duration_s: np.ndarray,
    play_cap_s: float,
    c: WorldConstants,
) -> tuple[np.ndarray, np.ndarray]:
    """Events int8[b, page, e] and play time int64[b, page] in ms for logits [b, page, h] of the shown.

    KuaiRand's rules hold by construction, but for the exceptions of ``click_exception``.
    """
    page = logits.shape[1]
    p = probabilities(logits, duration_s, c)
    looked = randomness.uniform(keys, _LOOK, page) < attention(page, c)
    u = randomness.uniform(keys, _CLASS, page)
    kind = np.where(u < p[..., LONG_VIEW], _LONG, np.where(u < p[..., CLICK], _CLICK_ONLY, _NO_CLICK))
    kind[~looked] = _NO_CLICK

    mark = long_view_mark(duration_s)
    exponential = -np.log(randomness.uniform(keys, _PLAY, page))
    uniform_play = randomness.uniform(keys, _PLAY + 100, page)
    theta = _scale(logits[..., PLAY], p, duration_s, c)
    long = mark + theta * exponential
    replay = duration_s * (1.0 - c.replay * np.log(randomness.uniform(keys, _REPLAY, page)))
    long = np.where(long >= duration_s, replay, long)
    # a click that is no long view plays more than 7 s and less than the mark; none exists up to 7 s
    click_only = 7.001 + (mark - 7.002) * uniform_play
    idle = np.minimum(c.short_play_s * exponential, 6.999 * uniform_play + 0.001)
    idle = np.minimum(idle, duration_s * 0.98)
    idle[randomness.uniform(keys, _NO_PLAY, page) < c.no_play_share] = 0.0
    idle[~looked] = 0.0
    play_s = np.choose(kind, [idle, click_only, np.clip(long, mark, np.maximum(play_cap_s, mark))])

    events = np.zeros((*kind.shape, len(EVENTS)), dtype=np.int8)
    exception = randomness.uniform(keys, _EXCEPTION, page) < c.click_exception
    events[..., CLICK] = (kind == _CLICK_ONLY) | ((kind == _LONG) & ~exception)
    events[..., LONG_VIEW] = kind == _LONG
    shares = np.stack([1.0 - p[..., CLICK], p[..., CLICK] - p[..., LONG_VIEW], p[..., LONG_VIEW]], axis=-1)
    for place, name in enumerate(EVENTS):
        if name not in c.interaction_odds:
            continue
        odds = np.array(c.interaction_odds[name])
        chance = p[..., place] * odds[kind] / (shares @ odds)
        if place == LIKE:
            liked = np.minimum(chance, 0.95)
        if place == FOLLOW:
            chance = chance * np.where(events[..., LIKE] == 1, c.follow_given_like, 1.0)
            chance /= 1.0 + (c.follow_given_like - 1.0) * liked
        chance = np.where(looked, np.minimum(chance, 0.95), 0.0)
        events[..., place] = randomness.uniform(keys, _INTERACT + place, page) < chance
    # ceil keeps a long view at or above its mark and a finished video at or above its duration
    return events, np.ceil(play_s * 1000.0).astype(np.int64)
