"""Two replicas of the service, one Redis, and a router that gives every call to the other one."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle

import httpx
import numpy as np
import pytest

from serving.ranking import arms
from serving.release.client import Client, ServiceError
from tests.servers import redis_server
from tests.serving.conftest import EPOCH_DAYS, REPOSITORY, TOKEN, Server
from training import features, ingest
from training.contract.exploration import TruncatedNormal, session_uniforms
from training.contract.settings import load_settings

pytestmark = [pytest.mark.scale, pytest.mark.timeout(1800)]
START = datetime(2026, 1, 5, 4, tzinfo=UTC)
N = 20
NAMES = ("a", "b")
HEADERS = ("content-type", "authorization", "accept")


class Router(ThreadingHTTPServer):
    """Gives each call to the next replica; one that does not answer is a 502, and is not tried again."""

    daemon_threads = True

    def __init__(self, addresses: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.clients = [httpx.Client(base_url=address, timeout=20.0) for address in addresses]
        self.turns, self.lock, self.answered = cycle(range(len(addresses))), threading.Lock(), Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
        with self.lock:
            turn = next(self.turns)
        answer = self.clients[turn].request(method, path, headers=headers, content=body)
        with self.lock:
            self.answered[turn] += 1
        return answer


class Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Router

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name: self.headers[name] for name in HEADERS if name in self.headers}
        try:
            answer = self.server.forward("POST", self.path, headers, body)
            status, kind, content = answer.status_code, answer.headers["content-type"], answer.content
        except httpx.HTTPError as error:
            status, kind, content = 502, "application/json", json.dumps({"error": str(error)}).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *message: object) -> None: ...


@pytest.fixture(scope="module")
def replicas(tmp_path_factory, constant) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("replicas")
    with redis_server() as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTF__STORE__ONLINE", "redis")
        patch.setenv("MTF__STORE__REDIS_URL", f"127.0.0.1:{port}")
        patch.setenv("MTF__SERVING__INDEX", "redis")
        servers = []
        for name in NAMES:
            server = Server(
                folder,
                accept_event_ts=True,
                # the tests' own machine may be busy: a slow read must not become a fallback here
                state_budget_ms=5_000.0,
                policy_budget_ms=5_000.0,
                queue_budget_ms=10_000.0,
                guardrail={"slow_ms": 10_000.0},
                shares={"static": 0.1, "random": 0.1, "noise": 0.2},
                max_exploration=0.4,
                exploration={"epoch_days": EPOCH_DAYS},
            )
            server.environment = {"MTF__SERVING__REPLICA": name}
            servers.append(server)
        features.apply(servers[0].settings)
        try:
            for server in servers:
                server.start(seconds=600)
            for server in servers:
                server.promote(constant(server.settings, "tests-v1", 0.5), seconds=60)
            yield servers
        finally:
            for server in servers:
                server.stop()


@pytest.fixture
def router(replicas) -> Iterator[Router]:
    router = Router([server.url for server in replicas])
    yield router
    router.shutdown()
    router.server_close()


def lines(settings, kind: str) -> list[dict]:
    return [
        json.loads(line) | {"file": path.name}
        for path in sorted((settings.layout.serving_log / kind).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def feedback(router: Router, **body: object) -> dict:
    answer = httpx.post(
        f"{router.url}/feedback", json=body, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60.0
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_user_who_alternates_has_one_session_one_state_and_one_deviation(replicas, router):
    settings = replicas[0].settings
    serving = settings.serving
    user = next(u for u in range(1, 10_000) if arms.draw(serving.shares, serving.salt, 0, u) == "noise")
    generator = np.random.default_rng(7)
    scores = {head.name: generator.random(N) for head in settings.heads}
    requests = 6
    with Client(router.url, TOKEN, 60.0) as client:
        for number in range(requests):
            seconds = 60.0 * number
            ranking = client.rank(user, range(N), scores, request_id=f"turn-{number}", event_ts=at(seconds))
            click = {"item_id": ranking.items[0], "is_click": 1, "play_time_ms": 1_000}
            told = [click, {"item_id": 10_000, "is_click": 1}]
            for _ in range(2):  # at the other replica by the request alone, and again at the one that ranked
                fed = feedback(router, request_id=f"turn-{number}", events=told, event_ts=at(seconds + 5))
                assert fed["state_moved"] and fed["not_ranked"] == [10_000]
    mine = [line for line in lines(settings, "decisions") if line["user_id"] == user]
    mine.sort(key=lambda line: line["event_ts"])
    assert [line["file"].split(".")[1][:2] for line in mine] == ["a@", "b@"] * (requests // 2)
    (session,) = {line["session_id"] for line in mine}
    entry = settings.state_spec.entry_names.index("sess_requests")
    seen = [line["state"][entry] for line in mine]
    assert seen == sorted(seen) and len(set(seen)) == requests  # one more request felt each time
    uniforms = session_uniforms(settings.seed, serving.salt, 0, user, session, len(settings.heads))
    for line in mine:
        noise = TruncatedNormal(np.array(line["action_mean"]), serving.noise_std)
        assert line["arm"] == "noise" and line["fallback"] is None and line["action_mean"] != line["action"]
        np.testing.assert_array_equal(np.float32(line["action"]), noise.at(uniforms))
        assert line["log_density"] == pytest.approx(noise.log_density(np.array(line["action"])), rel=1e-6)


def test_a_replica_without_a_name_is_refused(replicas):
    started = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "serving.service:RankService", "--port", "0"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "MTF_SETTINGS": str(replicas[0].path),
            "MTF_TOKEN": TOKEN,
            "MTF__SERVING__REPLICA": "",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert started.returncode != 0
    assert "set $MTF__SERVING__REPLICA" in started.stderr + started.stdout


def test_a_users_first_two_requests_at_once_are_of_one_session(replicas):
    with ThreadPoolExecutor(2) as pool, replicas[0].client(60.0) as one, replicas[1].client(60.0) as two:
        for user in range(50_000, 50_040):
            both = pool.map(lambda c, u=user: c.rank(u, [1, 2], {}).session_id, (one, two))
            assert len({*both}) == 1


def test_replicas_killed_under_load_lose_and_double_nothing(replicas, router):
    settings = replicas[0].settings
    stop, ranked, fed = threading.Event(), [], []

    def load(worker: int) -> None:
        with Client(router.url, TOKEN, 60.0) as client:
            number = 0
            while not stop.is_set():
                request_id = f"kill-{worker}-{number}"
                number += 1
                try:
                    ranking = client.rank(900 + worker, range(N), {}, request_id=request_id)
                    ranked.append(request_id)
                    client.feedback(request_id, [{"item_id": ranking.items[0], "is_click": 1}])
                    fed.append(request_id)
                except ServiceError:
                    time.sleep(0.02)  # to the replica that is down, and not acknowledged

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(load, number) for number in range(4)]
        try:
            for server in replicas:
                before = len(fed)
                wait(lambda before=before: len(fed) > before + 20)
                server.kill()
                down = len(fed)
                wait(lambda down=down: len(fed) > down + 20)  # the other one serves on
                server.start(seconds=600)
            back = Counter(router.answered)
            wait(lambda: all(router.answered[turn] > back[turn] + 20 for turn in (0, 1)))
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    for kind, acknowledged in (("decisions", ranked), ("feedback", fed)):
        written = [one["request_id"] for one in lines(settings, kind) if one["request_id"][:5] == "kill-"]
        counts = Counter(written)
        assert set(acknowledged) <= counts.keys() and set(counts.values()) == {1}
    day = datetime.now(settings.calendar.zone).date()
    record = ingest.land_service_log(load_settings(replicas[0].path), day)
    today = [one for one in lines(settings, "decisions") if one["file"].startswith(str(day))]
    assert record["tables"]["decisions"]["rows"] == len({one["request_id"] for one in today})


def wait(condition, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
