"""The service as it is started in production, over HTTP: one server for the whole module."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.log.day_files import cut_torn_tails
from serving.ranking import arms
from serving.release.client import Client, ServiceError
from tests.benchmarks.load import Plan
from tests.serving.conftest import Server
from training.contract import in_service
from training.contract.exploration import TruncatedNormal, UniformBox, session_uniforms
from training.contract.pointer import write_pointer
from training.contract.policy import load_policy

START = datetime(2026, 1, 5, 4, tzinfo=UTC)
N = 40
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def client(server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def raw(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20.0) as raw:
        yield raw


@pytest.fixture
def champion(server, constant):
    pointer = constant(server.settings, "tests-v1", 0.5)
    server.promote(pointer)
    return pointer


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def scores(settings, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {head.name: generator.random(N) for head in settings.heads}


def user_of(server, arm: str, skip: int = 0) -> int:
    serving = server.settings.serving
    users = (u for u in range(10_000, 60_000) if arms.draw(serving.shares, serving.salt, 0, u) == arm)
    return next(u for i, u in enumerate(users) if i >= skip)


def logged(server, kind: str) -> list[dict]:
    """Every line of one log, in the order of the files."""
    folder = server.settings.layout.serving_log / kind
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().split("\n")
        if line
    ]


def decision(server, request_id: str) -> dict:
    found = [line for line in logged(server, "decisions") if line["request_id"] == request_id]
    assert len(found) == 1
    return found[0]


def clicks(items: list[int]) -> list[dict[str, int]]:
    return [{"item_id": item, "is_click": 1, "play_time_ms": 5_000, "duration_ms": 20_000} for item in items]


def test_ranks_by_the_formula_and_logs_what_it_served(server, client, champion):
    user = user_of(server, "champion")
    sent = scores(server.settings)
    ranking = client.rank(user, range(100, 100 + N), sent, k=7, session_id="s-1", event_ts=at(0))
    fusion = server.settings.fusion
    weights = fusion.to_weights(np.full(len(fusion.heads), 0.5, dtype=np.float32))
    expected = fusion.score(fusion.matrix({name: v.tolist() for name, v in sent.items()}, N), weights)
    order = np.argsort(-expected, kind="stable")[:7]
    assert ranking.items == (order + 100).tolist()
    assert np.allclose(ranking.scores, expected[order])
    assert ranking.weights == pytest.approx(dict(zip(fusion.names, weights, strict=True)))
    assert (ranking.policy_version, ranking.arm, ranking.fallback) == ("tests-v1", "champion", None)

    line = decision(server, ranking.request_id)
    width = server.settings.state_spec.width
    assert len(line.pop("state")) == width
    given = {name: [v[i] for i in order] for name, v in sent.items()}
    assert line == {
        "v": 3,
        "request_id": ranking.request_id,
        "session_id": "s-1",
        "user_id": user,
        "event_ts": "2026-01-05T04:00:00.000000Z",
        "policy_version": "tests-v1",
        "arm": "champion",
        "action": [0.5] * len(fusion.heads),
        "action_mean": [0.5] * len(fusion.heads),
        "log_density": None,
        "exploration_unit": None,
        "epoch": 0,
        "fallback": None,
        "state_spec": server.settings.state_spec.version,
        "features_until": None,  # nothing was materialised
        "items": ranking.items,
        "shown": 7,
        "scores": given,
    }
    files = [path.name for path in (server.settings.layout.serving_log / "decisions").iterdir()]
    assert any(name.startswith("2026-01-05.w1-") for name in files)


def test_a_policy_that_ranks_by_itself_is_served_logged_and_explored_around(server, client, cells):
    pointer = cells(server.settings, "tests-cells")
    server.promote(pointer)
    policy = load_policy(server.settings.data / pointer.policy, pointer.sha256)
    fusion, sent = server.settings.fusion, scores(server.settings)
    predictions = fusion.matrix({name: v.tolist() for name, v in sent.items()}, N)

    ranking = client.rank(user_of(server, "champion", 5), range(N), sent, k=9, event_ts=at(0))
    line = decision(server, ranking.request_id)
    state = np.array(line["state"], dtype=np.float32)
    action = policy.act(state[None])[0]
    own = policy.scores(predictions, state, action)
    order = np.argsort(-own, kind="stable")[:9]
    assert ranking.items == line["items"] == order.tolist()
    np.testing.assert_allclose(ranking.scores, own[order], rtol=1e-9)
    np.testing.assert_allclose(line["action"], action, atol=1e-6)
    assert (line["arm"], line["policy_version"], line["fallback"]) == ("champion", "tests-cells", None)

    # the noise arm explores around its action, with the formula
    ranking = client.rank(user_of(server, "noise", 5), range(N), sent, event_ts=at(0))
    line = decision(server, ranking.request_id)
    mean = policy.act(np.array(line["state"], dtype=np.float32)[None])[0]
    np.testing.assert_allclose(line["action_mean"], mean, atol=1e-6)
    formula = fusion.score(predictions, fusion.to_weights(np.array(line["action"], dtype=np.float32)))
    assert ranking.items == np.argsort(-formula, kind="stable")[: len(ranking.items)].tolist()


def test_feedback_is_logged_and_moves_the_next_state(server, client, champion):
    user = user_of(server, "champion", 1)
    first = client.rank(user, range(N), scores(server.settings), session_id="s-2", event_ts=at(100))
    assert client.feedback(first.request_id, clicks(first.items[:3]), event_ts=at(130))
    second = client.rank(user, range(N), scores(server.settings), session_id="s-2", event_ts=at(160))
    other = client.rank(user, range(N), scores(server.settings), session_id="s-3", event_ts=at(170))

    names = server.settings.state_spec.entry_names
    states = [
        dict(zip(names, decision(server, r.request_id)["state"], strict=True)) for r in (first, second, other)
    ]
    assert [state["sess_requests"] for state in states] == pytest.approx([0.0, 1 / 6, 0.0])
    share = 3 / len(first.items)  # of what was shown, as the lake will have it
    assert 0.0 < share < 1.0
    assert [state["sess_click_rate"] for state in states] == pytest.approx([0.0, share, 0.0])
    # what was predicted of it, too
    mean = np.mean(decision(server, first.request_id)["scores"]["click"])
    for name in ("last_p_click", "decayed_p_click"):
        assert [state[name] for state in states] == pytest.approx([0.0, np.log1p(mean), 0.0])
    [line] = [line for line in logged(server, "feedback") if line["request_id"] == first.request_id]
    assert (line["v"], line["user_id"], line["event_ts"]) == (3, user, "2026-01-05T04:02:10.000000Z")
    assert [event["item_id"] for event in line["events"]] == first.items[:3]
    assert {"is_click": 1, "is_hate": 0, "play_time_ms": 5_000, "duration_ms": 20_000}.items() <= line[
        "events"
    ][0].items()


def test_feedback_sent_again_moves_the_state_once_and_a_correction_corrects_it(server, client, champion):
    user = user_of(server, "champion", 6)
    ask = {"session_id": "s-again", "event_ts": at(300)}
    first = client.rank(user, range(N), scores(server.settings), **ask)
    two = clicks(first.items[:2])
    for _ in range(3):
        assert client.feedback(first.request_id, two, event_ts=at(310))
    # more items of the same request, and one of the first is taken back
    more = [{**two[0], "is_click": 0}, *clicks(first.items[2:4])]
    assert client.feedback(first.request_id, more, event_ts=at(320))
    second = client.rank(user, range(N), scores(server.settings), session_id="s-again", event_ts=at(330))
    names = server.settings.state_spec.entry_names
    state = dict(zip(names, decision(server, second.request_id)["state"], strict=True))
    assert state["sess_requests"] == pytest.approx(1 / 6)
    assert state["sess_click_rate"] == pytest.approx(3 / len(first.items))
    lines = [line for line in logged(server, "feedback") if line["request_id"] == first.request_id]
    assert len(lines) == 4  # the log has all that was acknowledged; the lake takes the last of an item


def test_sessions_are_the_users_own_or_cut_by_the_gap(server, client):
    user = user_of(server, "champion", 2)
    times = (0, 600, 600 + 1_799, 600 + 1_799 + 1_801)
    sessions = [client.rank(user, [1, 2], {}, event_ts=at(t)).session_id for t in times]
    assert sessions[0] == f"{user}-{int(START.timestamp() * 1000)}"
    assert sessions[0] == sessions[1] == sessions[2] != sessions[3]


@pytest.mark.parametrize("arm", ["random", "noise", "box"])
def test_exploration_logs_its_exact_density_and_can_be_drawn_again(server, client, champion, arm):
    user = user_of(server, arm)
    serving = server.settings.serving
    ranking = client.rank(
        user, range(N), scores(server.settings), request_id=f"explore-{arm}", event_ts=at(0)
    )
    line = decision(server, ranking.request_id)
    assert line["arm"] == ranking.arm == arm and line["fallback"] is None
    centre, std = (0.0, serving.random_std) if arm == "random" else (0.5, serving.noise_std)
    assert line["action_mean"] == [centre] * len(server.settings.heads)
    assert line["action"] != line["action_mean"]
    mean = np.array(line["action_mean"])
    distribution = UniformBox(mean, serving.box_width) if arm == "box" else TruncatedNormal(mean, std)
    assert line["log_density"] == pytest.approx(distribution.log_density(np.array(line["action"])), rel=1e-6)
    weights = server.settings.fusion.to_weights(np.array(line["action"], dtype=np.float32))
    assert list(ranking.weights.values()) == pytest.approx(weights.tolist())
    assert line["exploration_unit"] == "session" and line["epoch"] == 0
    uniforms = session_uniforms(server.settings.seed, serving.salt, 0, user, line["session_id"], len(mean))
    np.testing.assert_array_equal(np.float32(line["action"]), distribution.at(uniforms))
    again = client.rank(user, range(N), scores(server.settings), request_id=f"explore-{arm}", event_ts=at(0))
    assert again.weights == ranking.weights and again.items == ranking.items
    # all of the session deviates alike, the user's next session otherwise
    for minutes, same in ((5, True), (60, False)):
        later = client.rank(user, range(N), scores(server.settings), event_ts=at(60 * minutes))
        assert later.arm == arm and (later.session_id == ranking.session_id) == same
        assert (later.weights == ranking.weights) == same


@pytest.fixture
def shares(server):
    """Change the shares of the running service; the settings' come back at the end."""

    def change(**changes: float) -> None:
        with in_service.changing(server.settings) as row:
            wanted = row.change_shares(changes, "a test")
        with server.client() as client:
            wait(lambda: client.status()["shadow"] == wanted.shadow)
            wait(
                lambda: all(
                    client.status()["shares"][arm] == share
                    for arm, share in changes.items()
                    if arm != "shadow"
                )
            )

    yield change
    server.settings.layout.shares.unlink(missing_ok=True)
    with server.client() as client:
        wait(lambda: client.status()["shares"]["static"] == server.settings.serving.shares.static)


def wait(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_shares_change_without_a_restart_and_split_no_session(server, client, champion, shares):
    users = range(80_000, 80_040)
    before = {user: client.rank(user, [1, 2], {}, session_id=f"a{user}").arm for user in users}
    shares(static=0.85, random=0.0001, noise=0.0001, box=0.0001)
    during = {user: client.rank(user, [1, 2], {}, session_id=f"a{user}").arm for user in users}
    after = {user: client.rank(user, [1, 2], {}, session_id=f"b{user}").arm for user in users}
    assert during == before != after
    assert list(after.values()).count("static") > 25


def test_a_challenger_serves_its_share_and_ranks_in_the_shadow(server, client, champion, constant, shares):
    challenger = constant(server.settings, "tests-c1", -0.5)
    write_pointer(server.settings.layout.challenger, challenger)
    try:
        wait(lambda: (client.status()["challenger"] or {}).get("sha256") == challenger.sha256)
        shares(challenger=0.5, shadow=1.0)
        served = Counter()
        shown = {}
        for user in range(81_000, 81_060):
            ranking = client.rank(user, range(N), scores(server.settings, user))
            served[ranking.arm, ranking.policy_version] += 1
            shown[ranking.request_id] = ranking
        assert served["challenger", "tests-c1"] > 15 and served["champion", "tests-v1"] > 0
        assert not {version for arm, version in served if arm == "challenger"} - {"tests-c1"}
        wait(lambda: shown.keys() <= {line["request_id"] for line in logged(server, "shadow")})
        for line in logged(server, "shadow"):
            if line["request_id"] in shown:
                assert line["policy_version"] == "tests-c1" and line["action"] == [-0.5] * 8
                ranking = shown[line["request_id"]]
                assert (line["items"] == ranking.items) or ranking.arm != "challenger"
                assert len(line["items"]) == len(ranking.items)
    finally:
        server.settings.layout.challenger.unlink()
    wait(lambda: client.status()["challenger"] is None)
    user = next(u for u in range(82_000, 83_000) if arms.position("mtf:0", u) > 0.6)
    assert client.rank(user, [1, 2], {}).arm == "champion"


def test_static_arm_serves_the_settings_weights(server, client, champion):
    ranking = client.rank(user_of(server, "static"), range(N), scores(server.settings))
    assert (ranking.policy_version, ranking.arm, ranking.fallback) == ("static", "static", None)
    expected = {head.name: head.static for head in server.settings.heads}
    assert ranking.weights == pytest.approx(expected, abs=1e-6)


def test_arms_come_in_their_shares_and_stick(server, client, champion):
    users = range(70_000, 70_400)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda user: client.rank(user, [1, 2, 3], {}).arm, users))
    serving = server.settings.serving
    assert drawn == [arms.draw(serving.shares, serving.salt, 0, user) for user in users]
    assert set(drawn) == set(arms.ARMS) - {arms.CHALLENGER}


BAD_BODIES = [
    ("/rank", b"{", 400, "not JSON"),
    ("/rank", b'{"user_id": 1, "candidates": {"item_id": [1, 1]}}', 400, "more than once"),
    ("/rank", b'{"user_id": 1, "candidates": {"item_id": [1], "scores": {"click": [NaN]}}}', 400, "not JSON"),
    ("/rank", b'{"user_id": 1, "candidates": {"item_id": [1], "scores": {"click": [1.7]}}}', 400, "<= 1.0"),
    (
        "/rank",
        b'{"user_id": 1, "candidates": {"item_id": [1], "scores": {"buy": [0]}}}',
        400,
        "unknown field",
    ),
    ("/rank", json.dumps({"user_id": 1, "candidates": {"item_id": [*range(201)]}}).encode(), 400, "<= 200"),
    ("/rank", b" " * (64 * 1024 + 1), 413, "serving.max_body_bytes"),
    ("/feedback", b'{"request_id": "none", "events": []}', 404, "not known here"),
    (
        "/feedback",
        b'{"request_id": "x", "events": [{"item_id": 1, "play_time_ms": -5}]}',
        400,
        "play_time_ms",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD_BODIES)
def test_bad_bodies_get_a_clear_4xx(server, raw, path, body, status, message):
    answer = raw.post(path, content=body, headers={"authorization": f"Bearer {server.token}"})
    assert answer.status_code == status and message in answer.json()["error"]


def test_the_binary_body_is_ranked_like_the_json_body(server, client, champion):
    user = user_of(server, "champion", 6)
    sent = {name: column.astype(np.float32) for name, column in scores(server.settings).items()}
    said = client.rank(user, range(N), sent, k=5, session_id="s-b", event_ts=at(0))
    with Client(server.url, binary=True) as binary:
        same = binary.rank(user, range(N), sent, k=5, session_id="s-b", event_ts=at(0))
        assert replace(same, request_id=said.request_id) == replace(said, scores=same.scores)
        # JSON carries a float32 by its shortest text, which is another float64 than its own
        assert same.scores == pytest.approx(said.scores, abs=1e-5)
        assert decision(server, same.request_id)["items"] == same.items
        with pytest.raises(ServiceError, match="expected a number") as refused:
            binary.rank(user, range(N), {"click": np.full(N, np.nan)})
    assert refused.value.status == 400 and not refused.value.is_outage


def test_other_media_types_and_compressed_bodies_are_refused(server, raw):
    token = {"authorization": f"Bearer {server.token}"}
    for path, headers in (
        ("/rank", {"content-type": "text/csv"}),
        ("/rank", {"content-encoding": "gzip"}),
        ("/feedback", {"content-type": "application/x-safetensors"}),
    ):
        answer = raw.post(path, content=b"{}", headers=token | headers)
        assert answer.status_code == 415 and "error" in answer.json()
    for content_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert raw.post("/rank", content=b"{}", headers={"content-type": content_type}).status_code == 400


def test_every_answer_carries_a_request_id_and_no_version_of_the_server(raw):
    given = raw.get("/status", headers={"x-request-id": "trace-1"})
    assert given.headers["x-request-id"] == "trace-1"
    for answer in (
        given,
        raw.get("/rank", headers={"x-request-id": "in sane"}),
        raw.post("/rank", content=b"{"),
        raw.post("/feedback", content=b"{}"),
    ):
        assert 0 < len(answer.headers["x-request-id"]) <= 200 and " " not in answer.headers["x-request-id"]
        assert "server" not in answer.headers and answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_a_body_without_a_length_is_bounded_too(raw):
    answer = raw.post("/rank", content=(b" " * 1024 for _ in range(200)))
    assert answer.status_code == 413


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic a-token-of-the-tests", "Bearer"])
def test_feedback_needs_the_token(raw, header):
    headers = {} if header is None else {"authorization": header}
    answer = raw.post("/feedback", content=b"{}", headers=headers)
    assert answer.status_code == 401 and "MTF_TOKEN" in answer.json()["error"]
    assert answer.headers["www-authenticate"] == "Bearer"


def test_other_methods_and_paths(raw):
    assert raw.get("/rank").status_code == 405
    assert raw.get("/nowhere").status_code == 404
    assert raw.post("/status").status_code == 405


def test_feedback_for_another_users_request_is_refused(server, client):
    ranking = client.rank(5, [1, 2], {})
    with pytest.raises(ServiceError, match="is not of user 6") as refused:
        client.feedback(ranking.request_id, [], user_id=6)
    assert refused.value.status == 409
    client.rank(5, [1, 2], {}, request_id="of-5")
    with pytest.raises(ServiceError, match="request_id: 'of-5' is another user's") as refused:
        client.rank(6, [1, 2], {}, request_id="of-5")
    assert refused.value.status == 409
    # a request that another machine ranked is taken with its user
    assert client.feedback("elsewhere", clicks([1]), user_id=6, session_id="s-9")


def test_health_status_openapi_and_metrics(server, raw, client, champion):
    ranked = client.rank(user_of(server, "champion"), [1, 2, 3], {})
    assert all(raw.get(path).status_code == 200 for path in ("/livez", "/healthz", "/readyz"))
    assert {raw.get("/livez").text, raw.get("/readyz").text} == {"live\n", "ready\n"}
    page = raw.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8" and "tests-v1" in page.text
    assert set(re.findall(r"https?://[^/\s]+", page.text)) == {server.url}
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for theirs in ("/static_content/index.css", "/schema.json", "/assets", "/favicon.ico"):
        assert raw.get(theirs).status_code == 404
    status = client.status()
    assert status["champion"]["version"] == "tests-v1" and status["store"] == {
        "reached": True,
        "healthy": True,
        "features_until": None,  # definitions are registered, and no day was materialised
    }
    assert status["state_spec"] == server.settings.state_spec.version
    document = raw.get("/docs.json").json()
    assert {"/rank", "/feedback", "/status", "/metrics", "/readyz"} <= set(document["paths"])
    assert document["components"]["schemas"]["Candidates"]["properties"]["item_id"]["maxItems"] == 200
    text = raw.get("/metrics").text
    assert 'mtf_ranked_total{arm="champion",fallback="none"}' in text
    assert (
        f'mtf_policy_info{{role="champion",sha256="{champion.sha256[:12]}",version="tests-v1"}} 1.0' in text
    )
    assert 'mtf_http_requests_total{endpoint="/rank",status="200"}' in text
    for name in ("mtf_http_seconds_bucket", "mtf_stage_seconds_bucket", "mtf_log_queue", "mtf_store_up"):
        assert name in text
    assert ranked.policy_version == "tests-v1"


def test_a_swap_under_load_fails_no_request(server, client, constant):
    pointers = [constant(server.settings, f"swap-{i}", i / 10) for i in range(5)]
    server.promote(pointers[0])
    user = user_of(server, "champion", 3)
    stop = threading.Event()
    served: list[tuple[str, float]] = []

    def load() -> None:
        with server.client() as mine:
            while not stop.is_set():
                ranking = mine.rank(user, range(N), {"click": np.full(N, 0.5)})
                served.append((ranking.policy_version, ranking.weights["click"]))

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(load) for _ in range(4)]
        try:
            for pointer in pointers:
                server.promote(pointer)
                deadline = time.monotonic() + 10
                while pointer.version not in {version for version, _ in served}:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    # every answer is wholly of one policy, and all of them were served
    head = server.settings.fusion.heads[0]
    for version, weight in served:
        action = int(version.removeprefix("swap-")) / 10
        assert weight == pytest.approx(head.low + (action + 1) / 2 * (head.high - head.low), abs=1e-6)
    assert {version for version, _ in served} == {pointer.version for pointer in pointers}


def test_a_broken_artefact_is_refused_while_the_old_serves(server, client, raw, champion, constant):
    user = user_of(server, "champion", 4)
    broken = constant(server.settings, "broken", 0.9)
    path = server.settings.data / broken.policy
    path.write_bytes(path.read_bytes()[:-1])
    write_pointer(server.settings.layout.champion, broken)
    deadline = time.monotonic() + 10
    while client.status()["refused"] is None and time.monotonic() < deadline:
        assert client.rank(user, [1, 2], {}).policy_version == "tests-v1"
        time.sleep(0.05)
    assert "SHA-256" in client.status()["refused"]
    assert client.rank(user, [1, 2], {}).policy_version == "tests-v1"
    assert 'mtf_refused_total{what="champion"}' in raw.get("/metrics").text
    server.promote(champion)  # its version is served already: the follower still has to look again
    deadline = time.monotonic() + 10
    while client.status()["refused"] is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.status()["refused"] is None


def test_a_kill_loses_and_doubles_nothing(server, champion):
    """SIGKILL to everything under load: what was acknowledged is in the log exactly once."""
    stop = threading.Event()
    ranked: list[str] = []
    fed: list[str] = []

    def load(worker: int) -> None:
        with server.client(timeout=5.0) as mine:
            number = 0
            while not stop.is_set():
                request_id = f"kill-{worker}-{time.time_ns()}-{number}"
                number += 1
                try:
                    ranking = mine.rank(worker, range(N), {}, request_id=request_id)
                    ranked.append(request_id)
                    mine.feedback(request_id, clicks(ranking.items))
                    fed.append(request_id)
                except ServiceError:
                    time.sleep(0.05)  # down, and not acknowledged

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(load, i) for i in range(4)]
        try:
            time.sleep(1.5)
            server.kill()
            before = (len(ranked), len(fed))
            server.start()
            time.sleep(1.0)
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    assert before[1] > 10 and len(fed) > before[1]
    # the new process cut what the old one left torn, so every line can be read
    for kind, acknowledged in (("decisions", ranked), ("feedback", fed)):
        assert cut_torn_tails(server.settings.layout.serving_log / kind) == []
        counts = Counter(line["request_id"] for line in logged(server, kind))
        assert all(counts[request_id] == 1 for request_id in acknowledged)
        mine = [request_id for request_id in counts if request_id.startswith("kill-")]
        assert all(counts[request_id] == 1 for request_id in mine)
    with server.client() as client:
        assert client.status()["champion"]["sha256"] == champion.sha256
        # feedback on what was ranked before the kill is still known
        assert client.feedback(ranked[0], [])


def test_served_actions_can_be_computed_again_from_the_log(server, client, champion):
    user = user_of(server, "champion", 5)
    ranking = client.rank(user, range(N), scores(server.settings), session_id="replay", event_ts=at(0))
    line = decision(server, ranking.request_id)
    policy = load_policy(server.settings.data / champion.policy, champion.sha256)
    assert policy.act(np.array([line["state"]], dtype=np.float32))[0].tolist() == line["action"]


def test_the_service_refuses_to_start_without_a_token(server):
    environment = {name: value for name, value in os.environ.items() if name != "MTF_TOKEN"}
    started = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "serving.service:RankService", "--port", "0"],
        cwd=REPOSITORY,
        env=environment | {"MTF_SETTINGS": str(server.path), "BENTOML_HOME": str(server.folder / "other")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode != 0
    assert "export MTF_TOKEN=" in started.stderr + started.stdout


@pytest.mark.slow
def test_more_than_it_can_do_is_refused_and_what_is_answered_is_in_time_and_on_disk(tmp_path):
    """An open loop beyond the peak, on hundreds of connections, so that it is the service that queues."""
    from training import features

    budget_ms = 100.0  # a bound of the histogram
    server = Server(tmp_path, queue_budget_ms=budget_ms, state_budget_ms=5_000.0, policy_budget_ms=5_000.0)
    features.apply(server.settings)
    server.start()
    try:
        plan = Plan(
            url=f"{server.url}/rank",
            heads={head.name: head.maximum for head in server.settings.heads},
            users=500,
            candidates=500,
            k=6,
            clients=800,
            seconds=4.0,
            rate=3_000.0,
        )
        finished = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.load"],
            input=json.dumps(asdict(plan)).encode(),
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        )
        result = json.loads(finished.stdout)
        assert set(result["failed"]) == {"status 503"} and result["requests"] > 100, result
        assert len(logged(server, "decisions")) == result["requests"]
        samples = httpx.get(f"{server.url}/metrics", timeout=20.0).text.splitlines()
        waited = dict(line.rsplit(" ", 1) for line in samples if line.startswith("mtf_"))
        shed = sum(float(count) for name, count in waited.items() if name.startswith("mtf_shed_total"))
        assert shed == result["failed"]["status 503"]
        in_time = waited[f'mtf_stage_seconds_bucket{{le="{budget_ms / 1000.0}",stage="wait"}}']
        assert in_time == waited['mtf_stage_seconds_count{stage="wait"}']
        with server.client() as client:  # and at rest it takes whatever comes
            assert len(client.rank(1, [1, 2, 3], {}).items) == 3
    finally:
        server.stop()
