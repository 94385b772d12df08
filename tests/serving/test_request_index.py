import time
from datetime import UTC, datetime, timedelta

import pytest

from serving.request_index import Entry, RequestIndex

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture
def index(tmp_path):
    index = RequestIndex(tmp_path / "requests.sqlite", gap_minutes=30)
    yield index
    index.close()


def test_a_served_request_is_found_also_after_a_restart(tmp_path):
    path = tmp_path / "requests.sqlite"
    first = RequestIndex(path, 30)
    first.add([Entry("r1", 5, "s1", NOON.timestamp()), Entry("r2", 6, "s2", NOON.timestamp())])
    assert first.find("r1") == (5, "s1") and first.find("r3") is None
    first.close()
    assert RequestIndex(path, 30).find("r2") == (6, "s2")


def test_a_request_without_a_session_continues_the_last_within_the_gap(index):
    new = index.session(5, None, NOON)
    assert new == f"5-{int(NOON.timestamp() * 1000)}"
    assert index.session(5, None, NOON + timedelta(minutes=30)) == new
    assert index.session(5, None, NOON + timedelta(minutes=59)) == new  # 29 after the latest
    assert index.session(5, None, NOON + timedelta(minutes=90)) != new
    assert index.session(6, None, NOON) != new


def test_a_named_session_is_kept_and_continued(index):
    assert index.session(5, "mine", NOON) == "mine"
    assert index.session(5, None, NOON + timedelta(minutes=1)) == "mine"
    assert index.session(5, "other", NOON + timedelta(minutes=2)) == "other"


def test_another_workers_later_session_is_continued(tmp_path):
    path = tmp_path / "requests.sqlite"
    one, two = RequestIndex(path, 30), RequestIndex(path, 30)
    assert one.session(5, "first", NOON) == "first"
    two.add([Entry("r2", 5, "second", (NOON + timedelta(minutes=5)).timestamp())])
    assert one.session(5, None, NOON + timedelta(minutes=6)) == "second"
    two.add([Entry("r1", 5, "late", (NOON - timedelta(hours=2)).timestamp())])  # an older one changes nothing
    assert one.session(5, None, NOON + timedelta(minutes=7)) == "second"


def test_old_requests_are_forgotten(tmp_path):
    index = RequestIndex(tmp_path / "requests.sqlite", 30, retention_s=0.2)
    index.add([Entry("old", 5, "s1", 0.0)])
    time.sleep(0.25)
    index.add([Entry("new", 6, "s2", 0.0)])
    assert index.find("old") is None and index.find("new") == (6, "s2")
