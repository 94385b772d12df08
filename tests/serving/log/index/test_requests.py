from datetime import UTC, datetime

from serving.log.index.request_index import RequestIndex, ServedRequest

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def entry(
    request_id: str, user_id: int, session_id: str, event_s: float, arm: str = "champion"
) -> ServedRequest:
    return ServedRequest(request_id, user_id, session_id, event_s, arm)


def test_a_served_request_is_found_also_after_a_restart(tmp_path):
    path = tmp_path / "requests.sqlite"
    first = RequestIndex(path, 30)
    first.add([entry("r1", 5, "s1", NOON.timestamp()), entry("r2", 6, "s2", NOON.timestamp())])
    assert first.requests.find("r1") == (5, "s1") and first.requests.find("r3") is None
    first.close()
    assert RequestIndex(path, 30).requests.find("r2") == (6, "s2")
