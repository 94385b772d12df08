"""Ids of users and items as bodies have them, as the service keeps them, and as they are answered."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http.answers import decode_answer_binary, encode_answer
from serving.http.binary_bodies import encode_rank_binary
from serving.http.ids import answered, logged
from serving.http.openapi import document
from serving.http.parser import Parser
from serving.http.requests import BINARY, JSON, RequestError
from training.contract.settings import Settings

PARSERS = {
    kind: Parser(Settings(ids={"users": kind, "items": kind})) for kind in ("int64", "uint64", "string")
}
UUID = "0b6f6a52-9f9e-4a8e-9d0a-3c7f8d1b2a10"
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30)
IDS = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "string": TEXT | st.sampled_from(["007", "7", UUID, "[", "null", " "]),
}


def body(user, items, **changes) -> bytes:
    return json.dumps({"user_id": user, "candidates": {"item_id": items, "scores": {}}} | changes).encode()


def feedback(item, **changes) -> bytes:
    return json.dumps({"request_id": "r", "events": [{"item_id": item}]} | changes).encode()


@given(st.data())
@pytest.mark.parametrize("kind", IDS)
def test_every_id_comes_back_as_it_was_sent_in_every_form(kind, data):
    sent = data.draw(st.lists(IDS[kind], min_size=1, max_size=8, unique=True))
    user = data.draw(IDS[kind])
    forms = [sent] if kind == "string" else [sent, list(map(str, sent))]
    kept = sent if kind == "int64" else list(map(str, sent))
    for items in forms:
        request = PARSERS[kind].rank(body(user, items))
        assert request.user_id == (user if kind == "int64" else str(user))
        assert request.items.tolist() == kept
        assert orjson.loads(orjson.dumps(logged(request.items), option=orjson.OPT_SERIALIZE_NUMPY)) == kept
        answer = {"items": answered(request.items, request.text_ids), "scores": np.zeros(len(sent))}
        assert orjson.loads(encode_answer(answer))["items"] == items
        assert decode_answer_binary(encode_answer(answer, BINARY))["items"] == items
    dtype = {"int64": np.int64, "uint64": np.uint64, "string": object}[kind]
    binary = encode_rank_binary({"user_id": user}, np.array(sent, dtype=dtype), {})
    request = PARSERS[kind].rank(binary, BINARY)
    assert request.items.tolist() == kept
    answer = {"items": answered(request.items, request.text_ids), "scores": np.zeros(len(sent))}
    assert decode_answer_binary(encode_answer(answer, BINARY))["items"] == sent
    fed = PARSERS[kind].feedback(feedback(sent[0], shown=sent, user_id=user))
    assert (fed.events[0]["item_id"], fed.shown) == (kept[0], kept)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (
            "int64",
            [2**63, -(2**63) - 1, str(2**63), "007", "+7", " 7", "7.0", UUID, 1.0, None, True, "", "-0"],
        ),
        ("uint64", [-1, 2**64, 10**30, str(2**64), "-1", "007", "1e3", UUID, 0.5, None, False, ""]),
        ("string", [7, 0.5, None, True, "", "x" * 201, []]),
    ],
)
def test_what_is_no_id_is_refused_in_every_place(kind, bad):
    good = "a" if kind == "string" else 1
    for one in bad:
        places = {
            "user_id": lambda one=one: PARSERS[kind].rank(body(one, [good])),
            "candidates.item_id[1]": lambda one=one: PARSERS[kind].rank(body(good, [good, one])),
            "events[0].item_id": lambda one=one: PARSERS[kind].feedback(feedback(one)),
            "shown": lambda one=one: PARSERS[kind].feedback(feedback(good, shown=[one])),
        }
        for place, ask in places.items():
            with pytest.raises(RequestError) as refused:
                ask()
            assert refused.value.status == 400 and place in str(refused.value), (one, str(refused.value))


@pytest.mark.parametrize("kind", IDS)
def test_no_item_comes_twice_in_whatever_form(kind):
    twice = ["a", "a"] if kind == "string" else [7, "7"]
    with pytest.raises(RequestError, match="more than once"):
        PARSERS[kind].rank(body("u" if kind == "string" else 1, twice))


def test_the_document_says_what_ids_are():
    for kind, told in (
        ("int64", "int64 (ids.users)"),
        ("uint64", "uint64"),
        ("string", "string (ids.users)"),
    ):
        schemas = document(Settings(ids={"users": kind, "items": kind}))["components"]["schemas"]
        assert told in json.dumps(schemas["RankBody"]["properties"]["user_id"])


def test_the_usual_body_of_numbers_is_read_the_fast_way():
    fast = PARSERS["int64"].json.plain(body(5, [3, 2**53, -1]))
    assert fast is not None and fast.items.dtype == np.int64 and not fast.text_ids
    assert PARSERS["string"].json.plain(body("u", ["a", "b"])).items.tolist() == ["a", "b"]
    assert orjson.loads(encode_answer({"items": answered(fast.items, False), "scores": np.zeros(3)}, JSON))
