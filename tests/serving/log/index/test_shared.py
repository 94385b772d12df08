"""What only the index of several replicas has: a lease for its guardrail, and sessions that begin once."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import redis

from serving.log.index import shared
from serving.log.index.events import RequestEvents
from serving.log.index.file import IndexUnreachable
from serving.log.index.request_index import ServedRequest
from serving.log.index.sessions import SessionRequest
from serving.log.index.shared import SharedIndex
from serving.release.bento import free_port

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture
def server(redis_port):
    server = redis.Redis(port=redis_port, protocol=2)
    server.flushall()
    return server


def test_the_lease_moves_and_its_next_holder_sees_the_sessions_of_both(server, tmp_path):
    one, two = (
        SharedIndex(server, tmp_path / f"{name}.sqlite", 30, reward=lambda event: event["reward"])
        for name in "ab"
    )
    one.add([ServedRequest("r1", 5, "s1", 0.0, "static")])
    assert one.lead(0.2) and not two.lead(0.2) and one.lead(0.2)
    two.add([ServedRequest("r2", 5, "s1", 1.0, "static"), ServedRequest("r3", 6, "s2", 1.0, "static")])
    two.events.add([RequestEvents("r1", "s1", {1: {"reward": 2.0}})])
    one.events.add([RequestEvents("r3", "s2", {1: {"reward": 0.1 + 0.2}})])
    one.events.add([RequestEvents("r3", "s2", {1: {"reward": 1.0}})])
    deadline = time.monotonic() + 10
    while not two.lead(60.0):
        assert time.monotonic() < deadline
    assert not one.lead(60.0)
    found = two.returns.of_sessions(0.0, time.time() + 1)[("static", "")]
    assert (found.sessions, found.total, found.squares) == (2, 3.0, 5.0)
    now = time.time()
    assert two.counts.between(now - 60, now)[("static", "")].requests == 3
    one.close(), two.close()


def test_a_session_begins_once_however_many_begin_it(server, tmp_path):
    indexes = [SharedIndex(server, tmp_path / f"{name}.sqlite", 30) for name in range(4)]

    def begin(at: int, user: int) -> str:
        asked = SessionRequest(user, None, NOON.replace(microsecond=1_000 * at))
        return indexes[at].sessions.of([asked])[0].session_id

    with ThreadPoolExecutor(4) as pool:
        for user in range(50):
            assert len({*pool.map(lambda at, user=user: begin(at, user), range(4))}) == 1
    for index in indexes:
        index.close()


def test_large_and_text_ids_come_back_as_they_were(server, tmp_path):
    index = SharedIndex(server, tmp_path / "a.sqlite", 30)
    item, user = 2**63 - 1, 2**53 + 1
    index.add([ServedRequest("r", user, "s", 1_767_614_400.123456, "static")])
    assert index.requests.find("r")[:3] == (user, "s", 1_767_614_400.123456)
    index.events.add([RequestEvents("r", "s", {item: {"item_id": item}, "007": {"item_id": "007"}}, [item])])
    [known] = index.events.add([RequestEvents("r", "s", {})])
    assert [event["item_id"] for event in known.before] == [item, "007"] and known.shown_before == {item}
    shared.forget(server, user, ["r"])
    assert [key for key in server.scan_iter() if b"counts" not in key and b"touched" not in key] == []
    index.close()


def test_a_redis_that_does_not_answer_is_named(tmp_path):
    index = SharedIndex(redis.Redis(port=free_port()), tmp_path / "a.sqlite", 30)
    with pytest.raises(IndexUnreachable, match="Redis, which holds the index of requests"):
        index.requests.find("r")
    with pytest.raises(IndexUnreachable):
        index.sessions.of([SessionRequest(1, None, NOON)])
    index.close()
