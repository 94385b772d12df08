"""The HTTP driver against the service's own application, served by uvicorn in this process."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import orjson
import pytest
import uvicorn

from serving.engine import Engine
from serving.http.app import create_app
from tests.training.world.simulator.conftest import DAY, beginning
from training.contract.settings import Settings
from training.world.simulator import drivers

TOKEN = "a-token-of-the-test"  # noqa: S105


@pytest.fixture(scope="module")
def service(
    saved: tuple[Settings, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, str]]:
    settings = beginning(saved, tmp_path_factory.mktemp("http"), 250)
    app = create_app(settings)
    app.state.token = TOKEN
    app.state.engine = engine = Engine(settings, "w0", [])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield settings, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    engine.close()


def _lines(settings: Settings, kind: str) -> list[dict]:
    files = sorted((settings.layout.serving_log / kind).glob("*.jsonl"))
    return [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]


def test_a_day_over_http(service: tuple[Settings, str]) -> None:
    settings, url = service
    calls: list[tuple[int, int]] = []
    record = drivers.run_day_http(settings, DAY, url, TOKEN, progress=lambda n, of: calls.append((n, of)))
    assert record["failures"] == 0, record["failure_reasons"]
    assert record["requests"] == record["feedbacks"] == calls[-1][0] > 100
    assert 0 < record["latency_ms"]["p50"] <= record["latency_ms"]["p99"]
    assert sum(arm["sessions"] for arm in record["arms"].values()) == record["sessions"]
    decisions, feedback = _lines(settings, "decisions"), _lines(settings, "feedback")
    assert len(decisions) == len(feedback) == record["requests"]
    answered = {line["request_id"]: line for line in feedback}
    latest: dict[int, str] = {}
    for line in decisions:  # in the order of serving: a user's feedback came before their next request
        assert line["event_ts"] > latest.get(line["user_id"], "")
        latest[line["user_id"]] = answered[line["request_id"]]["event_ts"]
        assert [event["item_id"] for event in answered[line["request_id"]]["events"]] == line["items"]
        assert line["session_id"].startswith("20260105-")


def test_over_http_and_in_process_are_the_same_world(service: tuple[Settings, str]) -> None:
    """Without a promoted policy every arm but random serves static weights."""
    settings, url = service
    day = DAY + timedelta(days=1)
    drivers.run_day_http(settings, day, url, TOKEN)
    http = drivers.pq.read_table(drivers.truth_path(settings, day)).to_pandas()
    static = settings.fusion.static_action
    drivers.run_day_inprocess(settings, day, lambda s, _: np.repeat(static[None], len(s), axis=0))
    inside = drivers.pq.read_table(drivers.truth_path(settings, day)).to_pandas()
    both = http[http["arm"] == "static"].merge(inside, on="session_id", suffixes=("_http", ""))
    assert len(both) > 0
    np.testing.assert_allclose(both["session_return_http"], both["session_return"])


def test_failures_are_counted_by_reason(service: tuple[Settings, str]) -> None:
    settings, url = service
    day = DAY + timedelta(days=2)
    record = drivers.run_day_http(settings, day, url, "not-the-token-at-all")  # /feedback is refused
    assert record["feedbacks"] == 0 and record["requests"] == record["failures"] > 0
    assert set(record["failure_reasons"]) == {"/feedback: HTTP 401"}
    assert record["arms"] == {}
    nobody = drivers.run_day_http(settings, day, "http://127.0.0.1:9", TOKEN)
    assert nobody["failures"] == nobody["requests"] > 0 and nobody["sessions"] == 0
    assert Path(drivers.state_folder(settings, day + timedelta(days=1))).exists()
