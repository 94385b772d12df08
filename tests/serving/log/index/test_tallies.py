"""Sessions become sums a user: what is told late, twice, or of two policies, and what was known before."""

import pytest

from serving.log.index.events import RequestEvents
from serving.log.index.request_index import ServedRequest
from serving.log.index.tallies import SHRINK, Comparison

NEW, OLD = ("challenger", "new"), ("champion", "old")


class Index:
    def __init__(self, make_index) -> None:
        self.now = 1.0
        self.index = make_index(
            reward=lambda e: e["reward"],
            negative=lambda e: bool(e.get("hate")),
            clock=lambda: self.now,
        )
        self.tallies = self.index.tallies

    def serve(self, session: str, user: int, key=NEW, request: str | None = None, **kinds) -> None:
        self.index.add([ServedRequest(request or f"r-{session}", user, session, 0.0, *key, **kinds)])

    def feed(self, session: str, reward: float, hate: int = 0, item: int = 1) -> None:
        self.index.events.add(
            [RequestEvents(f"r-{session}", session, {item: {"reward": reward, "hate": hate}})]
        )

    def add(self, *comparisons: Comparison, idle: float = 0.0) -> int:
        assert self.index.lead(60.0)
        return self.tallies.add(comparisons, self.now - idle, self.now)

    def sums(self) -> dict[int, tuple]:
        """(users, sessions, reward, negative) by side."""
        found = {}
        for c in self.tallies.cells("c"):
            found[c.treated] = (c.users, c.sessions, c.reward, c.negative)
        return found


@pytest.fixture
def index(make_index):
    return Index(make_index)


def comparison(since: float = 0.0, key: str = "k") -> Comparison:
    return Comparison("c", key, since, [NEW], [OLD])


def test_sessions_that_rest_are_counted_once_by_user_and_side(index):
    for session, user in (("a", 1), ("b", 1), ("c", 2)):
        index.serve(session, user)
        index.feed(session, 2.0, hate=1)
    index.serve("d", 3, OLD)
    index.feed("d", 5.0)
    index.serve("e", 4, ("noise", "old"))
    assert index.add(comparison(), idle=1.0) == 0  # all were seen just now
    index.now += 2.0
    assert index.add(comparison(), idle=1.0) == 5
    assert index.sums() == {1: (2, 3, 6.0, 3.0), 0: (1, 1, 5.0, 0.0)}
    assert index.add(comparison(), idle=1.0) == 0


def test_feedback_that_comes_late_or_again_moves_the_sums_by_the_difference(index):
    index.serve("a", 1)
    index.feed("a", 2.0, hate=1)
    index.add(comparison())
    index.feed("a", 3.0)  # of the same item: in place of the first
    index.feed("a", 1.0, item=2)
    index.serve("a", 1, request="r-2")  # and the session goes on
    index.add(comparison())
    assert index.sums() == {1: (1, 1, 4.0, 0.0)}


def test_a_session_that_saw_two_policies_or_is_there_by_exception_is_taken_back(index):
    index.serve("a", 1)
    index.feed("a", 2.0)
    index.serve("b", 2, OLD, aside=True)
    index.feed("b", 2.0)
    index.add(comparison())
    assert index.sums() == {1: (1, 1, 2.0, 0.0)}
    index.serve("a", 1, OLD, request="r-2")
    index.add(comparison())
    assert index.sums() == {1: (1, 0, 0.0, 0.0)}


def test_a_comparison_begins_with_its_sessions_and_anew_with_another_key(index):
    index.serve("before", 1)
    index.now = 10.0
    index.serve("in", 2)
    index.add(comparison(since=5.0))
    assert index.sums() == {1: (1, 1, 0.0, 0.0)}
    index.now = 20.0
    index.add(comparison(since=20.0, key="another"))
    assert index.sums() == {}
    index.feed("in", 7.0)  # of the comparison before
    index.serve("new", 3)
    index.add(comparison(since=20.0, key="another"))
    assert index.sums() == {1: (1, 1, 0.0, 0.0)}


def test_what_was_known_of_a_user_stays_what_it_was_before(index):
    for session, reward in (("a", 4.0), ("b", 8.0)):
        index.serve(session, 1, ("noise", "old"))
        index.feed(session, reward)
    index.add()
    index.now = 10.0
    for session, user in (("c", 1), ("d", 2)):
        index.serve(session, user, OLD)
        index.feed(session, 100.0)
    index.add(comparison(since=10.0))
    index.tallies.shares("others", 11.0)
    index.now = 12.0
    index.serve("e", 1)  # moved to the challenger: the 100 are not of its past
    index.add(comparison(since=10.0))
    weight = 2 / (2 + SHRINK)
    cells = {(c.stratum, c.treated): c for c in index.tallies.cells("c")}
    assert set(cells) == {(0.0, 0), (11.0, 1)}
    for cell in cells.values():
        assert (cell.w, cell.x) == pytest.approx((weight, weight * 6.0))  # nothing is known of user 2


def test_other_shares_begin_a_stratum(index):
    assert index.tallies.shares("one", 5.0) == 5.0
    assert index.tallies.shares("one", 6.0) == 5.0
    assert index.tallies.shares("two", 7.0) == 7.0
    assert index.tallies.shares("three", 6.5) == 6.5  # the clock was set back
    assert index.tallies.shares("three", 6.6) == 6.5


def test_a_comparison_of_a_future_that_is_none_any_more_begins_now(index):
    index.now = 100.0
    index.add(comparison(since=100.0))
    index.now = 50.0
    index.serve("a", 1)
    index.add(comparison(since=100.0))
    index.now = 51.0
    index.serve("b", 2)
    index.add(comparison(since=100.0))
    assert index.sums()[1][1] == 2
