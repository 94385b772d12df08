"""Every number of the world in one place, and the real rates that it is held against.

Arrays over kinds follow :data:`KINDS`, arrays over heads :data:`HEADS`. The equations are those of
``docs/world.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

KINDS = ("skimmer", "deep", "social", "sensitive")
HEADS = ("click", "long_view", "like", "follow", "comment", "forward", "hate", "play_time")
EVENTS = HEADS[:-1]
EVENT_COLUMNS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate")
DEGREES = ("low_active", "middle_active", "high_active", "full_active")

# Rates per shown item under the static weights. Source: KuaiRand-Pure, standard log (the column "Pure
# standard" of the data description); play time: mean of the slice 25 to 30 April 2022, capped at 240 s.
TARGET_RATES: Mapping[str, float] = MappingProxyType(
    {
        "click": 0.460,
        "long_view": 0.332,
        "like": 0.0185,
        "follow": 0.00107,
        "comment": 0.00255,
        "forward": 0.00096,
        "hate": 0.0005,
        "play_time": 20.0,
    }
)
# Same source: share of rows by local hour, hour 0 first.
HOUR_SHARE = (
    *(0.0365, 0.0228, 0.0148, 0.0094, 0.0078, 0.0098, 0.0177, 0.0266, 0.0338, 0.0402, 0.0460, 0.0515),
    *(0.0586, 0.0559, 0.0508, 0.0524, 0.0556, 0.0599, 0.0562, 0.0547, 0.0565, 0.0606, 0.0641, 0.0578),
)


@dataclass(frozen=True)
class WorldConstants:
    # items
    topics: int = 8
    duration_median_s: float = 70.6  # KuaiRand-Pure's median and quartiles (25.9, 156.4)
    duration_log_sd: float = 1.2
    duration_range_s: tuple[float, float] = (3.0, 1200.0)
    unknown_duration_share: float = 0.0156
    popularity_log_sd: float = 1.0
    bait_quality_correlation: float = -0.5

    # true response, eq. (W1): standard deviation of intercepts and loadings of the synthetic build
    taste: tuple[float, ...] = (0.50, 0.75, 0.50, 0.40, 0.40, 0.40, -0.40, 0.35)
    quality: tuple[float, ...] = (0.15, 1.10, 0.50, 0.60, 0.10, 0.30, -0.30, 0.60)
    bait: tuple[float, ...] = (1.30, -0.70, -0.20, -0.20, 0.10, 0.00, 0.60, -0.40)
    sociality: tuple[float, ...] = (-0.10, -0.10, 0.70, 0.70, 0.80, 0.60, 0.00, -0.05)
    controversy: tuple[float, ...] = (0.10, -0.30, -0.20, -0.20, 1.00, 0.90, 1.20, -0.20)
    length: tuple[float, ...] = (0.00, -0.15, 0.00, 0.00, 0.00, 0.00, 0.00, 0.35)
    user_offset_sd: tuple[float, ...] = (0.30, 0.30, 0.50, 0.50, 0.50, 0.50, 0.50, 0.15)
    sensitivity_log_sd: float = 0.3

    # kinds of users, both builds: shift of every head's logit, and of its slope on log duration
    kind_shift: tuple[tuple[float, ...], ...] = (
        (0.25, -0.35, -0.80, -0.50, -0.80, -0.60, -0.50, -0.30),
        (-0.10, 0.30, -0.50, 0.00, -0.50, -0.30, -0.50, 0.25),
        (0.00, 0.00, 2.20, 1.60, 2.20, 1.80, -0.50, 0.00),
        (-0.20, -0.10, -0.50, -0.30, -0.30, -0.30, 1.80, -0.05),
    )
    kind_length: tuple[tuple[float, ...], ...] = (
        (-0.20, -0.55, 0.0, 0.0, 0.0, 0.0, 0.1, -0.30),
        (0.05, 0.40, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25),
        (0.00, 0.00, 0.0, 0.0, 0.0, 0.0, 0.0, 0.00),
        (0.00, -0.10, 0.0, 0.0, 0.0, 0.0, 0.1, 0.00),
    )
    # kind from the profile, eq. (W2): columns are 1, active degree, log fans, log friends, log follows,
    # register days, video author; all but the first standardised
    kind_from_profile: tuple[tuple[float, ...], ...] = (
        (1.70, -0.60, -0.50, -0.50, 0.20, -1.60, -0.30),
        (0.50, 1.60, -0.40, -0.60, -0.30, 1.20, -0.30),
        (-0.60, 0.30, 1.50, 2.00, 1.00, 0.00, 0.80),
        (0.00, -1.60, -0.40, -0.40, -0.80, 0.80, -0.50),
    )

    # upstream predictions, eq. (W3)
    prediction_noise: tuple[float, ...] = (0.35, 0.40, 0.80, 1.60, 1.60, 1.70, 1.50, 0.30)
    prediction_bias: float = 0.15  # amplitude by head and topic
    prediction_bias_days: float = 11.0

    # drift over days, eq. (W4)
    popularity_drift: float = 0.5
    popularity_days: float = 9.0
    taste_drift: float = 0.3
    taste_days: float = 30.0
    retrieval_sharpness: float = 0.5  # how far candidates follow the user's taste

    # one impression, eq. (W5) to (W7)
    attention: float = 0.94  # a position is looked at with attention ** position
    long_view_ceiling: float = 0.97  # largest P(long view | click)
    short_play_s: float = 2.5  # mean of a play that is no click
    click_play_s: float = 11.0  # mean of a click that is no long view
    replay: float = 0.1  # mean share of a finished video that is played again
    no_play_share: float = 0.2  # of the impressions without a click that are looked at
    click_exception: float = 0.0035  # long views logged without a click, as in KuaiRand
    # relative odds of an interaction by (no click, click, long view): joint counts of KuaiRand-Pure
    interaction_odds: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: MappingProxyType(
            {
                "like": (1.0, 4.4, 6.4),
                "follow": (1.0, 5.6, 8.5),
                "comment": (1.0, 16.0, 60.0),
                "forward": (1.0, 10.0, 16.0),
                "hate": (1.0, 1.5, 0.8),
            }
        )
    )
    follow_given_like: float = 15.0  # relative odds of a follow after a like

    # satisfaction, eq. (W8): what one event of each sort is worth to each kind
    worth_long_view: tuple[float, ...] = (0.05, 0.30, 0.05, 0.20)
    worth_deep_play: tuple[float, ...] = (-0.60, 0.50, -0.10, 0.05)  # of min(play / deep_play_s, 1)
    worth_click_only: tuple[float, ...] = (0.09, -0.50, -0.20, -0.45)
    worth_short_finish: tuple[float, ...] = (0.45, -0.05, 0.05, 0.05)  # finished, at most short_s long
    worth_interaction: tuple[float, ...] = (0.20, 0.20, 0.50, 0.20)
    worth_hate: tuple[float, ...] = (-0.50, -0.50, -0.50, -1.50)
    worth_repetition: tuple[float, ...] = (-0.30, -0.10, -0.15, -0.60)
    deep_play_s: float = 60.0
    short_s: float = 30.0
    satisfaction_memory: float = 0.85
    satisfaction_gain: float = 5.0
    felt_share: float = 0.7  # of what an item is worth to the user; the rest is what happened to happen
    satisfaction_range: float = 3.0
    topic_memory: float = 0.6

    # fatigue, eq. (W9), and what it does to the response
    fatigue_request: float = 0.05
    fatigue_second: float = 0.0007
    kind_fatigue: tuple[float, ...] = (1.40, 0.90, 1.00, 1.10)
    fatigue_shift: tuple[float, ...] = (-0.20, -0.30, 0.0, 0.0, 0.0, 0.0, 0.3, -0.20)
    fatigue_length: tuple[float, ...] = (-0.10, -0.50, 0.0, 0.0, 0.0, 0.0, 0.1, -0.35)

    # leaving, eq. (W10), and coming back, eq. (W11)
    leave_base: float = -4.0
    leave_fatigue: float = 3.0
    leave_satisfaction: float = 1.6
    carry: float = 0.4  # share of the long-term satisfaction that a session starts with
    long_term_memory: float = 0.7
    activity: tuple[float, float] = (0.43, 0.89)  # Beta of the daily visit probability, fits the gaps
    return_satisfaction: float = 0.8

    # time
    think_s: tuple[float, float] = (1.0, 8.0)
    last_start_h: float = 23.4  # no session starts later, so that few meet midnight
    session_requests: float = 7.2  # mean length under static weights, used to size the day's traffic
    maximum_sessions: int = 6


CONSTANTS = WorldConstants()
