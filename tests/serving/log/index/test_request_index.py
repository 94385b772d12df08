import sqlite3
import time
from datetime import UTC, datetime

from serving.log.index.request_index import RequestIndex, ServedRequest

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def entry(
    request_id: str, user_id: int, session_id: str, event_s: float, arm: str = "champion"
) -> ServedRequest:
    return ServedRequest(request_id, user_id, session_id, event_s, arm)


def found(index: RequestIndex, request_id: str) -> tuple[int, str]:
    served = index.requests.find(request_id)
    assert served is not None
    return served.user_id, served.session_id


def test_old_requests_are_forgotten(make_index):
    index = make_index(retention_s=0.2)
    index.add([entry("old", 5, "s1", 0.0)])
    time.sleep(0.25)
    index.add([entry("new", 6, "s2", 0.0)])
    assert index.requests.find("old") is None and found(index, "new") == (6, "s2")


def test_an_index_of_an_older_version_is_made_anew(tmp_path):
    path = tmp_path / "requests.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE requests (request_id TEXT PRIMARY KEY)")
    index = RequestIndex(path, 30)
    index.add([entry("r1", 5, "s1", NOON.timestamp())])
    assert found(index, "r1") == found(RequestIndex(path, 30), "r1") == (5, "s1")
