"""What the HTTP layer refuses before the engine is asked."""

from starlette.testclient import TestClient

from serving.app import create_app
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
