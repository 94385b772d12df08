import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.messages import Parser, RequestError, local_day, timestamp
from training.contract.settings import ServingSettings, Settings

SETTINGS = Settings(serving=ServingSettings(max_candidates=50, max_k=20))
PARSER = Parser(SETTINGS)
REPLAY = Parser(Settings(serving=ServingSettings(accept_event_ts=True)))
HEADS = [head.name for head in SETTINGS.heads]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def rank_body(**changes):
    body = {
        "user_id": 5,
        "candidates": {"item_id": [3, 1, 2], "scores": {"click": [0.1, 0.9, 1], "play_time": [10, 0, 3.5]}},
    }
    return body | changes


def candidates(items=(3, 1, 2), **scores):
    return {"candidates": {"item_id": list(items), "scores": scores}}


def feedback_body(**changes):
    return {"request_id": "r1", "events": [{"item_id": 3, "is_click": 1, "play_time_ms": 900}]} | changes


def event(**changes):
    return {"events": [{"item_id": 3} | changes]}


def encode(body) -> bytes:
    return json.dumps(body).encode()


def test_columns_become_a_matrix_in_the_order_of_the_heads():
    request = PARSER.rank(encode(rank_body(request_id="r", session_id="s", k=2)))
    assert request.items.tolist() == [3, 1, 2] and request.items.dtype == np.int64
    assert request.given == ("click", "play_time")
    expected = np.zeros((3, len(HEADS)))
    expected[:, 0], expected[:, -1] = [0.1, 0.9, 1.0], [10.0, 0.0, 3.5]
    assert np.array_equal(request.scores, expected)
    assert (request.request_id, request.session_id, request.k, request.user_id) == ("r", "s", 2, 5)


def test_what_is_left_out_has_a_documented_value():
    request = PARSER.rank(encode({"user_id": 1, "candidates": {"item_id": [7, 8]}}))
    assert request.k == SETTINGS.serving.default_k
    assert (request.request_id, request.session_id, request.event_ts, request.given) == (None, None, None, ())
    assert not request.scores.any() and request.scores.shape == (2, len(HEADS))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (rank_body(extra=1), "unknown field extra"),
        (rank_body(user_id="5"), "user_id must be a 64-bit integer"),
        (rank_body(user_id=True), "user_id must be"),
        (rank_body(user_id=2**63), "user_id must be"),
        (rank_body(user_id=None), "user_id is missing"),
        (rank_body(k=0), "k must be an integer in \\[1, 20\\]"),
        (rank_body(k=21), "k must be"),
        (rank_body(k=2.0), "k must be"),
        (rank_body(request_id=""), "request_id must be a string of 1 to"),
        (rank_body(request_id=7), "request_id must be"),
        (rank_body(session_id="x" * 201), "session_id must be"),
        (rank_body(context=[]), "context must be an object"),
        (rank_body(context={"page": 1}), "unknown context feature 'page'"),
        (rank_body(candidates=[]), "candidates must be an object"),
        (rank_body(candidates={"item_id": [1], "rows": []}), "unknown field candidates.rows"),
        (rank_body(candidates={"scores": {}}), "candidates.item_id is missing"),
        (rank_body(**candidates([])), "at least one integer"),
        (rank_body(**candidates([1, 2.0])), "item_id\\[1\\] must be an integer"),
        (rank_body(**candidates([1, True])), "item_id\\[1\\] must be an integer"),
        (rank_body(**candidates([1, "2"])), "item_id\\[1\\] must be an integer"),
        (rank_body(**candidates([4, 9, 4])), "names item 4 more than once"),
        (rank_body(**candidates([1, 2**63])), "beyond 64 bits"),
        (rank_body(**candidates(range(51))), "51 candidates, at most 50"),
        (rank_body(**candidates(purchase=[0, 0, 0])), "unknown head 'purchase'"),
        (rank_body(**candidates(click=0.5)), "scores.click must be a list"),
        (rank_body(**candidates(click=[0.1, 0.2])), "scores.click has shape \\(2,\\), expected \\(3,\\)"),
        (
            rank_body(**candidates(click=[0.1, 0.2, 1.7])),
            "scores.click\\[2\\] is 1.7, expected .* \\[0, 1\\]",
        ),
        (rank_body(**candidates(click=[0.1, -0.2, 0])), "scores.click\\[1\\] is -0.2"),
        (rank_body(**candidates(click=[0.1, None, 0])), "scores.click\\[1\\] must be a number"),
        (rank_body(**candidates(click=[0.1, True, 0])), "scores.click\\[1\\] must be a number"),
        (rank_body(**candidates(click=[0.1, "0.2", 0])), "scores.click\\[1\\] must be a number"),
        (rank_body(**candidates(click=[0.1, [0.2], 0])), "scores.click\\[1\\] must be a number"),
        (rank_body(**candidates(click=[0.1, math.nan, 0])), "not JSON"),
        (rank_body(**candidates(click=[0.1, math.inf, 0])), "not JSON"),
        (rank_body(event_ts="2026-01-05T00:00:00Z"), "serving.accept_event_ts"),
        ([], "must be a JSON object"),
        (None, "must be a JSON object"),
    ],
)
def test_a_bad_rank_body_is_refused_by_name(body, message):
    with pytest.raises(RequestError, match=message) as refused:
        PARSER.rank(encode(body))
    assert refused.value.status == 400


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"user_id": 1', b"[" * 2000, b'{"a": 1e999}'])
def test_what_is_not_json_is_refused(body):
    for parse in (PARSER.rank, PARSER.feedback):
        with pytest.raises(RequestError):
            parse(body)


def test_feedback_fills_in_what_was_not_sent():
    request = PARSER.feedback(encode(feedback_body()))
    columns = {signal.column: 0 for signal in SETTINGS.signals}
    assert request.events == [
        {"item_id": 3, **columns, "is_click": 1, "play_time_ms": 900, "duration_ms": 0},
    ]
    assert PARSER.feedback(encode(feedback_body(events=[]))).events == []
    assert PARSER.feedback(encode(feedback_body(**event(is_like=True)))).events[0]["is_like"] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (feedback_body(request_id=None), "request_id is missing"),
        (feedback_body(extra=1), "unknown field extra"),
        (feedback_body(events={}), "events must be a list"),
        (feedback_body(events=None), "events is missing"),
        (feedback_body(events=[3]), "events\\[0\\] must be an object"),
        (feedback_body(events=[{"is_click": 1}]), "events\\[0\\].item_id is missing"),
        (feedback_body(**event(item_id="3")), "events\\[0\\].item_id must be a 64-bit integer"),
        (feedback_body(**event(item_id=3.0)), "item_id must be"),
        (
            feedback_body(**event(is_purchase=1)),
            "unknown field events\\[0\\].is_purchase; expected item_id, ",
        ),
        (feedback_body(**event(is_click=2)), "is_click must be 0 or 1"),
        (feedback_body(**event(is_click=1.0)), "is_click must be 0 or 1"),
        (
            feedback_body(**event(play_time_ms=-1)),
            "play_time_ms must be an integer of milliseconds, at least 0",
        ),
        (feedback_body(**event(play_time_ms=1.5)), "play_time_ms must be"),
        (feedback_body(**event(duration_ms=2**60)), "duration_ms must be"),
        (feedback_body(events=[{"item_id": 3}, {"item_id": 3}]), "more than once"),
        (feedback_body(events=[{"item_id": i} for i in range(21)]), "21 events, at most 20"),
        (feedback_body(user_id="x"), "user_id must be"),
        (feedback_body(event_ts="2026-01-05T00:00:00Z"), "serving.accept_event_ts"),
    ],
)
def test_a_bad_feedback_body_is_refused_by_name(body, message):
    with pytest.raises(RequestError, match=message) as refused:
        PARSER.feedback(encode(body))
    assert refused.value.status == 400


@given(body=JSON)
def test_no_json_does_anything_but_parse_or_be_refused(body):
    for parse in (PARSER.rank, PARSER.feedback, REPLAY.rank):
        for sent in (
            body,
            rank_body(candidates=body),
            rank_body(event_ts=body),
            feedback_body(events=[body]),
        ):
            try:
                parse(encode(sent))
            except RequestError as error:
                assert error.status == 400 and str(error)


@given(body=st.binary(max_size=200))
def test_no_bytes_do_anything_but_be_refused(body):
    for parse in (PARSER.rank, PARSER.feedback):
        with pytest.raises(RequestError):
            parse(body)


@given(data=st.data(), count=st.integers(1, 50))
def test_every_good_body_is_read_as_it_was_sent(data, count):
    items = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count, unique=True))
    scores = {
        head.name: data.draw(st.lists(st.floats(0, head.maximum), min_size=count, max_size=count))
        for head in SETTINGS.heads
        if data.draw(st.booleans())
    }
    request = PARSER.rank(encode({"user_id": 1, **candidates(items, **scores)}))
    assert request.items.tolist() == items and request.given == tuple(scores)
    assert np.array_equal(request.scores, SETTINGS.fusion.matrix(scores, count))


def test_times_are_taken_with_their_offset():
    request = REPLAY.rank(encode(rank_body(event_ts="2026-01-05T20:30:00.000001+08:00")))
    assert request.event_ts == datetime(2026, 1, 5, 12, 30, 0, 1, tzinfo=UTC)
    assert timestamp(request.event_ts) == "2026-01-05T12:30:00.000001Z"
    assert local_day(request.event_ts, 8) == "2026-01-05"
    assert local_day(datetime(2026, 1, 5, 16, tzinfo=UTC), 8) == "2026-01-06"


@pytest.mark.parametrize(
    "value",
    ["2026-01-05T00:00:00", "yesterday", 5, "", "0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-10:00"],
)
def test_a_time_that_is_not_one_is_refused(value):
    with pytest.raises(RequestError, match="event_ts must be an ISO-8601 time"):
        REPLAY.rank(encode(rank_body(event_ts=value)))
