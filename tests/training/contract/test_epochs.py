"""Epochs of the assignment: of a day, and of any of its instants."""

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from training.contract.epochs import FIRST_DAY, epoch_of, epoch_of_day


@given(
    day=st.dates(date(2000, 1, 1), date(2100, 1, 1)),
    second=st.integers(0, 86_399),
    offset=st.integers(-12, 14),
    epoch_days=st.integers(1, 90),
)
def test_an_instant_is_in_the_epoch_of_its_local_day(day, second, offset, epoch_days):
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=offset)
    instant = midnight + timedelta(seconds=second, microseconds=999_999)
    assert epoch_of(instant, offset, epoch_days) == epoch_of_day(day, epoch_days)


def test_an_epoch_lasts_its_days_from_a_fixed_date_on():
    days = [FIRST_DAY + timedelta(days=n) for n in range(20_000, 20_042)]
    epochs = [epoch_of_day(day, 14) for day in days]
    assert sorted(epochs) == epochs and len(set(epochs)) in (3, 4)
    assert epoch_of_day(FIRST_DAY, 14) == 0 and epoch_of_day(FIRST_DAY + timedelta(days=14), 14) == 1
