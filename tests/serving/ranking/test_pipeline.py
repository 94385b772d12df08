"""What a pipeline that is asked for more than it can do refuses, and that it does what it acknowledged."""

import asyncio
import os
import time
from collections.abc import Iterator

import orjson
import pytest

# an engine imports it on a thread, where CPython 3.11 may fail while pytest rewrites modules beside it
import serving.state.online_state  # noqa: F401
from serving.engine import Engine
from serving.http.requests import RequestError
from serving.ranking import pipeline
from tests.serving.conftest import settings_file
from training.contract.settings import StoreSettings, load_settings

BODY = (
    b'{"user_id": 5, "request_id": "r%d", "candidates": {"item_id": [3, 1], "scores": {"click": [0.1, 0.9]}}}'
)


@pytest.fixture
def online() -> str:
    return "sqlite"


@pytest.fixture
def engine(tmp_path, online) -> Iterator[Engine]:
    settings = load_settings(settings_file(tmp_path, queue_budget_ms=50.0))
    engine = Engine(settings.model_copy(update={"store": StoreSettings(online=online)}), "w1", [])
    yield engine
    engine.close()


def logged(tmp_path) -> list[str]:
    files = (tmp_path / "data" / "serving" / "log" / "decisions").glob("*.jsonl")
    return sorted(
        orjson.loads(line)["request_id"] for file in files for line in file.read_bytes().splitlines()
    )


async def ask(engine: Engine, count: int) -> tuple[list[bytes], list[RequestError]]:
    """Bodies ``r0`` to ``r<count>`` at once: the answers, and the refusals."""
    got = await asyncio.gather(*(engine.rank(BODY % n) for n in range(count)), return_exceptions=True)
    refused = [one for one in got if isinstance(one, RequestError)]
    answers = [one for one in got if isinstance(one, bytes)]
    assert len(refused) + len(answers) == count, got
    return answers, refused


@pytest.mark.parametrize("online", ["sqlite", "redis"])  # on the event loop, and on a thread
def test_requests_that_waited_too_long_are_refused_and_the_others_are_on_disk(engine, tmp_path, monkeypatch):
    read = engine._store.read

    def slow(requests):
        time.sleep(0.03)
        return read(requests)

    monkeypatch.setattr(engine._store, "read", slow)

    async def run():
        answers, refused = await ask(engine, 200)
        engine.admit()  # nothing waits any more
        return answers, refused

    answers, refused = asyncio.run(run())
    assert answers and refused
    assert {(one.status, one.headers["retry-after"]) for one in refused} == {(503, "1")}
    assert "serving.queue_budget_ms, 50 ms (waited)" in str(refused[0])
    assert logged(tmp_path) == sorted(orjson.loads(answer)["request_id"] for answer in answers)


def test_a_fault_with_one_request_is_its_own(engine, tmp_path, monkeypatch):
    encode = pipeline.encode_answer

    def faulty(answer, accept):
        if answer["request_id"] == "r3":
            raise ZeroDivisionError
        return encode(answer, accept)

    monkeypatch.setattr(pipeline, "encode_answer", faulty)

    async def run():
        return await asyncio.gather(*(engine.rank(BODY % n) for n in range(8)), return_exceptions=True)

    answers = asyncio.run(run())
    assert isinstance(answers.pop(3), ZeroDivisionError)
    assert [orjson.loads(answer)["request_id"] for answer in answers] == logged(tmp_path)
    assert len(answers) == 7


@pytest.mark.parametrize(("online", "reason"), [("redis", "ranking"), ("sqlite", "log")])
def test_a_request_that_would_wait_too_long_is_refused_at_once(engine, tmp_path, monkeypatch, reason):
    """The store behind a network, or the disk, hangs for a while."""
    read, flush = engine._store.read, os.fdatasync
    hung = 0.3
    if reason == "ranking":
        monkeypatch.setattr(engine._store, "read", lambda requests: time.sleep(hung) or read(requests))
    else:
        monkeypatch.setattr(os, "fdatasync", lambda descriptor: time.sleep(hung) or flush(descriptor))

    async def run() -> bytes:
        engine.admit()
        first = asyncio.ensure_future(asyncio.gather(engine.rank(BODY % 0)))
        await asyncio.sleep(0.2)
        with pytest.raises(RequestError, match=rf"\({reason}\)") as refused:
            engine.admit()
        assert refused.value.status == 503
        (answer,) = await first  # what was taken in time is answered
        engine.admit()
        return answer

    assert orjson.loads(asyncio.run(run()))["request_id"] == "r0"
    assert logged(tmp_path) == ["r0"]


def test_a_session_that_runs_over_an_epochs_end_keeps_its_arm_its_epoch_and_its_deviation(tmp_path):
    """Local midnight is at 16:00 UTC; every day is an epoch, and a restart forgets nothing."""
    path = settings_file(
        tmp_path,
        accept_event_ts=True,
        exploration={"epoch_days": 1},
        shares={"static": 0.25, "random": 0.5, "noise": 0.0},
        max_exploration=0.5,
        canary=[{"share": 0.2, "minutes": 1}],
    )
    asked = [
        (user, f"s{user}-{day}", time) for user in range(30) for day, time in ((5, "15:59"), (5, "16:01"))
    ]
    asked += [(user, f"s{user}-6", "16:02") for user in range(30)]

    async def run(engine, requests):
        for user, session, clock in requests:
            await engine.rank(
                orjson.dumps(
                    {
                        "user_id": user,
                        "session_id": session,
                        "event_ts": f"2026-01-05T{clock}:00Z",
                        "candidates": {"item_id": [3, 1], "scores": {"click": [0.1, 0.9]}},
                    }
                )
            )

    path.write_text(path.read_text() + "calendar: {timezone: Asia/Shanghai}\n")
    for part in (asked[:31], asked[31:]):  # in the middle of user 15's session
        engine = Engine(load_settings(path), "w1", [])
        asyncio.run(run(engine, part))
        engine.close()
    files = sorted((tmp_path / "data" / "serving" / "log" / "decisions").glob("*.jsonl"))
    lines = [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]
    of = {
        user: sorted((x for x in lines if x["user_id"] == user), key=lambda x: x["event_ts"])
        for user in range(30)
    }
    moved = 0
    for before, after, following in of.values():
        assert before["session_id"] == after["session_id"] != following["session_id"]
        assert before["arm"] == after["arm"] and before["action"] == after["action"]
        assert before["epoch"] == after["epoch"] == following["epoch"] - 1
        moved += following["arm"] != after["arm"]
    assert 10 < moved < 27  # the next session's arm is drawn apart: of .25, .5 and .25 they differ in .625
