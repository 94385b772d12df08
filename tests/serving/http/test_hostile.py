"""What a stranger may send: whatever it is, a 4xx or an answer as documented, and a service that lives on."""

import asyncio
import copy
import gzip
import json
import random
import socket
import time
from collections import Counter
from typing import Any

import aiohttp
import hypothesis
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import strategies as st
from safetensors.numpy import save
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.http.binary_bodies import encode_rank_binary
from serving.http.requests import BINARY, JSON

REFUSALS = {400, 404, 408, 413, 415}
LIMIT = 64 * 1024  # of the tests' server

schemathesis.openapi.media_type(
    BINARY,
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda user, count, click: encode_rank_binary(
                {"user_id": user}, np.arange(count), {"click": np.full(count, click)}
            ),
            st.integers(-(2**63), 2**63 - 1),
            st.integers(1, 200),
            st.floats(0.0, 1.0),
        ),
    ),
)


@pytest.mark.parametrize("cases", [200, pytest.param(2_000, marks=pytest.mark.slow)])
def test_every_documented_request_gets_a_documented_answer(server, cases):
    """Good and bad requests made from the OpenAPI document, over all of its endpoints."""
    schema = schemathesis.openapi.from_url(f"{server.url}/docs.json")
    posts, gets = [], []
    for result in schema.get_all_operations():
        operation = result.ok()
        (posts if operation.method == "post" else gets).append(operation)
    assert len(posts) == 2 and len(gets) >= 4
    called: Counter[str] = Counter()
    headers = {"authorization": f"Bearer {server.token}"}

    def run(operation: Any, mode: GenerationMode, count: int) -> None:
        @hypothesis.settings(
            max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Any) -> None:
            response = case.call(headers=headers)
            called[operation.label] += 1
            case.validate_response(
                response,
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ],
            )

        call()

    for operation in gets:
        run(operation, GenerationMode.POSITIVE, 2)
    rounds = 0
    while sum(called.values()) < cases:
        for operation in posts:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                run(operation, mode, cases // 4 + 1)
        rounds += 1
        assert rounds < 10, called
    assert set(called) == {operation.label for operation in [*posts, *gets]}


VALUES: list[Any] = [
    *[None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, -1e-308],
    *["", "x", "x" * 201, "\x00", "\u202e", "𝕏" * 50, "1", "2026-01-05T00:00:00Z", "'; DROP TABLE"],
    *[[], {}, [[]], [{}], {"": {}}, [1, 2], {"item_id": [1]}, [None] * 300, {str(n): n for n in range(300)}],
]
RAW = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"0x10", b"01", b"+1", b"\xff", b'"\\ud800"']
NAMES = [
    "user_id",
    "candidates",
    "item_id",
    "scores",
    "click",
    "events",
    "request_id",
    "__class__",
    "",
    "\x00",
]


def rank_body(rng: random.Random) -> dict[str, Any]:
    count = rng.randint(1, 20)
    return {
        "user_id": rng.randint(0, 10**6),
        "k": rng.randint(1, 20),
        "candidates": {
            "item_id": rng.sample(range(10**9), count),
            "scores": {"click": [rng.random() for _ in range(count)], "play_time": [1.0] * count},
        },
    }


def feedback_body(rng: random.Random) -> dict[str, Any]:
    events = [{"item_id": n, "is_click": 1, "play_time_ms": 5} for n in range(rng.randint(0, 5))]
    return {"request_id": "hostile", "events": events, "user_id": 3}


def spoilt(rng: random.Random, body: Any) -> Any:
    """The body with one to three of its places changed, removed, renamed or added to."""
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        waiting = [body]
        while waiting:
            inner = waiting.pop()
            if isinstance(inner, dict | list):
                keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
                places += [(inner, key) for key in keys]
                waiting += [inner[key] for key in keys]
        if not places:
            break
        where, key = rng.choice(places)
        what = rng.randrange(4)
        if what == 0 and isinstance(where, dict):
            del where[key]
        elif what == 1 and isinstance(where, dict):
            where[rng.choice(NAMES)] = copy.deepcopy(rng.choice(VALUES))
        elif what == 2 and isinstance(where, list):
            where.append(copy.deepcopy(rng.choice(VALUES)))
        else:
            where[key] = copy.deepcopy(rng.choice(VALUES))
    return body


def mutated(rng: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(changed) + 1)
        what = rng.randrange(4)
        if what == 0:
            changed[place:place] = rng.choice(RAW)
        elif what == 1:
            del changed[place : place + rng.randint(1, 40)]
        elif what == 2:
            changed[place : place + 1] = rng.randbytes(1)
        else:
            changed[place:place] = changed[: rng.randint(0, 200)]
    return bytes(changed)


def hostile(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A path, a body and headers."""
    path = rng.choice(["/rank", "/rank", "/feedback"])
    good = rank_body(rng) if path == "/rank" else feedback_body(rng)
    text = json.dumps(good).encode()
    headers = {"content-type": JSON}
    kind = rng.randrange(9)
    if kind <= 2:
        text = json.dumps(spoilt(rng, good)).encode()  # json writes NaN and Infinity too
    elif kind == 3:
        text = mutated(rng, text)
    elif kind == 4:
        text = rng.randbytes(rng.choice([0, 1, 7, 300, LIMIT - 1, LIMIT, LIMIT + 1]))
    elif kind == 5:
        depth, opening = rng.choice([50, 2_000, 30_000]), rng.choice([b"[", b'{"a":', b'{"candidates":'])
        text = (opening * depth)[: LIMIT - 10]
        if rng.random() < 0.5:
            text = b'{"user_id": 1, "candidates": ' + text[: LIMIT - 100]
    elif kind == 6:
        encoding = rng.choice(["utf-16", "utf-32", "utf-8-sig", "gzip"])
        text = gzip.compress(text) if encoding == "gzip" else text.decode().encode(encoding)
        if encoding == "gzip" and rng.random() < 0.5:
            headers["content-encoding"] = "gzip"
    elif kind == 7:
        headers["content-type"] = rng.choice(
            ["text/plain", "application/x-pickle", BINARY, "*/*", ";", "a" * 500]
        )
    else:
        path = "/rank"
        headers["content-type"] = BINARY
        text = hostile_tensors(rng)
    return path, text, headers


def hostile_tensors(rng: random.Random) -> bytes:
    count = rng.randint(1, 20)
    kind = rng.randrange(4)
    good = encode_rank_binary({"user_id": 1}, np.arange(count), {"click": np.full(count, 0.5)})
    if kind == 0:
        return mutated(rng, good)
    if kind == 1:
        header = {
            name: {
                "dtype": rng.choice(["F32", "F64", "I64", "U8", "BF16", "X"]),
                "shape": rng.choice([[count], [], [2**62, 4], [-1], [0], [count, count], "x"]),
                "data_offsets": rng.choice([[0, 8 * count], [0, 2**63], [8, 0], [0], [0, 0]]),
            }
            for name in ("request", "item_id", "scores.click", rng.choice(NAMES))
        }
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(8 * count)
    if kind == 2:
        values = rng.choice([np.nan, np.inf, -np.inf, -1.0, 2.0, 1e300])
        return encode_rank_binary({"user_id": 1}, np.arange(count), {"click": np.full(count, values)})
    return save({f"t{n}": np.zeros(0, np.int8) for n in range(rng.choice([1, 300]))})


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_bodies_are_refused_and_nothing_gets_stuck(server, count):
    rng = random.Random(count)
    sent = [hostile(rng) for _ in range(count)]
    answers: Counter[int] = Counter()
    slowest = 0.0

    async def send_all() -> None:
        nonlocal slowest
        gate = asyncio.Semaphore(8)

        async def send(path: str, body: bytes, headers: dict[str, str]) -> None:
            nonlocal slowest
            async with gate:
                started = time.monotonic()
                token = {"authorization": f"Bearer {server.token}"}
                async with http.post(server.url + path, data=body, headers=headers | token) as answer:
                    content = await answer.json()
                slowest = max(slowest, time.monotonic() - started)
            answers[answer.status] += 1
            assert answer.status == 200 or answer.status in REFUSALS, (answer.status, path, body[:300])
            if answer.status != 200:
                assert set(content) == {"error"} and 0 < len(content["error"]) < 500
                assert "Traceback" not in content["error"]

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            await asyncio.gather(*(send(*one) for one in sent))

    with server.client() as client:
        worker = client.status()["pid"]
        asyncio.run(send_all())
        assert client.rank(1, [1, 2, 3], {"click": [0.1, 0.9, 0.5]}, k=1).items == [2]
        assert client.status()["pid"] == worker  # the same process as before, and it answers
    assert sum(answers.values()) == count and answers[400] > count // 2, answers
    assert answers[413] and answers[415]


@pytest.mark.parametrize(
    "lines",
    [
        b"POST /rank HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /rank HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /rank HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /rank HTTP/1.1\r\nhost: x\r\nx-request-id: \xff\xfe\x01\r\ncontent-length: 2\r\n\r\n{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        # and then nothing: the caller hangs up
        b"POST /rank HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{",
    ],
)
def test_broken_http_harms_only_its_own_connection(server, lines):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20.0) as caller:
        caller.sendall(lines)
        caller.shutdown(socket.SHUT_WR)
        received = caller.recv(4096)
        assert not received.startswith(b"HTTP/1.1 5") and b"Traceback" not in received
    with server.client() as client:
        assert client.rank(1, [1, 2, 3], {"click": [0.1, 0.9, 0.5]}, k=1).items == [2]
