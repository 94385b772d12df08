from hypothesis import given
from hypothesis import strategies as st

from serving.http.rate_limit import RateLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_then_the_rate():
    clock = Clock()
    limit = RateLimit(2.0, 3, clock=clock)
    assert [limit.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limit.take("b") == 0.0  # another caller has a bucket of its own
    clock.now = 0.5
    assert limit.take("a") == 0.0 and limit.take("a") == 0.5
    clock.now = 100.0  # a bucket never holds more than the burst
    assert [limit.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_the_callers_seen_last_are_remembered():
    limit = RateLimit(1.0, 1, callers=2, clock=Clock())
    assert [limit.take(caller) for caller in "abc"] == [0.0] * 3
    assert limit.take("b") == 1.0 and limit.take("c") == 1.0  # known
    assert limit.take("a") == 0.0  # forgotten for c


@given(st.lists(st.floats(0.0, 2.0), max_size=60), st.floats(0.5, 5.0), st.integers(1, 5))
def test_no_more_than_the_burst_and_the_rate_ever_pass(pauses, per_second, burst):
    clock = Clock()
    limit = RateLimit(per_second, burst, clock=clock)
    passed = 0
    for pause in pauses:
        clock.now += pause
        wait = limit.take("a")
        passed += wait == 0.0
        assert 0.0 <= wait <= 1.0 / per_second
    assert passed <= burst + clock.now * per_second + 1e-6
