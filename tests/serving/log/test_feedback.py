"""What feedback tells of a request, and how it is refused, from the body to the lake."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import orjson
import pytest

# an engine imports it on a thread, where CPython 3.11 may fail while pytest rewrites modules beside it
import serving.state.online_state
from serving.control import metrics
from serving.engine import Engine
from serving.http.requests import RequestError
from tests.serving.conftest import settings_file
from training import features
from training.contract.log import files_of
from training.contract.settings import Settings, load_settings
from training.ingest import land_service_log

DAY = date(2026, 1, 5)
START = datetime(2026, 1, 5, 4, tzinfo=UTC)
ITEMS = list(range(100, 300))


@pytest.fixture
def serving() -> dict[str, Any]:
    return {}


@pytest.fixture
def settings(tmp_path, serving) -> Settings:
    options = {"accept_event_ts": True, "state_budget_ms": 5_000.0, "queue_budget_ms": 60_000.0, **serving}
    return load_settings(settings_file(tmp_path, **options))


@pytest.fixture
def engine(settings) -> Iterator[Engine]:
    features.apply(settings)
    engine = Engine(settings, "w1", [])
    engine.wait_for_store(60.0)
    assert engine.unready is None
    yield engine
    engine.close()


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def rank(engine: Engine, user: int, seconds: float, **fields: Any) -> dict[str, Any]:
    """All 200 candidates, in an order that is not theirs."""
    scores = np.random.default_rng(user).random(len(ITEMS)).tolist()
    body = {
        "user_id": user,
        "k": 200,
        "event_ts": at(seconds),
        "candidates": {"item_id": ITEMS, "scores": {"click": scores, "like": scores[::-1]}},
    }
    return orjson.loads(asyncio.run(engine.rank(orjson.dumps(body | fields))))


def feed(engine: Engine, ranking: dict[str, Any], seconds: float, **fields: Any) -> dict[str, Any]:
    body = {"request_id": ranking["request_id"], "event_ts": at(seconds), **fields}
    return orjson.loads(asyncio.run(engine.feedback(orjson.dumps(body))))


def click(item: int) -> dict[str, int]:
    return {"item_id": item, "is_click": 1, "play_time_ms": 3_000, "duration_ms": 9_000}


def state_of(settings: Settings, ranking: dict[str, Any]) -> dict[str, float]:
    """The state that a request was served with."""
    lines = [
        orjson.loads(line)
        for path in files_of(settings.layout.serving_log / "decisions", DAY)
        for line in path.read_bytes().splitlines()
    ]
    [line] = [line for line in lines if line["request_id"] == ranking["request_id"]]
    return dict(zip(settings.state_spec.entry_names, line["state"], strict=True))


def landed(settings: Settings) -> list[dict[str, Any]]:
    land_service_log(settings, DAY)
    path = settings.layout.partition("impressions", DAY) / "part-0.parquet"
    return duckdb.sql(f"from '{path}' order by request_id, position").df().to_dict("records")


def means(ranking: dict[str, Any], engine: Engine, shown: list[int]) -> float:
    """Mean of the predicted clicks of what was shown."""
    scores = np.random.default_rng(engine_user(ranking)).random(len(ITEMS))
    return float(np.mean([scores[ITEMS.index(item)] for item in shown]))


def engine_user(ranking: dict[str, Any]) -> int:
    return int(ranking["session_id"].split("-")[0])


@pytest.mark.parametrize("by", ["items", "number"])
def test_two_hundred_returned_and_ten_seen_are_ten_impressions(engine, settings, by):
    first = rank(engine, 7, 0)
    assert len(first["items"]) == 200
    seen = first["items"][:10]
    said = {"items": seen, "number": 10}[by]
    answer = feed(engine, first, 30, shown=said, events=[click(seen[3])])
    assert answer == {
        "request_id": first["request_id"],
        "session_id": first["session_id"],
        "events": 1,
        "not_ranked": [],
        "state_moved": True,
    }
    state = state_of(settings, rank(engine, 7, 60))
    assert state["sess_click_rate"] == pytest.approx(1 / 10)
    assert state["last_p_click"] == pytest.approx(np.log1p(means(first, engine, seen)))
    rows = [row for row in landed(settings) if row["request_id"] == first["request_id"]]
    assert [row["item_id"] for row in rows] == seen
    assert [row["is_click"] for row in rows] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    # a row without an event was seen, and nothing was done to it
    assert {row["feedback_ts"].timestamp() for row in rows} == {(START + timedelta(seconds=30)).timestamp()}


def test_what_is_shown_adds_up_while_a_user_scrolls_and_the_state_follows(engine, settings):
    first = rank(engine, 7, 0)
    items = first["items"]
    feed(engine, first, 10, shown=10, events=[click(items[0])])
    feed(engine, first, 20, shown=30)  # further down, nothing clicked
    feed(engine, first, 20, shown=30)  # sent again
    feed(engine, first, 30, events=[click(items[50])])  # an item with an event was seen
    second = rank(engine, 7, 60)
    state = state_of(settings, second)
    assert state["sess_requests"] == pytest.approx(1 / 6)
    assert state["sess_click_rate"] == pytest.approx(2 / 31)
    assert state["decayed_click_rate"] == pytest.approx(2 / 31)
    assert state["last_p_click"] == pytest.approx(np.log1p(means(first, engine, [*items[:30], items[50]])))
    rows = [row for row in landed(settings) if row["request_id"] == first["request_id"]]
    assert [row["item_id"] for row in rows] == [*items[:30], items[50]]


@pytest.mark.parametrize("serving", [{}, {"default_shown": 12}])
def test_without_a_word_the_default_is_taken_as_shown(engine, settings, serving):
    default = serving.get("default_shown", 200)
    silent, own, empty = rank(engine, 7, 0), rank(engine, 8, 1, shown=4), rank(engine, 9, 2)
    feed(engine, own, 20, events=[click(own["items"][0])])
    feed(engine, empty, 20, events=[])  # they saw the list, and did nothing
    short = rank(engine, 10, 3, shown=50, k=5)
    counts = {"silent": 0, "own": 0, "empty": 0, "short": 0}
    rows = landed(settings)
    for name, ranking in (("silent", silent), ("own", own), ("empty", empty), ("short", short)):
        shown = [row["item_id"] for row in rows if row["request_id"] == ranking["request_id"]]
        assert shown == ranking["items"][: len(shown)]
        counts[name] = len(shown)
    assert counts == {"silent": default, "own": 4, "empty": default, "short": 5}
    state = state_of(settings, rank(engine, 8, 60))
    assert state["sess_click_rate"] == pytest.approx(1 / 4)
    assert state_of(settings, rank(engine, 9, 60))["sess_requests"] == pytest.approx(1 / 6)


def test_nothing_shown_is_no_impression(engine, settings):
    left = rank(engine, 7, 0)
    assert feed(engine, left, 10, shown=0)["state_moved"]
    quiet = rank(engine, 8, 0, shown=0)
    clicked = rank(engine, 9, 0, shown=0)
    feed(engine, clicked, 10, events=[click(clicked["items"][7])])
    rank(engine, 10, 0)
    rows = landed(settings)
    assert not [row for row in rows if row["request_id"] in (left["request_id"], quiet["request_id"])]
    assert [row["item_id"] for row in rows if row["user_id"] == 9] == [clicked["items"][7]]


def test_items_that_were_not_ranked_are_answered_and_counted(engine, settings):
    ranking = rank(engine, 7, 0, k=5)
    never, beyond = 999_999, next(item for item in ITEMS if item not in ranking["items"])
    before = metrics.feedback_not_ranked._value.get()
    events = [click(ranking["items"][0]), click(never), click(beyond)]
    answer = feed(engine, ranking, 10, events=events, shown=[*ranking["items"][:2], never])
    assert (answer["events"], answer["not_ranked"], answer["state_moved"]) == (1, [never, beyond], True)
    answer = feed(engine, ranking, 20, events=[click(never)])
    assert (answer["events"], answer["not_ranked"], answer["state_moved"]) == (0, [never], False)
    assert metrics.feedback_not_ranked._value.get() == before + 3
    assert [row["item_id"] for row in landed(settings)] == ranking["items"][:2]
    counts = land_service_log(settings, DAY)["tables"]["impressions"]
    assert counts["orphan_feedback"] == 0  # nothing of it was logged


def test_feedback_of_another_machines_request_is_taken_as_it_comes(engine, settings):
    there = {"request_id": "elsewhere", "session_id": "?"}
    answer = feed(engine, there, 10, user_id=5, session_id="s", events=[click(100)], shown=[100, 101])
    assert (answer["events"], answer["not_ranked"], answer["state_moved"]) == (1, [], True)
    feed(engine, there, 20, user_id=5, session_id="s", shown=3)
    [path] = files_of(settings.layout.serving_log / "feedback", DAY)
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [(line["shown"], line["shown_top"]) for line in lines] == [([100, 101], None), (None, 3)]


def test_a_request_id_is_one_users(engine, settings):
    mine = rank(engine, 7, 0, request_id="mine")
    for user in (7, 7):
        assert rank(engine, user, 1, request_id="mine")["request_id"] == "mine"  # a retry
    with pytest.raises(RequestError, match="request_id: 'mine' is another user's") as refused:
        rank(engine, 8, 2, request_id="mine")
    assert refused.value.status == 409
    with pytest.raises(RequestError, match="request_id: 'mine' is not of user 8") as refused:
        feed(engine, mine, 10, user_id=8, events=[click(mine["items"][0])])
    assert refused.value.status == 409
    assert {row["user_id"] for row in landed(settings)} == {7}


def test_of_two_users_who_make_one_id_at_once_one_is_served(engine, settings):
    body = {"request_id": "both", "event_ts": at(0), "candidates": {"item_id": [1, 2], "scores": {}}}

    async def both() -> list[Any]:
        asked = [engine.rank(orjson.dumps(body | {"user_id": user})) for user in range(8)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(both())
    assert [type(one) for one in answers].count(bytes) == 1
    assert {one.status for one in answers if isinstance(one, RequestError)} == {409}
    assert len({row["user_id"] for row in landed(settings)}) == 1


def test_feedback_before_its_request_is_refused(engine):
    ranking = rank(engine, 7, 100)
    with pytest.raises(RequestError, match=r"event_ts: .* is before its request") as refused:
        feed(engine, ranking, 99, events=[])
    assert refused.value.status == 400
    assert feed(engine, ranking, 100, events=[])["state_moved"]


def test_what_says_nothing_is_refused(engine):
    ranking = rank(engine, 7, 0)
    with pytest.raises(RequestError, match="events and shown are both missing"):
        feed(engine, ranking, 1)
    for wrong in ([1.5], ["a"], -1, 201, True, "all", list(range(201))):
        with pytest.raises(RequestError, match="shown"):
            feed(engine, ranking, 1, shown=wrong, events=[])


UUIDS = [f"0b6f6a52-9f9e-4a8e-9d0a-{n:012d}" for n in range(4)]
KINDS = {
    "uuids": ({"users": "string", "items": "string"}, UUIDS[0], UUIDS),
    "zeros": ({"users": "string", "items": "string"}, "007", ["7", "07", "007", "0007"]),
    "unsigned": ({"users": "uint64", "items": "uint64"}, 2**64 - 1, [2**63, 2**63 + 1, 2**64 - 1, 0]),
    "texts of numbers": ({}, "9007199254740993", ["9007199254740993", "9007199254740992", "-5", "0"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_every_kind_go_from_the_request_to_the_lake_and_into_the_state(tmp_path, kind):
    ids, user, items = KINDS[kind]
    path = settings_file(tmp_path, accept_event_ts=True, state_budget_ms=5_000.0, queue_budget_ms=60_000.0)
    settings = load_settings(path)
    settings = settings.model_copy(update={"ids": settings.ids.model_copy(update=ids)})
    features.apply(settings)
    engine = Engine(settings, "w1", [])
    engine.wait_for_store(60.0)
    assert engine.unready is None
    body = {
        "user_id": user,
        "k": 3,
        "candidates": {"item_id": items, "scores": {"click": [0.1, 0.2, 0.3, 0.4]}},
    }
    first = orjson.loads(asyncio.run(engine.rank(orjson.dumps(body | {"event_ts": at(0)}))))
    assert first["items"] == items[:0:-1]  # as they were sent
    seen = first["items"][:2]
    answer = feed(engine, first, 10, user_id=user, shown=seen, events=[click(seen[1])])
    assert (answer["events"], answer["not_ranked"], answer["state_moved"]) == (1, [], True)
    # as any other form of them would be, it is the same user
    second = orjson.loads(asyncio.run(engine.rank(orjson.dumps(body | {"event_ts": at(60)}))))
    assert second["session_id"] == first["session_id"]
    assert state_of(settings, second)["sess_click_rate"] == pytest.approx(1 / 2)
    with pytest.raises(RequestError) as refused:
        other = "8" if ids.get("users") == "string" else 8
        feed(engine, first, 20, user_id=other, events=[])
    assert refused.value.status == 409
    engine.close()
    rows = [row for row in landed(settings) if row["request_id"] == first["request_id"]]
    kept = int if not ids else str
    assert [row["item_id"] for row in rows] == [kept(item) for item in seen]
    assert {row["user_id"] for row in rows} == {kept(user)}
    assert [row["is_click"] for row in rows] == [0, 1]
