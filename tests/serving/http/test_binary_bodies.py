"""The binary body of /rank: read as the JSON body is, and refused by name."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from serving.http.binary_bodies import MAXIMUM_HEADER, encode_rank_binary
from serving.http.parser import Parser
from serving.http.requests import BINARY, RequestError
from training.contract.settings import ServingSettings, Settings

SETTINGS = Settings(serving=ServingSettings(max_candidates=50, max_k=20))
PARSER = Parser(SETTINGS)


def binary(request=b'{"user_id": 5}', items=(3, 1, 2), **scores) -> bytes:
    tensors = {f"scores.{name}": np.asarray(column) for name, column in scores.items()}
    if request is not None:
        tensors["request"] = np.frombuffer(request, np.uint8)
    if items is not None:
        tensors["item_id"] = np.asarray(items)
    return save(tensors)


F32 = np.float32


@given(data=st.data(), count=st.integers(1, 50), kind=st.sampled_from([np.float32, np.float64]))
def test_a_binary_body_says_what_the_json_body_says(data, count, kind):
    items = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count, unique=True))
    scores = {
        head.name: np.array(
            data.draw(st.lists(st.floats(0, head.maximum, width=32), min_size=count, max_size=count)), kind
        )
        for head in SETTINGS.heads
        if data.draw(st.booleans())
    }
    fields = {"user_id": 7, "k": 3, "request_id": "r", "session_id": "s"}
    sent = PARSER.rank(encode_rank_binary(fields, np.array(items), scores), BINARY)
    columns = {name: column.astype(float).tolist() for name, column in scores.items()}
    same = PARSER.rank(json.dumps(fields | {"candidates": {"item_id": items, "scores": columns}}).encode())
    assert np.array_equal(sent.items, same.items) and np.array_equal(sent.scores, same.scores)
    assert (sent.given, sent.user_id, sent.k, sent.request_id, sent.session_id) == (
        same.given,
        same.user_id,
        same.k,
        same.request_id,
        same.session_id,
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x00" * 8, "not a safetensors file"),
        ((MAXIMUM_HEADER + 1).to_bytes(8, "little") + b"{}", "header of at most"),
        (binary()[:-1], "not a safetensors file"),
        (binary() + b"\x00", "not a safetensors file"),
        (binary(request=None), "the tensor request is missing"),
        (binary(items=None), "the tensor item_id is missing"),
        (binary(request=b"{"), "not JSON"),
        (binary(request=b"{}"), "^user_id is missing"),
        (binary(request=b'{"user_id": 5, "candidates": {}}'), "unknown field candidates"),
        (binary(request=b'{"user_id": "x"}'), "^user_id: expected `str` matching regex"),
        (binary(request=b'{"user_id": 5.0}'), "^user_id: expected `int"),
        (binary(items=np.zeros(0, np.int64)), "0 candidates, expected 1 to 50"),
        (binary(items=np.arange(51)), "51 candidates, expected 1 to 50"),
        (binary(items=np.array([1, 2], np.int32)), "^item_id: I32 of shape"),
        (binary(items=np.array([[1, 2]])), "^item_id: I64 of shape"),
        (binary(items=[4, 9, 4]), "names item 4 more than once"),
        (binary(purchase=np.zeros(3, F32)), "unknown tensor 'scores.purchase'"),
        (binary(click=np.zeros(2, F32)), "^scores.click: 2 values for 3 candidates"),
        (binary(click=np.zeros(3, np.int64)), "^scores.click: I64 of shape"),
        (binary(click=np.zeros((3, 1), F32)), "^scores.click: F32 of shape"),
        (binary(click=np.array([0, np.nan, 0], F32)), "scores.click\\[1\\]: nan, expected a number"),
        (binary(click=np.array([0, 0, np.inf], F32)), "scores.click\\[2\\]: inf"),
        (binary(like=np.array([0, 0, 1.5])), "scores.like\\[2\\]: 1.5, expected a number in \\[0, 1\\]"),
        (binary(like=np.array([-0.1, 0, 1])), "scores.like\\[0\\]: -0.1"),
    ],
)
def test_a_bad_binary_body_is_refused_by_name(body, message):
    with pytest.raises(RequestError, match=message) as refused:
        PARSER.rank(body, BINARY)
    assert refused.value.status == 400


@given(body=st.binary(max_size=400), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255))))
def test_no_binary_bytes_do_anything_but_parse_or_be_refused(body, flips):
    good = bytearray(binary(click=np.full(3, 0.5, F32)))
    for place, value in flips:
        good[place % len(good)] = value
    for sent in (body, bytes(good), len(body).to_bytes(8, "little") + body):
        try:
            PARSER.rank(sent, BINARY)
        except RequestError as error:
            assert error.status == 400 and str(error)
