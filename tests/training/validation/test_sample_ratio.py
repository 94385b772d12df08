"""Users by arm against the shares: a fair split passes, a broken one is named, the rest is said."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest, chisquare

from serving.ranking import arms
from tests.training.validation.test_landed import failures
from training.contract import in_service
from training.contract.epochs import epoch_of_day
from training.contract.files import write_json_atomic
from training.contract.layout import DECISIONS
from training.contract.settings import Settings, ShareSettings
from training.ingest import land
from training.validation import sample_ratio
from training.validation.partitions import Partition, inspect, parquet_files
from training.validation.stages import validate_landed

DAY = date(2026, 1, 7)
EPOCH = epoch_of_day(DAY, 14)
SHARES = ShareSettings(static=0.2, random=0.1, noise=0.1, challenger=0.1)
BY_ARM = {"static": 0.2, "random": 0.1, "noise": 0.1, "box": 0.0, "challenger": 0.1, "champion": 0.5}


def settings(folder, **serving) -> Settings:
    return Settings(data=folder, serving={"shares": SHARES.model_dump(), "max_exploration": 0.5} | serving)


def assigned(users, shares=SHARES, epoch=EPOCH) -> list[str]:
    return [arms.draw(shares, "mtf", epoch, user, f"challenger {epoch}") for user in users]


def judged(settings, users, arm, hours, epoch=EPOCH, states=None):
    """A session each, of two requests, at the given hours of the day; the day's test."""
    n = len(users)
    width = settings.state_spec.width
    begin = np.datetime64(settings.day_start(DAY).replace(tzinfo=None), "us")
    times = begin + (np.asarray(hours) * 3.6e9).astype("timedelta64[us]")
    both = {
        "request_id": [f"r{i}-{k}" for k in range(2) for i in range(n)],
        "session_id": [f"s{i}" for i in range(n)] * 2,
        "user_id": [*users] * 2,
        "event_ts": pa.array(np.concatenate([times, times + np.timedelta64(60, "s")])),
        "policy_version": ["v"] * 2 * n,
        "arm": [*arm] * 2,
        "state": [[0.0] * width if states is None else states[i] for i in range(n)] * 2,
        "action": [[0.0]] * 2 * n,
        "action_mean": [[0.0]] * 2 * n,
        "state_spec": ["s"] * 2 * n,
        "epoch": pa.array([epoch] * 2 * n, pa.int64()),
    }
    land(settings, DECISIONS, DAY, pa.table(both), "service")
    partition = Partition(inspect(parquet_files([settings.layout.partition(DECISIONS, DAY)])))
    return sample_ratio.of_day(settings, DAY, partition)


def hours(n: int) -> np.ndarray:
    return np.linspace(0.5, 23.0, n)


@pytest.mark.parametrize("epoch", [EPOCH, None])  # lines of version 1 do not say
def test_a_fair_split_passes_by_users_and_counts_each_once(tmp_path, epoch):
    users = [*range(4_000), *range(500)]  # some come twice
    found = judged(settings(tmp_path), users, assigned(users), hours(4_500), epoch)
    assert sum(found.observed.values()) == 4_000 == pytest.approx(sum(found.expected.values()))
    assert found.p > 0.01
    used = [arm for arm in found.expected if found.expected[arm]]
    expected = chisquare([found.observed[a] for a in used], [found.expected[a] for a in used]).pvalue
    assert found.p == pytest.approx(expected)


def test_users_lost_from_an_arm_are_a_mismatch(tmp_path):
    """A tenth of the static arm's users never reach the log."""
    users = [user for user, arm in enumerate(assigned(range(20_000))) if arm != "static" or user % 10]
    found = judged(settings(tmp_path), users, assigned(users), hours(len(users)))
    assert found.p < 1e-3


def test_fair_splits_are_taken_for_a_mismatch_as_often_as_the_p_value_says():
    users, alarms = range(2_000), 0
    for epoch in range(400):
        drawn = assigned(users, epoch=epoch)
        found = sample_ratio.compare({arm: drawn.count(arm) for arm in set(drawn)}, BY_ARM)
        alarms += found.p < 0.05
    assert binomtest(alarms, 400, 0.05).pvalue > 1e-3


def test_small_arms_are_counted_together_and_too_few_users_are_not_tested():
    shares = {"static": 0.04, "random": 0.02, "noise": 0.02, "champion": 0.92}
    assert sample_ratio.compare({"champion": 50, "static": 2}, shares) is None
    found = sample_ratio.compare({"champion": 92, "static": 8}, shares)
    assert found.p == pytest.approx(1.0)  # the three small ones together: 8 of 8


def test_a_user_in_an_arm_without_a_share_is_a_mismatch():
    found = sample_ratio.compare(
        {"champion": 500, "static": 200, "random": 100, "noise": 100, "box": 1}, BY_ARM
    )
    assert found.p == 0.0 and found.observed["box"] == 1 and found.expected["box"] == 0.0


def change(settings: Settings, hour: float, shares: ShareSettings) -> None:
    at = settings.day_start(DAY) + timedelta(hours=hour)
    with in_service.changing(settings) as row:
        row.append({"action": "shares", "shares": shares.model_dump(), "ts": at.isoformat()})


def test_a_day_is_split_where_its_shares_changed_and_its_fuller_part_is_tested(tmp_path):
    own = settings(tmp_path)
    grown = SHARES.model_copy(update={"static": 0.4})
    change(own, 6.0, grown)
    when = hours(6_000)
    users = range(6_000)
    arm = [
        b if hour < 6.0 else a
        for hour, b, a in zip(when, assigned(users), assigned(users, grown), strict=True)
    ]
    found = judged(own, users, arm, when)
    assert found.p > 0.001 and sum(found.observed.values()) == (when >= 6.0).sum()
    assert found.expected["static"] == pytest.approx(0.4 * (when >= 6.0).sum())
    # all of the day by the shares of the morning: in the afternoon these are wrong
    assert judged(own, users, assigned(users), when).p < 1e-3


def test_the_last_change_before_the_day_is_in_force(tmp_path):
    own = settings(tmp_path)
    change(own, -30.0, SHARES.model_copy(update={"static": 0.0}))
    change(own, -20.0, SHARES.model_copy(update={"static": 0.5}))
    change(own, 30.0, SHARES)
    [only] = sample_ratio.in_force(own, DAY)
    assert only.shares["static"] == 0.5 and only.shares["champion"] == pytest.approx(0.2)
    assert (only.since, only.until) == (own.day_start(DAY), own.day_start(DAY + timedelta(days=1)))


def test_changes_cannot_be_placed_in_a_log_that_brings_its_own_time(tmp_path):
    own = settings(tmp_path, accept_event_ts=True)
    assert not isinstance(sample_ratio.in_force(own, DAY), str)  # nothing has changed
    change(own, -30.0, SHARES)
    assert "the log's times are the callers' own" in sample_ratio.in_force(own, DAY)


def test_sessions_that_began_in_another_epoch_do_not_count(tmp_path):
    users = range(2_000)
    found = judged(settings(tmp_path), users, ["static"] * 2_000, hours(2_000), epoch=EPOCH - 1)
    assert found == "too few users for a test: 0"


def test_users_of_a_cohort_that_is_not_explored_on_are_left_out(tmp_path):
    own = settings(tmp_path, no_exploration_for=["is_lowactive_period"])
    place, width = own.state_spec.entry_names.index("is_lowactive_period"), own.state_spec.width
    users, low = range(6_000), np.zeros(width)
    low[place] = 1.0
    states = [low if user % 3 == 0 else np.zeros(width) for user in users]
    drawn = assigned(users)
    arm = [
        "champion" if user % 3 == 0 and one in arms.EXPLORING else one
        for user, one in zip(users, drawn, strict=True)
    ]
    found = judged(own, users, arm, hours(6_000), states=states)
    assert found.p > 1e-3 and sum(found.observed.values()) == 4_000
    assert judged(settings(tmp_path), users, arm, hours(6_000), states=states).p < 1e-3


def test_the_days_record_warns_of_a_mismatch_and_the_day_goes_on(lake):
    """The lake's arms were drawn in other shares than those of the settings."""
    day = date(2026, 1, 5)
    shares = ShareSettings(static=0.6)
    serving = lake.settings.serving.model_copy(update={"shares": shares})
    lake.settings = lake.settings.model_copy(update={"serving": serving})
    lake.add_day(day, requests=2_000)
    assert not [
        fault
        for fault in failures(validate_landed(lake.settings, day), "warning")
        if fault["column"] == "arm"
    ]
    folder = lake.settings.layout.partition(DECISIONS, day)
    write_json_atomic(folder / "_landed.json", {"source": "service", "rows": 2_000, "columns": {}})
    record = validate_landed(lake.settings, day)
    [fault] = [fault for fault in failures(record, "warning") if fault["field"] == "arms_sample_ratio"]
    assert record["success"] and fault["suite"] == "decisions_day"
    assert "expected that users are in the arms as the shares say (static " in fault["message"]
    assert sum(record["measures"]["decisions"]["sample_ratio"]["observed"].values()) == 50
