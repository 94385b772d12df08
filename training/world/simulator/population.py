"""Who lives in the world and what there is to watch: the synthetic build, and the kinds of users.

Everything here is drawn once, from the seed; what changes from day to day is in
:mod:`training.world.simulator.world`.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from training.contract.errors import SettingsError
from training.contract.settings import Settings
from training.world.simulator.constants import DEGREES, HEADS, KINDS, WorldConstants


@dataclass(frozen=True)
class BilinearResponse:
    """True logits of a user and an item, the part that is fitted in the ``kuairand`` build, eq. (W1):

    logit_h(u, i) = c_h + a_h·u + b_h·v + Σ_j w_hj u_j v_j

    over the heads of :data:`HEADS`; for play_time the left side is log of expected seconds.
    Shapes: intercept [h]; user_weight, item_weight, interaction [h, m].
    """

    intercept: np.ndarray
    user_weight: np.ndarray
    item_weight: np.ndarray
    interaction: np.ndarray


@dataclass(frozen=True)
class Population:
    """Users [n] and items [i] with their latents [., m]; ``profile`` holds the observable columns."""

    user_id: np.ndarray
    profile: dict[str, np.ndarray]
    kind: np.ndarray  # int8[n], index into KINDS: hidden
    activity: np.ndarray  # [n], probability to come on a day when neither pleased nor annoyed
    user: np.ndarray
    user_drift: np.ndarray  # direction in which the latents of a user turn, eq. (W4)
    item_id: np.ndarray
    duration_ms: np.ndarray  # true one, > 0
    duration_known: np.ndarray  # bool[i]; an unknown one is logged as 0
    item: np.ndarray
    topic: np.ndarray  # int[i]
    popularity: np.ndarray  # [i], positive
    response: BilinearResponse

    @property
    def length(self) -> np.ndarray:
        """Standardised log duration [i]."""
        logs = np.log(self.duration_ms)
        return (logs - logs.mean()) / max(logs.std(), 1e-9)

    @property
    def topics(self) -> int:
        return int(self.topic.max()) + 1


def synthetic(settings: Settings, constants: WorldConstants, seed: int) -> Population:
    """Users and items whose marginals follow KuaiRand's tables; loadings as in ``constants``."""
    world = settings.world
    check_sizes(settings, world.items)
    rng = np.random.default_rng([seed, 1])
    n, items, topics = world.users, world.items, constants.topics
    activity = np.clip(rng.beta(*constants.activity, n), 0.005, 0.97)
    profile = _profile(rng, activity)
    kind = draw_kinds(profile, constants, rng)

    topic = rng.integers(0, topics, items)
    quality, bait, sociality, controversy = rng.standard_normal((4, items))
    rho = constants.bait_quality_correlation
    bait = rho * quality + np.sqrt(1.0 - rho**2) * bait
    by_topic = rng.normal(0.0, 0.2, (items, topics))
    by_topic[np.arange(items), topic] += 1.0
    item = np.column_stack([by_topic, quality, bait, sociality, controversy])

    taste = rng.standard_normal((n, topics))
    sensitivity = np.exp(rng.normal(0.0, constants.sensitivity_log_sd, (n, 4)))
    offsets = rng.standard_normal((n, len(HEADS)))
    pad = np.zeros((items, len(HEADS)))  # a user's own level of each head meets no item latent
    user = np.column_stack([taste, sensitivity, offsets])
    m = user.shape[1]
    interaction = np.zeros((len(HEADS), m))
    interaction[:, :topics] = np.array(constants.taste)[:, None]
    for place, loading in enumerate(
        (constants.quality, constants.bait, constants.sociality, constants.controversy)
    ):
        interaction[:, topics + place] = loading
    user_weight = np.zeros((len(HEADS), m))
    user_weight[np.arange(len(HEADS)), topics + 4 + np.arange(len(HEADS))] = constants.user_offset_sd
    low, high = constants.duration_range_s
    seconds = constants.duration_median_s * np.exp(rng.normal(0.0, constants.duration_log_sd, items))
    drift = np.zeros_like(user)
    drift[:, :topics] = rng.standard_normal((n, topics))
    # near what calibration ends at, so that it needs few rounds
    start = np.array([-0.95, -1.2, -6.3, -8.8, -8.6, -9.3, -7.8, 2.2])
    return Population(
        user_id=np.arange(1, n + 1, dtype=np.int64),
        profile=profile,
        kind=kind,
        activity=activity,
        user=user,
        user_drift=drift,
        item_id=np.arange(1, items + 1, dtype=np.int64),
        duration_ms=(np.clip(seconds, low, high) * 1000).astype(np.int64),
        duration_known=rng.random(items) >= constants.unknown_duration_share,
        item=np.column_stack([item, pad]),
        topic=topic,
        popularity=np.exp(rng.normal(0.0, constants.popularity_log_sd, items)),
        response=BilinearResponse(start, user_weight, np.zeros((len(HEADS), m)), interaction),
    )


def check_sizes(settings: Settings, items: int) -> None:
    """Raises :class:`SettingsError` when the page or the candidates cannot be filled."""
    world = settings.world
    if world.candidates > items:
        raise SettingsError(f"world.candidates is {world.candidates}, but there are only {items} items")
    if world.page > world.candidates:
        raise SettingsError(f"world.page is {world.page}, more than world.candidates {world.candidates}")


def draw_kinds(
    profile: dict[str, np.ndarray], constants: WorldConstants, rng: np.random.Generator
) -> np.ndarray:
    """Hidden kinds int8[n] given the profiles, eq. (W2): P(kind) = softmax(M · profile)."""
    n = len(next(iter(profile.values())))

    def column(name: str) -> np.ndarray:
        """Standardised; zeros where the value is missing, or the whole column is."""
        values = np.array(profile.get(name, np.zeros(n)), dtype=np.float64)
        values = np.log1p(np.maximum(values, 0.0)) if name.endswith("_num") else values
        return np.nan_to_num((values - np.nanmean(values)) / max(np.nanstd(values), 1e-9))

    degree = _degree_rank(profile.get("user_active_degree", np.full(n, DEGREES[-1], dtype=object)))
    names = ("fans_user_num", "friend_user_num", "follow_user_num", "register_days", "is_video_author")
    scaled = [(degree - degree.mean()) / max(degree.std(), 1e-9), *map(column, names)]
    features = np.column_stack([np.ones(n), *scaled])
    probability = softmax(features @ np.array(constants.kind_from_profile).T, axis=1)
    draws = rng.random((len(probability), 1))
    return np.minimum((draws > probability.cumsum(axis=1)).sum(axis=1), len(KINDS) - 1).astype(np.int8)


def _degree_rank(degrees: np.ndarray) -> np.ndarray:
    """full_active 3 … low_active 0; KuaiRand's rarer values count as low."""
    rank = {name: place for place, name in enumerate(DEGREES)}
    return np.array([rank.get(str(degree), 0) for degree in degrees], dtype=np.float64)


def _profile(rng: np.random.Generator, activity: np.ndarray) -> dict[str, np.ndarray]:
    """Observable columns; quartiles of the counts and shares of the degrees as in KuaiRand-Pure."""
    n = len(activity)
    sociable = rng.standard_normal(n)

    def count(median: float, log_sd: float) -> np.ndarray:
        z = 0.7 * sociable + 0.714 * rng.standard_normal(n)
        return np.floor(median * np.exp(log_sd * z)).clip(0, 5_000).astype(np.float64)

    # the visible degree follows the true activity, but not strictly
    visible = np.argsort(np.argsort(activity + rng.normal(0.0, 0.25, n))) / n
    degree = np.digitize(visible, [0.04, 0.12, 0.34])
    return {
        "user_active_degree": np.array(DEGREES, dtype=object)[degree],
        "is_lowactive_period": (rng.random(n) < np.where(degree == 0, 0.3, 0.01)).astype(np.int8),
        "is_video_author": (rng.random(n) < np.where(sociable > 0.5, 0.95, 0.76)).astype(np.int8),
        "follow_user_num": count(155.0, 1.5),
        "fans_user_num": count(48.0, 2.2),
        "friend_user_num": count(16.0, 2.2),
        "register_days": rng.gamma(3.1, 388.0, n).clip(14, 3_650).round(),
    }
