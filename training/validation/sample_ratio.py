"""Are the users in the arms as the shares say? Sample-ratio mismatch, the first sign of a broken assignment.

Users are counted, not sessions: an arm is drawn for a user and an epoch, so a user's sessions are in it
together. A user counts for the arm that their first session of the tested time began in. Days of one epoch
are tests of nearly the same draws: a chance imbalance shows on each of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from scipy.stats import chi2

from training.contract import in_service
from training.contract.epochs import epoch_of_day
from training.contract.log import ARMS, CHAMPION
from training.contract.settings import Settings, ShareSettings
from training.validation.partitions import Partition

LEAST_EXPECTED = 5.0  # users of an arm below which it is counted together with others (Cochran's rule)


@dataclass(frozen=True)
class InForce:
    """Shares, and the time of a day that they were in force."""

    since: datetime
    until: datetime
    shares: Mapping[str, float]  # by arm; they add up to 1


@dataclass(frozen=True)
class SampleRatio:
    """``p`` of Pearson's chi-square test of the ``observed`` users by arm against those ``expected``."""

    p: float
    observed: Mapping[str, int]
    expected: Mapping[str, float]


def in_force(settings: Settings, day: date) -> list[InForce] | str:
    """The shares of a local day, in order of time; or why they are not known."""
    changes = [
        (datetime.fromisoformat(event["ts"]), ShareSettings(**event["shares"]))
        for event in in_service.read(settings).history
        if event["action"] == "shares"
    ]
    if changes and settings.serving.accept_event_ts:
        return "shares have changed at times of the clock, and the log's times are the callers' own"
    begin, end = settings.day_start(day), settings.day_start(day + timedelta(days=1))
    before = [change for change in changes if change[0] <= begin]
    shares = before[-1][1] if before else settings.serving.shares
    if before:  # sessions that run over a change keep the arm of before
        begin = max(begin, before[-1][0] + timedelta(minutes=settings.session.gap_minutes))
    within = [(begin, shares), *(change for change in changes if begin < change[0] < end)]
    ends = [since for since, _ in within[1:]] + [end]
    return [InForce(since, until, _by_arm(s)) for (since, s), until in zip(within, ends, strict=True)]


def compare(observed: Mapping[str, int], shares: Mapping[str, float]) -> SampleRatio | None:
    """The test; None with too few users for it. A user in an arm without a share is a mismatch in itself."""
    users = sum(observed.values())
    expected = {arm: users * share for arm, share in shares.items() if share > 0.0}
    counts = {arm: observed.get(arm, 0) for arm in expected}
    if sum(counts.values()) < users:
        stray = {arm: count for arm, count in observed.items() if arm not in expected and count}
        return SampleRatio(0.0, counts | stray, expected | dict.fromkeys(stray, 0.0))
    cells: list[list[float]] = [[0.0, 0.0]]
    for arm in sorted(expected, key=expected.__getitem__):  # small ones together, until they are enough
        if cells[-1][1] >= LEAST_EXPECTED:
            cells.append([0.0, 0.0])
        cells[-1][0] += counts[arm]
        cells[-1][1] += expected[arm]
    if len(cells) < 2 or any(cell[1] < LEAST_EXPECTED for cell in cells):
        return None
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    return SampleRatio(float(chi2.sf(statistic, len(cells) - 1)), counts, expected)


def of_day(settings: Settings, day: date, decisions: Partition) -> SampleRatio | str:
    """The test of a day's decisions, or why there is none.

    On a day on which shares changed, the time with the most users is tested. Users of a cohort that is not
    explored on (``serving.no_exploration_for``) are left out, and so are those whose state was missing then:
    their arm is no matter of the shares alone.
    """
    if not {"user_id", "session_id", "arm", "event_ts"} <= decisions.columns:
        return "the decisions do not name user, session, arm and time"
    times = in_force(settings, day)
    if isinstance(times, str):
        return times
    epoch = epoch_of_day(day, settings.serving.exploration.epoch_days)
    counted = [
        (decisions.users_by_arm(one.since, one.until, epoch, _cohorts(settings)), one) for one in times
    ]
    observed, tested = max(counted, key=lambda pair: sum(pair[0].values()))
    found = compare(observed, tested.shares)
    if found is None:
        return f"too few users for a test: {sum(observed.values())}"
    return found


def _by_arm(shares: ShareSettings) -> dict[str, float]:
    given = {arm: float(getattr(shares, arm)) for arm in ARMS if arm != CHAMPION}
    return {**given, CHAMPION: max(0.0, 1.0 - sum(given.values()))}


def _cohorts(settings: Settings) -> list[int]:
    names = settings.state_spec.entry_names
    return [names.index(name) for name in settings.serving.no_exploration_for]
