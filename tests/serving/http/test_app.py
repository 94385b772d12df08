"""What the HTTP layer refuses before the engine is asked."""

import asyncio
from types import SimpleNamespace

import orjson
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.testclient import TestClient

from serving.http import app as http_app
from serving.http.app import Outermost, create_app
from training.contract.settings import ServingSettings, Settings


def test_more_than_the_rate_is_refused_with_the_time_to_come_back():
    app = create_app(Settings(serving=ServingSettings(rate_limit=0.5, rate_burst=2)))
    app.state.token = "a-token-of-the-tests"  # noqa: S105
    with TestClient(app) as http:
        # guesses of the token are counted like everything else
        answers = [http.post("/feedback", content=b"{}") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [401, 401, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 2
        assert "serving.rate_limit" in answers[2].json()["error"]
        assert http.get("/docs.json").status_code == 200  # reads are not counted


def test_without_a_rate_nothing_is_counted():
    app = create_app(Settings())
    app.state.token = "a-token-of-the-tests"  # noqa: S105
    with TestClient(app) as http:
        assert {http.post("/feedback", content=b"{}").status_code for _ in range(300)} == {401}


def test_every_request_goes_past_the_middlewares_of_the_service_and_its_own_pages():
    passed = []

    class Watching:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope["type"] == "http":
                passed.append((scope["method"], scope["path"]))
            await self.app(scope, receive, send)

    ours = create_app(Settings())
    whole = Starlette(middleware=[Middleware(Watching), Middleware(Outermost, ours=ours)])
    whole.add_route("/theirs", lambda request: Response("a page of BentoML's"))
    with TestClient(whole) as http:
        assert http.post("/rank", content=b"{}", headers={"content-encoding": "gzip"}).status_code == 415
        assert http.get("/rank").status_code == 405
        assert http.get("/docs.json").status_code == 200
        missing = http.get("/theirs")
        assert missing.status_code == 404 and missing.json() == {"error": "Not Found"}
    assert passed == []


@pytest.mark.parametrize(("more", "status"), [(True, 408), (False, 504)])
def test_neither_a_body_nor_an_answer_is_waited_for_without_end(monkeypatch, more, status):
    monkeypatch.setattr(http_app, "REQUEST_SECONDS", 0.05)
    app = create_app(Settings())

    async def never(*arguments):
        await asyncio.Event().wait()

    app.state.engine = SimpleNamespace(rank=never, admit=lambda: None)
    sent = []
    bodies = [{"type": "http.request", "body": b"{", "more_body": more}]

    async def receive():
        return bodies.pop() if bodies else await never()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/rank", "headers": [(b"x-request-id", b"mine")]}
    asyncio.run(app.state.rank(scope, receive, send))
    assert sent[0]["status"] == status and (b"x-request-id", b"mine") in sent[0]["headers"]
    assert "0.05 s" in orjson.loads(sent[1]["body"])["error"]
