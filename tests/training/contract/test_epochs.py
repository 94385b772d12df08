"""Epochs of the assignment: of a day, and of any of its instants."""

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from training.contract.epochs import FIRST_DAY, epoch_of, epoch_of_day
from training.contract.settings.days import CalendarSettings


@given(
    day=st.dates(date(2000, 1, 1), date(2100, 1, 1)),
    second=st.integers(0, 86_399),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/Havana", "Africa/Cairo"]),
    epoch_days=st.integers(1, 90),
)
def test_an_instant_is_in_the_epoch_of_its_local_day(day, second, zone, epoch_days):
    calendar = CalendarSettings(timezone=zone)
    start, end = calendar.day_start(day), calendar.day_start(day + timedelta(days=1))
    instant = min(start + timedelta(seconds=second, microseconds=999_999), end - timedelta(microseconds=1))
    assert epoch_of(instant, calendar.zone, epoch_days) == epoch_of_day(day, epoch_days)


def test_an_epoch_lasts_its_days_from_a_fixed_date_on():
    days = [FIRST_DAY + timedelta(days=n) for n in range(20_000, 20_042)]
    epochs = [epoch_of_day(day, 14) for day in days]
    assert sorted(epochs) == epochs and len(set(epochs)) in (3, 4)
    assert epoch_of_day(FIRST_DAY, 14) == 0 and epoch_of_day(FIRST_DAY + timedelta(days=14), 14) == 1
