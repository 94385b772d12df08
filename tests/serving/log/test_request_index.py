import sqlite3
import time
from datetime import UTC, datetime, timedelta

import pytest

from serving.log.request_index import ArmCounts, ArmReturns, Entry, Fed, Known, RequestIndex, Session

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def entry(request_id: str, user_id: int, session_id: str, event_s: float, arm: str = "champion") -> Entry:
    return Entry(request_id, user_id, session_id, event_s, arm)


def session_of(index: RequestIndex, user_id: int, session_id: str | None, event_ts: datetime) -> Session:
    return index.sessions([(user_id, session_id, event_ts)])[0]


def session(index: RequestIndex, user_id: int, session_id: str | None, event_ts: datetime) -> str:
    return session_of(index, user_id, session_id, event_ts).session_id


@pytest.fixture
def index(tmp_path):
    index = RequestIndex(tmp_path / "requests.sqlite", gap_minutes=30)
    yield index
    index.close()


def test_a_served_request_is_found_also_after_a_restart(tmp_path):
    path = tmp_path / "requests.sqlite"
    first = RequestIndex(path, 30)
    first.add([entry("r1", 5, "s1", NOON.timestamp()), entry("r2", 6, "s2", NOON.timestamp())])
    assert first.find("r1") == (5, "s1") and first.find("r3") is None
    first.close()
    assert RequestIndex(path, 30).find("r2") == (6, "s2")


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


def test_another_workers_later_session_is_continued(tmp_path):
    path = tmp_path / "requests.sqlite"
    one, two = RequestIndex(path, 30), RequestIndex(path, 30)
    assert session(one, 5, "first", NOON) == "first"
    two.add([entry("r2", 5, "second", (NOON + timedelta(minutes=5)).timestamp())])
    assert session(one, 5, None, NOON + timedelta(minutes=6)) == "second"
    two.add([entry("r1", 5, "late", (NOON - timedelta(hours=2)).timestamp())])  # an older one changes nothing
    assert session(one, 5, None, NOON + timedelta(minutes=7)) == "second"


def test_a_clock_set_back_splits_no_session_in_any_worker(tmp_path):
    path, wrong = tmp_path / "requests.sqlite", NOON + timedelta(hours=1)
    now = [wrong]
    one, two = (RequestIndex(path, 30, clock=lambda: now[0].timestamp()) for _ in range(2))
    for index in (one, two):
        session(index, 5, "of the future", wrong)
    one.add([entry("r1", 5, "of the future", wrong.timestamp())])
    now[0] = NOON
    new = session(one, 5, None, NOON)
    assert new != "of the future"
    one.add([entry("r2", 5, new, NOON.timestamp())])
    for minutes, index in enumerate((one, two, one)):
        assert session(index, 5, None, NOON + timedelta(minutes=minutes)) == new


def test_old_requests_are_forgotten(tmp_path):
    index = RequestIndex(tmp_path / "requests.sqlite", 30, retention_s=0.2)
    index.add([entry("old", 5, "s1", 0.0)])
    time.sleep(0.25)
    index.add([entry("new", 6, "s2", 0.0)])
    assert index.find("old") is None and index.find("new") == (6, "s2")


@pytest.mark.parametrize("named", ["s1", None])
def test_a_session_keeps_its_arm_in_every_worker_and_a_new_one_has_none(tmp_path, named):
    path = tmp_path / "requests.sqlite"
    one, two = RequestIndex(path, 30), RequestIndex(path, 30)
    assert session_of(one, 5, "s1", NOON).arm is None
    one.hold(5, "s1", "noise")
    assert session_of(one, 5, named, NOON + timedelta(minutes=1)) == ("s1", "noise")
    one.add([entry("r1", 5, "s1", NOON.timestamp(), "noise")])
    assert session_of(two, 5, named, NOON + timedelta(minutes=1)) == ("s1", "noise")
    assert session_of(two, 5, "s2", NOON + timedelta(minutes=2)) == ("s2", None)
    two.hold(5, "s1", "static")  # of a session that is no longer the user's latest
    assert session_of(two, 5, "s2", NOON + timedelta(minutes=3)) == ("s2", None)


def test_an_index_of_an_older_version_is_made_anew(tmp_path):
    path = tmp_path / "requests.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE requests (request_id TEXT PRIMARY KEY)")
    index = RequestIndex(path, 30)
    index.add([entry("r1", 5, "s1", NOON.timestamp())])
    assert index.find("r1") == (5, "s1") and RequestIndex(path, 30).find("r1") == (5, "s1")


def event(item: int, **values: int) -> dict[str, int]:
    return {"item_id": item, **values}


def test_feedback_sent_again_replaces_and_rewards_by_the_difference(tmp_path):
    index = RequestIndex(tmp_path / "requests.sqlite", 30, reward=lambda e: float(e.get("is_click", 0)))
    index.add([entry("r1", 5, "s1", NOON.timestamp(), "static")])
    one, two, worse = event(1, is_click=1), event(2, is_click=1), event(1, is_click=0)
    assert index.feed([Fed("r1", "s1", {1: one, 2: two})]) == [Known([], [one, two])]
    assert index.feed([Fed("r1", "s1", {1: one})]) == [Known([one, two], [one, two])]
    [known] = index.feed([Fed("r1", "s1", {1: worse})])
    assert known.before == [one, two] and sorted(known.now, key=lambda e: e["item_id"]) == [worse, two]
    now = time.time()
    assert index.returns(0.0, now + 1) == {("static", ""): ArmReturns(1, 1.0, 1.0)}
    # what the store did not take still has to move the state
    index.not_moved("r1", [1])
    [known] = index.feed([Fed("r1", "s1", {1: worse})])
    assert known.before == [two] and len(known.now) == 2


def test_a_session_of_two_policies_speaks_of_neither(tmp_path):
    index = RequestIndex(tmp_path / "requests.sqlite", 30)
    index.add([Entry("r1", 5, "s1", 0.0, "champion", "one"), Entry("r2", 6, "s2", 0.0, "champion", "one")])
    index.add([Entry("r3", 5, "s1", 0.0, "champion", "two")])
    found = index.returns(0.0, time.time() + 1)
    assert {key: one.sessions for key, one in found.items()} == {
        ("champion", "mixed"): 1,
        ("champion", "one"): 1,
    }


def test_requests_are_counted_by_arm_and_policy_over_all_workers(tmp_path):
    path = tmp_path / "requests.sqlite"
    for index in (RequestIndex(path, 30), RequestIndex(path, 30)):
        index.add(
            [
                Entry(f"{id(index)}a", 1, "s", 0.0, "champion", "p", failed=True, bounded=3, entries=8),
                Entry(f"{id(index)}b", 1, "s", 0.0, "champion", "p", slow=True, entries=8),
                Entry(f"{id(index)}c", 2, "t", 0.0, "static"),
            ]
        )
    now = time.time()
    assert index.counted(now - 60, now) == {
        ("champion", "p"): ArmCounts(4, 2, 2, 6, 32),
        ("static", ""): ArmCounts(2),
    }
    assert index.counted(now + 60, now + 120) == {}
    assert index.counted(now - 120, now - 60) == {}
