"""The clients against a server that answers, one that does not, and one that is late or in trouble."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from serving.http.answers import encode_answer
from serving.http.requests import JSON
from serving.release.client import SERVICE, AsyncClient, Client, Ranking, ServiceError
from training.contract.errors import DataError
from training.contract.settings import Settings

SETTINGS = Settings()
ITEMS = [5, 6, 7]
SCORES = {"click": [0.1, 0.9, 0.5]}
ANSWER = {
    "request_id": "r",
    "session_id": "s",
    "items": np.array([7, 5]),
    "scores": np.array([0.5, 0.25]),
    "weights": {"click": 1.0},
    "policy": {"version": "v1", "arm": "champion", "fallback": None},
}


class Scripted(BaseHTTPRequestHandler):
    """Answers a path of its own choosing: /<status>/rank, and /late/rank after a second."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        what = self.path.split("/")[1]
        if what == "late":
            time.sleep(1.0)
        status = 200 if what == "late" else int(what)
        media_type = self.headers["accept"] if status == 200 else JSON
        body = encode_answer(ANSWER, media_type) if status == 200 else b'{"error": "told so"}'
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture(params=["sync", "async"])
def rank(request):
    """``rank(url, **options)`` through either client."""

    def call(url: str, scores=SCORES, k: int | None = 2, **options) -> Ranking:
        if request.param == "sync":
            with Client(url, **options) as client:
                return client.rank(1, ITEMS, scores, k=k)

        async def run() -> Ranking:
            async with AsyncClient(url, **options) as client:
                return await client.rank(1, ITEMS, scores, k=k)

        return asyncio.run(run())

    return call


@pytest.mark.parametrize("binary", [False, True])
def test_an_answer_is_read_as_it_was_given(rank, url, binary):
    assert rank(f"{url}/200", binary=binary) == Ranking(
        request_id="r",
        session_id="s",
        items=[7, 5],
        scores=[0.5, 0.25],
        weights={"click": 1.0},
        policy_version="v1",
        arm="champion",
        fallback=None,
    )


def nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("trouble", ["down", "late", "500", "503", "429"])
def test_static_weights_rank_when_the_service_does_not(rank, url, trouble):
    where = nobody() if trouble == "down" else f"{url}/{trouble}"
    ranking = rank(where, timeout=0.2, settings=SETTINGS)
    assert ranking.fallback == SERVICE and ranking.arm == ranking.policy_version == "static"
    fusion = SETTINGS.fusion
    weights = fusion.to_weights(fusion.static_action)
    expected = fusion.score(fusion.matrix(SCORES, 3), weights)
    assert ranking.items == [6, 7] and np.allclose(ranking.scores, expected[[1, 2]])
    assert ranking.weights == dict(zip(fusion.names, weights, strict=True)) and ranking.request_id
    with pytest.raises(ServiceError):  # who did not ask for it is told
        rank(where, timeout=0.2)


def test_without_k_the_settings_say_how_many(rank):
    assert len(rank(nobody(), k=None, settings=SETTINGS).items) == min(3, SETTINGS.serving.default_k)


def test_the_callers_own_fault_is_never_covered_up(rank, url):
    with pytest.raises(ServiceError, match="told so") as refused:
        rank(f"{url}/400", settings=SETTINGS)
    assert refused.value.status == 400 and not refused.value.is_outage
    with pytest.raises(DataError, match="unknown head"):
        rank(nobody(), scores={"buy": [1, 2, 3]}, settings=SETTINGS)


def test_the_async_client_talks_to_the_service(server):
    async def run() -> None:
        async with AsyncClient(server.url, server.token, timeout=20.0, binary=True) as client:
            rankings = await asyncio.gather(*(client.rank(n, ITEMS, SCORES, k=1) for n in range(8)))
            assert [ranking.items for ranking in rankings] == [[6]] * 8
            assert await client.feedback(rankings[0].request_id, [{"item_id": 6, "is_click": 1}])
            assert (await client.status())["store"]["reached"]

    asyncio.run(run())
