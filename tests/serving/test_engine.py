"""What one worker is made of, started and asked how it stands."""

import asyncio
import time
from dataclasses import replace

import orjson

# an engine imports it on a thread, where CPython 3.11 may fail while pytest rewrites modules beside it
import serving.state.online_state  # noqa: F401
from serving.engine import Engine
from tests.serving.conftest import settings_file
from training.contract import in_service, rollout
from training.contract.files import read_json
from training.contract.pointer import read_pointer
from training.contract.settings import Settings, load_settings


def test_a_starting_worker_waits_for_a_store_that_refuses_no_longer_than_that(tmp_path):
    engine = Engine(load_settings(settings_file(tmp_path)), "w1", [])
    engine.wait_for_store(120.0)  # no day has written a feature store
    assert engine.unready == (
        "the online store (store.online: sqlite) was not reached: there is no feature store yet: "
        f"{tmp_path}/data/feast/feature_store.yaml is written by the first `mtf day`"
    )
    engine.close()


def visit(settings: Settings, engine: Engine, users: range) -> dict[str, int]:
    """A session of one page each; who has the challenger sees more to the end. Counts of the arms."""
    heads = {head.name: [0.1, 0.2, 0.3] for head in settings.heads}
    counts: dict[str, int] = {}

    async def come(user: int) -> None:
        body = {"user_id": user, "candidates": {"item_id": [1, 2, 3], "scores": heads}}
        answer = orjson.loads(await engine.rank(orjson.dumps(body)))
        arm = answer["policy"]["arm"]
        counts[arm] = counts.get(arm, 0) + 1
        seen = (user % 10 < 7) if arm == "challenger" else (user % 10 < 4)
        event = {"item_id": answer["items"][0], "is_click": 1, "long_view": int(seen)}
        await engine.feedback(orjson.dumps({"request_id": answer["request_id"], "events": [event]}))

    async def all_come() -> None:
        for start in range(users.start, users.stop, 20):
            await asyncio.gather(*(come(user) for user in users[start - users.start :][:20]))

    asyncio.run(all_come())
    return counts


def test_a_challenger_whose_users_bring_more_becomes_the_champion(tmp_path, constant):
    """Requests and feedback all the way: who is counted where, and what the service does about it."""
    serving = {
        "shares": {"static": 0.05, "random": 0.0, "noise": 0.0},
        "canary": [{"share": 0.5, "minutes": 0, "requests": 400}],
        "guardrail": {"check_seconds": 0.1, "idle_minutes": 0, "min_sessions": 100, "slow_ms": 60_000},
        "queue_budget_ms": 60_000,
        "policy_budget_ms": 60_000,
    }
    settings = load_settings(settings_file(tmp_path, **serving))
    one = constant(settings, "v1", 0.1)
    two = replace(constant(settings, "v2", 0.2), day="2026-01-06")
    with in_service.changing(settings) as row:
        rollout.make_champion(row, rollout.following(one, None), "the first", {})
        rollout.begin_canary(row, rollout.following(two, one), "passed the gate")
    engine = Engine(settings, "w1")
    wait(lambda: engine.status()["shares"]["challenger"] == 0.5)
    counts = visit(settings, engine, range(1_000))
    assert counts["challenger"] >= 400 and abs(counts["static"] - 50) < 40
    wait(lambda: read_pointer(settings.layout.champion).version == "v2")
    event = [e for e in in_service.read(settings).history if e["action"] == "promote"][-1]
    assert "bring more than the champion's" in event["reason"]
    evidence = event["evidence"]
    # .3 of the weight of a long view, .3, more of them
    assert 0.0 < evidence["lower"] < 0.3 * 0.3 < evidence["upper"]
    assert 400 <= evidence["sessions"] <= counts["challenger"] and evidence["control_sessions"] >= 300
    wait(lambda: "champion" in read_json(settings.layout.guardrail)["arms"])
    assert engine.status()["guardrail"]["canary"] is None
    engine.close()


def wait(done) -> None:
    """Until it is so; after a minute it never will be."""
    until = time.monotonic() + 60.0
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)
