import json

import numpy as np
import pytest

from serving.http.answers import decode_answer_binary, encode_answer
from serving.http.requests import BINARY, JSON


def test_an_answer_is_the_same_in_both_forms():
    answer = {
        "request_id": "r",
        "session_id": "s",
        "items": np.array([2**60, -5]),
        "scores": np.array([0.1, -1.0]),
        "weights": {"click": 0.5},
        "policy": {"version": "v", "arm": "champion", "fallback": None},
    }
    assert decode_answer_binary(encode_answer(answer, BINARY)) == json.loads(encode_answer(answer, JSON))
    with pytest.raises(ValueError, match="not a binary answer"):
        decode_answer_binary(b"{}")
