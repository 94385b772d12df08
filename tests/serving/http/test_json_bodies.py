import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http.parser import Parser
from serving.http.requests import RequestError
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
        (rank_body(user_id="05"), "^user_id: expected `str` matching regex"),
        (rank_body(user_id=True), "^user_id: expected `int \\| str`, got `bool`"),
        (rank_body(user_id=2**63), "^user_id: expected `int` <= 9223372036854775807"),
        (rank_body(user_id=-(2**63) - 1), "^user_id: "),
        (rank_body(user_id=None), "^user_id: expected `int \\| str`, got `null`"),
        ({"candidates": {"item_id": [1]}}, "^user_id is missing"),
        (rank_body(k=0), "^k: expected `int` >= 1"),
        (rank_body(k=21), "^k: expected `int` <= 20"),
        (rank_body(k=2.0), "^k: expected `int \\| null`, got `float`"),
        (rank_body(request_id=""), "^request_id: expected `str` of length >= 1"),
        (rank_body(request_id=7), "^request_id: expected `str \\| null`, got `int`"),
        (rank_body(session_id="x" * 201), "^session_id: expected `str` of length <= 200"),
        (rank_body(context=[]), "^context: expected `object \\| null`, got `array`"),
        (rank_body(context={"page": 1}), "unknown field context.page"),
        (rank_body(candidates=[]), "^candidates: expected `object`, got `array`"),
        (rank_body(candidates={"item_id": [1], "rows": []}), "unknown field candidates.rows"),
        (rank_body(candidates={"scores": {}}), "candidates.item_id is missing"),
        (rank_body(**candidates([])), "^candidates.item_id: expected `array` of length >= 1"),
        (rank_body(**candidates([1, 2.0])), "item_id\\[1\\]: expected `int \\| str`, got `float`"),
        (rank_body(**candidates([1, True])), "item_id\\[1\\]: expected `int \\| str`, got `bool`"),
        (rank_body(**candidates([1, "2x"])), "item_id\\[1\\]: expected `str` matching regex"),
        (rank_body(**candidates([1, "1"])), "names item 1 more than once"),
        (rank_body(user_id=str(2**63)), "^user_id: 9223372036854775808 is no int64 .ids.users."),
        (rank_body(**candidates([4, 9, 4])), "names item 4 more than once"),
        (rank_body(**candidates([1, 2**63])), "item_id\\[1\\]: expected `int` <= 9223372036854775807"),
        (rank_body(**candidates(range(51))), "^candidates.item_id: expected `array` of length <= 50"),
        (rank_body(**candidates(purchase=[0, 0, 0])), "unknown field candidates.scores.purchase"),
        (rank_body(**candidates(click=0.5)), "scores.click: expected `array \\| null`, got `float`"),
        (rank_body(**candidates(click=[0.1, 0.2])), "scores.click: 2 values for 3 candidates"),
        (
            rank_body(**candidates(click=[0.1, 0.2, 1.7])),
            "scores.click\\[2\\]: expected `float` <= 1.0",
        ),
        (rank_body(**candidates(click=[0.1, -0.2, 0])), "scores.click\\[1\\]: expected `float` >= 0.0"),
        (
            rank_body(**candidates(click=[0.1, None, 0])),
            "candidates.scores.click\\[1\\]: expected `float`, got",
        ),
        (
            rank_body(**candidates(click=[0.1, True, 0])),
            "candidates.scores.click\\[1\\]: expected `float`, got",
        ),
        (
            rank_body(**candidates(click=[0.1, "0.2", 0])),
            "candidates.scores.click\\[1\\]: expected `float`, got",
        ),
        (
            rank_body(**candidates(click=[0.1, [0.2], 0])),
            "candidates.scores.click\\[1\\]: expected `float`, got",
        ),
        (rank_body(**candidates(click=[0.1, math.nan, 0])), "not JSON"),
        (rank_body(**candidates(click=[0.1, math.inf, 0])), "not JSON"),
        (rank_body(event_ts="2026-01-05T00:00:00Z"), "serving.accept_event_ts"),
        ([], "^the body: expected `object`, got"),
        (None, "^the body: expected `object`, got"),
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
        (feedback_body(request_id=None), "^request_id: expected `str`, got `null`"),
        ({"events": []}, "^request_id is missing"),
        (feedback_body(extra=1), "unknown field extra"),
        (feedback_body(events={}), "^events: expected `array \\| null`, got `object`"),
        (feedback_body(events=None), "^events and shown are both missing"),
        (feedback_body(events=[3]), "^events\\[0\\]: expected `object`, got `int`"),
        (feedback_body(events=[{"is_click": 1}]), "events\\[0\\].item_id is missing"),
        (feedback_body(**event(item_id="3.0")), "^events\\[0\\].item_id: expected `str` matching regex"),
        (feedback_body(**event(item_id=3.0)), "item_id: expected `int \\| str`, got `float`"),
        (
            feedback_body(**event(is_purchase=1)),
            "unknown field events\\[0\\].is_purchase",
        ),
        (feedback_body(**event(is_click=2)), "^events\\[0\\].is_click: invalid enum value 2"),
        (
            feedback_body(**event(is_click=1.0)),
            "^events\\[0\\].is_click: expected `bool \\| int`, got `float`",
        ),
        (
            feedback_body(**event(play_time_ms=-1)),
            "^events\\[0\\].play_time_ms: expected `int` >= 0",
        ),
        (feedback_body(**event(play_time_ms=1.5)), "play_time_ms: expected `int`, got `float`"),
        (feedback_body(**event(duration_ms=2**60)), "duration_ms: expected `int` <= 9007199254740992"),
        (feedback_body(events=[{"item_id": 3}, {"item_id": 3}]), "more than once"),
        (
            feedback_body(events=[{"item_id": i} for i in range(21)]),
            "^events: expected `array` of length <= 20",
        ),
        (feedback_body(user_id="x"), "^user_id: expected `str` matching regex"),
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
            feedback_body(shown=body),
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


def plain(parser: Parser, body: bytes) -> bool:
    """Whether the quick way takes a body, which the other one must then read as the same."""
    quick = parser.json.plain(body)
    if quick is None:
        return False
    slow = parser.json.checked(body)
    for name in ("user_id", "k", "given", "request_id", "session_id", "event_ts"):
        assert getattr(quick, name) == getattr(slow, name), name
    assert quick.items.tolist() == slow.items.tolist()
    assert np.array_equal(quick.scores, slow.scores) and quick.scores.dtype == slow.scores.dtype
    return True


@given(data=st.data(), count=st.integers(1, 50))
def test_the_usual_body_is_read_the_quick_way_and_as_the_same(data, count):
    scores = {
        name: data.draw(st.lists(st.floats(0.0, 1.0), min_size=count, max_size=count))
        for name in data.draw(st.lists(st.sampled_from(HEADS), unique=True))
    }
    items = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count, unique=True))
    others = data.draw(
        st.fixed_dictionaries(
            {}, optional={"k": st.integers(1, 20), "request_id": st.text('aé["\x00', min_size=1, max_size=9)}
        )
    )
    body = rank_body(**candidates(items, **scores), **others)
    assert plain(PARSER, encode(body)) or "[" in others.get("request_id", "")


BENT = [
    b'{"user_id": 5, "user_id": 6, "candidates": {"item_id": [1], "scores": {}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1], "item_id": [2], "scores": {}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1], "scores": {"click": [0], "click": [1]}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1, 2], "scores": {"click": [[], [0.5, 0.5]]}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1, [2]], "scores": {}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1, 1], "scores": {}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1.0], "scores": {}}}',
    b'{"user_id": 5, "candidates": {"item_id": [9223372036854775808], "scores": {}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1], "scores": {"click": null}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1], "scores": {"click": [1.5]}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1], "scores": {"click": [true]}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1], "scores": {"other": [1]}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1], "scores": {}, "more": 1}}',
    b'{"user_id": 5.0, "candidates": {"item_id": [1], "scores": {}}}',
    b'{"user_id": 5, "k": 21, "candidates": {"item_id": [1], "scores": {}}}',
    b'{"user_id": 5, "context": {}, "candidates": {"item_id": [1], "scores": {}}}',
    b'\xef\xbb\xbf{"user_id": 5, "candidates": {"item_id": [1], "scores": {}}}',
    b'{"user_id": 5, "candidates": {"item_id": [1], "scores": {}}} {}',
]


@pytest.mark.parametrize("body", BENT)
def test_what_is_out_of_the_ordinary_is_left_to_the_types(body):
    assert not plain(PARSER, body)
    assert plain(PARSER, encode(rank_body()))  # and keeps nobody from the quick way afterwards


@given(body=JSON | st.sampled_from(BENT).map(bytes.decode), at=st.integers(0, 200), new=st.characters())
def test_the_quick_way_takes_nothing_that_the_types_refuse(body, at, new):
    text = body if isinstance(body, str) else json.dumps(rank_body() | {"context": body})
    for changed in (text, text[:at] + new + text[at + 1 :], text[:at] + text[at + 1 :]):
        plain(PARSER, changed.encode("utf-8", "surrogatepass"))


def test_times_are_taken_with_their_offset():
    request = REPLAY.rank(encode(rank_body(event_ts="2026-01-05T20:30:00.000001+08:00")))
    assert request.event_ts == datetime(2026, 1, 5, 12, 30, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    ["2026-01-05T00:00:00", "yesterday", "", "0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-10:00"],
)
def test_a_time_that_is_not_one_is_refused(value):
    with pytest.raises(RequestError, match="event_ts must be an ISO-8601 time"):
        REPLAY.rank(encode(rank_body(event_ts=value)))
    with pytest.raises(RequestError, match=r"^event_ts: expected `str"):
        REPLAY.rank(encode(rank_body(event_ts=5)))
