"""Is one policy better than another, as far as their users tell? A difference that holds at every look.

**Estimate.** Session returns are regressed on an effect of each stratum, the side (1: treated), and what was
known of the user before (the covariates of :mod:`serving.log.index.tallies`: CUPED, Deng, Xu, Kohavi &
Walker, WSDM 2013); θ is the side's coefficient. All sessions of a user in a stratum have the same regressors,
so sums a user are enough. Users were randomised, not sessions: the variance is cluster-robust by user
(Liang & Zeger 1986), σ̂² = G/(G − 1) Σ_u (Σ c·z (r − β·z))² with c the row of θ in (ZᵀZ)⁻¹.

**Sequence.** θ̂ ± σ̂ √((1 + 1/(tρ²)) log((tρ² + 1)/α²)): the asymptotic confidence sequence of theorem 2.2 in
Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences" (arXiv 2103.06476), regression-adjusted, for an estimate whose information grows with t, the
effective sessions Σ_strata n₁n₀/(n₁ + n₀). ρ² = (−2 log α + log(−2 log α + 1))/t* makes it narrowest at t*.
That the score's increments are independent in the limit, as a group-sequential test needs it (Scharfstein,
Tsiatis & Robins, JASA 1997), is what the measurement in docs/results/canary.md checks.

**Sample-ratio mismatch.** The Bayes factor of a Beta mixture against the shares in force is a martingale over
users as they come: it passes 1/ε once in 1/ε canaries at most (Lindon & Malek, arXiv 2011.03567).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from serving.log.index.tallies import Cell, Tallies

MISMATCH_ERROR = 0.001
_CONCENTRATION = 1_000.0  # of the mixture around the shares: finds a share that is off by a tenth


@dataclass(frozen=True)
class Difference:
    """Treated − control of a mean over sessions: ``low`` to ``high`` hold at all looks together.

    ``sessions`` are both sides', ``sd`` is of one session as users come: σ̂ √t.
    """

    value: float
    low: float
    high: float
    sd: float


@dataclass(frozen=True)
class Evidence:
    """What the users of a comparison tell. Without an estimate yet the differences are None."""

    sessions: tuple[int, int]  # treated, control
    users: int
    control_mean: float
    effective: float
    reward: Difference | None
    negative: Difference | None
    newest: tuple[float, int, int]  # the last stratum: its beginning, its treated and its control users


def evidence(tallies: Tallies, name: str, error: float, tuned_to: float) -> Evidence:
    """Of a comparison by its name; ``error`` is α over all looks, both ends together. sqlite3.Error."""
    cells = tallies.cells(name)
    treated, control = (sum(c.sessions for c in cells if c.treated == side) for side in (1, 0))
    newest = max((c.stratum for c in cells), default=0.0)
    users = [sum(c.users for c in cells if c.treated == side and c.stratum == newest) for side in (1, 0)]
    total = sum(c.reward for c in cells if not c.treated)
    known = (
        (treated, control),
        sum(c.users for c in cells),
        total / control if control else 0.0,
        effective_sessions(cells),
    )
    last = (newest, users[0], users[1])
    if known[3] < 2.0:
        return Evidence(*known, None, None, last)
    strata = sorted({c.stratum for c in cells})
    gram, targets = _normal_equations(cells, strata)
    inverse = np.linalg.pinv(gram, hermitian=True)
    reward, negative = inverse @ targets.T[0], inverse @ targets.T[1]
    own, k = inverse[len(strata)], len(strata)
    found, *meat = tallies.meat(
        name,
        [(stratum, own[j], reward[j], negative[j]) for j, stratum in enumerate(strata)],
        **{
            f"{prefix}{letter}": float(values[k + place])
            for prefix, values in (("c", own), ("", reward), ("n", negative))
            for place, letter in enumerate("twx")
        },
    )
    if found < 2:
        return Evidence(*known, None, None, last)
    spread = [math.sqrt(m * found / (found - 1)) for m in meat]
    differences = [
        sequence(float(fit[k]), deviation, known[3], error, tuned_to)
        for fit, deviation in ((reward, spread[0]), (negative, spread[1]))
    ]
    return Evidence(known[0], found, known[2], known[3], differences[0], differences[1], last)


def effective_sessions(cells: Sequence[Cell]) -> float:
    """t = Σ_strata n₁n₀/(n₁ + n₀): half of either side's sessions, where both have as many."""
    counts: dict[float, list[int]] = {}
    for cell in cells:
        counts.setdefault(cell.stratum, [0, 0])[cell.treated] += cell.sessions
    return float(sum(a * b / (a + b) for a, b in counts.values() if a + b))


def sequence(value: float, deviation: float, effective: float, error: float, tuned_to: float) -> Difference:
    """``value`` with standard error ``deviation`` after ``effective`` sessions, at every look together."""
    half = deviation * width(effective, error, tuned_to)
    return Difference(value, value - half, value + half, deviation * math.sqrt(effective))


def width(effective: float, error: float, tuned_to: float) -> float:
    """Standard errors to either side: √((1 + 1/(tρ²)) log((tρ² + 1)/α²))."""
    twice = -2.0 * math.log(error)
    scaled = effective * (twice + math.log(twice + 1.0)) / tuned_to
    return math.sqrt((1.0 + 1.0 / scaled) * (math.log(scaled + 1.0) + twice))


def sessions_needed(
    sd: float, effect: float, confidence: float, power: float = 0.8, r2: float = 0.0, tuned_to: float = 0.0
) -> int:
    """Sessions an arm, both arms alike, after which a difference of ``effect`` is shown with ``power``.

    Least n with effect ≥ √(2/n) · sd · √(1 − r2) · (width + z_power): the power at that one look, so a
    little less than that of all looks up to it. ``sd`` is a session's, with what users who come again add
    to it; ``r2`` what a covariate takes from its square; ``tuned_to`` 0 is narrowest just then. 0 where
    there is nothing to see (``sd`` 0), and raises ValueError without an effect.
    """
    if effect <= 0.0:
        raise ValueError(f"effect {effect} must be above 0")
    error, z = 1.0 - confidence, NormalDist().inv_cdf(power)
    spread = sd * math.sqrt(1.0 - r2)

    def enough(n: float) -> bool:
        t = n / 2.0
        return effect >= spread / math.sqrt(t) * (width(t, error, tuned_to or t) + z)

    if spread == 0.0:
        return 0
    low, high = 1.0, 2.0
    while not enough(high):
        low, high = high, 2.0 * high
    while high - low > 1.0:
        middle = (low + high) / 2.0
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.ceil(high)


def mismatch(treated: int, control: int, share: float) -> bool:
    """Whether so many users of either side cannot come of ``share``, the treated's of both sides' shares."""
    if not 0.0 < share < 1.0:
        return False
    a, b = _CONCENTRATION * share, _CONCENTRATION * (1.0 - share)
    mixed = _log_beta(a + treated, b + control) - _log_beta(a, b)
    return mixed - treated * math.log(share) - control * math.log1p(-share) > -math.log(MISMATCH_ERROR)


def _normal_equations(cells: Sequence[Cell], strata: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """ZᵀZ [p, p] and Zᵀ(reward, negative) [p, 2] of the strata, the side and the covariates."""
    k = len(strata)
    gram, targets = np.zeros((k + 3, k + 3)), np.zeros((k + 3, 2))
    place = {stratum: j for j, stratum in enumerate(strata)}
    for c in cells:
        j = place[c.stratum]
        fixed = [j, k] if c.treated else [j]
        for a in fixed:
            for b in fixed:
                gram[a, b] += c.sessions
            gram[a, k + 1 :] += (c.w, c.x)
            gram[k + 1 :, a] += (c.w, c.x)
            targets[a] += (c.reward, c.negative)
        gram[k + 1 :, k + 1 :] += ((c.ww, c.wx), (c.wx, c.xx))
        targets[k + 1 :] += ((c.reward_w, c.negative_w), (c.reward_x, c.negative_x))
    return gram, targets


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def recorded(found: Evidence) -> dict[str, Any]:
    """For a record: the difference's value and sequence, and what it rests on."""
    gain = found.reward
    return {
        **(
            {"value": None, "lower": None, "upper": None, "sd": None}
            if gain is None
            else {"value": gain.value, "lower": gain.low, "upper": gain.high, "sd": gain.sd}
        ),
        "control_mean": found.control_mean,
        "sessions": found.sessions[0],
        "control_sessions": found.sessions[1],
        "users": found.users,
        "negative": None if found.negative is None else asdict(found.negative),
    }
