from datetime import UTC, datetime, timedelta

import pytest

from serving.log.index.request_index import RequestIndex, ServedRequest
from serving.log.index.sessions import Session, SessionRequest

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def entry(
    request_id: str, user_id: int, session_id: str, event_s: float, arm: str = "champion", epoch: int = 0
) -> ServedRequest:
    return ServedRequest(request_id, user_id, session_id, event_s, arm, epoch=epoch)


def session_of(index: RequestIndex, user_id: int, session_id: str | None, event_ts: datetime) -> Session:
    return index.sessions.of([SessionRequest(user_id, session_id, event_ts)])[0]


def session(index: RequestIndex, user_id: int, session_id: str | None, event_ts: datetime) -> str:
    return session_of(index, user_id, session_id, event_ts).session_id


@pytest.fixture
def index(make_index):
    return make_index()


def test_a_request_without_a_session_continues_the_last_within_the_gap(index):
    new = session(index, 5, None, NOON)
    assert new == f"5-{int(NOON.timestamp() * 1000)}"
    assert session(index, 5, None, NOON + timedelta(minutes=30)) == new
    assert session(index, 5, None, NOON + timedelta(minutes=59)) == new  # 29 after the latest
    assert session(index, 5, None, NOON + timedelta(minutes=90)) != new
    assert session(index, 6, None, NOON) != new


def test_a_named_session_is_kept_and_continued(index):
    assert session(index, 5, "mine", NOON) == "mine"
    assert session(index, 5, None, NOON + timedelta(minutes=1)) == "mine"
    assert session(index, 5, "other", NOON + timedelta(minutes=2)) == "other"


def test_a_named_session_is_cut_after_the_gap_and_goes_on_under_the_name_of_the_cut(make_index):
    one, two = make_index(), make_index()
    one.sessions.hold(5, session(one, 5, "mine", NOON), "noise", 3)
    later = NOON + timedelta(minutes=31)
    cut = f"mine~{int(later.timestamp()) * 1_000_000}"
    assert session_of(one, 5, "mine", later) == (cut, None, None)
    one.sessions.hold(5, cut, "random", 4)
    one.add([entry("r1", 5, cut, later.timestamp(), "random", 4)])
    for index, named in ((one, "mine"), (two, "mine"), (two, cut), (two, None)):
        assert session_of(index, 5, named, later + timedelta(minutes=1)) == (cut, "random", 4)
    again = later + timedelta(minutes=62)
    assert session(two, 5, "mine", again) == f"mine~{int(again.timestamp()) * 1_000_000}"
    assert session(one, 5, "mine~too", later) == "mine~too"


def test_another_workers_later_session_is_continued(make_index):
    one, two = make_index(), make_index()
    assert session(one, 5, "first", NOON) == "first"
    two.add([entry("r2", 5, "second", (NOON + timedelta(minutes=5)).timestamp())])
    assert session(one, 5, None, NOON + timedelta(minutes=6)) == "second"
    two.add([entry("r1", 5, "late", (NOON - timedelta(hours=2)).timestamp())])  # an older one changes nothing
    assert session(one, 5, None, NOON + timedelta(minutes=7)) == "second"


def test_a_clock_set_back_splits_no_session_in_any_worker(make_index):
    wrong = NOON + timedelta(hours=1)
    now = [wrong]
    one, two = (make_index(clock=lambda: now[0].timestamp()) for _ in range(2))
    for index in (one, two):
        session(index, 5, "of the future", wrong)
    one.add([entry("r1", 5, "of the future", wrong.timestamp())])
    now[0] = NOON
    new = session(one, 5, None, NOON)
    assert new != "of the future"
    one.add([entry("r2", 5, new, NOON.timestamp())])
    for minutes, index in enumerate((one, two, one)):
        assert session(index, 5, None, NOON + timedelta(minutes=minutes)) == new


@pytest.mark.parametrize("named", ["s1", None])
def test_a_session_keeps_its_arm_and_epoch_in_every_worker_and_a_new_one_has_none(make_index, named):
    one, two = make_index(), make_index()
    assert session_of(one, 5, "s1", NOON) == ("s1", None, None)
    one.sessions.hold(5, "s1", "noise", 3)
    assert session_of(one, 5, named, NOON + timedelta(minutes=1)) == ("s1", "noise", 3)
    one.add([entry("r1", 5, "s1", NOON.timestamp(), "noise", 3)])
    assert session_of(two, 5, named, NOON + timedelta(minutes=1)) == ("s1", "noise", 3)
    assert session_of(two, 5, "s2", NOON + timedelta(minutes=2)) == ("s2", None, None)
    two.sessions.hold(5, "s1", "static", 4)  # of a session that is no longer the user's latest
    assert session_of(two, 5, "s2", NOON + timedelta(minutes=3)) == ("s2", None, None)
