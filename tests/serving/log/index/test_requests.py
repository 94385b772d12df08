from datetime import UTC, datetime

from serving.log.index.request_index import RequestIndex, ServedRequest

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def test_a_served_request_is_found_also_after_a_restart(tmp_path):
    path = tmp_path / "requests.sqlite"
    first = RequestIndex(path, 30)
    at = NOON.timestamp()
    one = ServedRequest("r1", 5, "s1", at, "champion", items=6, predictions=[1.0 / 3.0, 1e-9, 2e4])
    first.add([one, ServedRequest("r2", 6, "s2", at, "champion", items=1, predictions=[0.0, 0.5, 0.0])])
    assert first.requests.find("r1") == (5, "s1", (6, [1.0 / 3.0, 1e-9, 2e4]))
    assert first.requests.find("r3") is None
    first.close()
    assert RequestIndex(path, 30).requests.find("r2") == (6, "s2", (1, [0.0, 0.5, 0.0]))
