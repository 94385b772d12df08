"""States in a real Redis Cluster: six processes, of which primaries die and hang while users are served."""

import signal
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import redis

from serving.state.online_state import OnlineState
from serving.state.questions import Feedback, StateRequest
from serving.state.store import StateStore
from tests.feature_repo.conftest import Marts, small_settings
from tests.servers import RedisCluster
from training import features
from training.contract import databases
from training.contract.log import Id
from training.contract.settings import IdSettings, ServingSettings, Settings, StoreSettings
from training.features import forgetting

pytestmark = [pytest.mark.scale]

PASSWORD = "pw-8a1d44c0"  # noqa: S105 -- of the tests' own servers
DAY = date(2026, 1, 5)
NOON = datetime(2026, 1, 6, 12, tzinfo=UTC)
BUDGET_MS = 300.0
FAIL_OVER_S = 20.0  # the servers take some 2 s; two cores are shared with much else


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisCluster]:
    monkeypatch.setenv(databases.REDIS_PASSWORD, PASSWORD)
    servers = RedisCluster(tmp_path / "servers", "--requirepass", PASSWORD, "--masterauth", PASSWORD)
    try:
        servers.start(PASSWORD)
        yield servers
    finally:
        servers.stop()


def settings_of(folder: Path, kind: str, cluster: RedisCluster | None = None) -> Settings:
    store = StoreSettings()
    if cluster is not None:
        store = StoreSettings(
            online="redis",
            redis_url=cluster.url,
            redis_cluster=True,
            redis_password=True,
            redis_key_ttl_days=9,
        )
    serving = ServingSettings(state_budget_ms=BUDGET_MS)
    return small_settings(folder, store=store, serving=serving, ids=IdSettings(users=kind))


def materialised(settings: Settings, users: list[Id]) -> list[Id]:
    """A day of profiles and histories, all different; one in three users has no profile."""
    marts, midnight = Marts(settings), settings.day_start(DAY + timedelta(days=1))
    history = [
        {
            "user_id": user,
            "event_timestamp": midnight,
            "hist_count": at + 1,
            "hist_like_rate": at / len(users),
        }
        for at, user in enumerate(users)
    ]
    profile = [
        {"user_id": user, "event_timestamp": midnight - timedelta(hours=3), "degree": "low", "fans": at}
        for at, user in enumerate(users)
        if at % 3
    ]
    marts.write("fct_user_history", DAY, history)
    marts.write("dim_users", DAY, profile)
    features.apply(settings)
    record = features.materialise(settings, DAY)
    assert record["views"]["user_history"]["users"] == len(users)
    return users


def clicked(user: Id, request: str) -> Feedback:
    return Feedback(
        user, "s", request, NOON, [{"item_id": 1, "is_click": 1, "is_like": 0, "play_time_ms": 5}]
    )


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_states_are_those_of_sqlite_and_move_alike(tmp_path, cluster, kind):
    users = [f"{{{n % 700}}} né {n}" if kind == "string" else n * 1_000_003 for n in range(5_000)]
    states = {}
    for name, where in (("sqlite", None), ("cluster", cluster)):
        settings = settings_of(tmp_path / name, kind, where)
        materialised(settings, users)
        state = states[name] = OnlineState(settings)
        for first in (0, 16):
            state.feedback([clicked(user, f"r{first}") for user in users[first : first + 16]])
        state.feedback([clicked(user, "r") for user in users[:3]])
    nobody = "nobody" if kind == "string" else -5
    asked = [StateRequest(user, "s", NOON) for user in [*users, nobody]]
    one, other = (
        np.concatenate([state.read(asked[at : at + 64]) for at in range(0, len(asked), 64)])
        for state in states.values()
    )
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one, axis=0)) > 4_000
    settings = settings_of(tmp_path / "cluster", kind, cluster)
    clients = [redis.Redis(port=node.port, password=PASSWORD) for node in cluster.nodes[:3]]
    sizes = [client.dbsize() for client in clients]
    assert sum(sizes) == len(users) and min(sizes) > len(users) / 5
    assert all(0 < client.ttl(client.randomkey()) <= 9 * 86_400 for client in clients)
    assert forgetting.forget(settings, users[0]) == 1 and forgetting.forget(settings, users[0]) == 0
    (forgotten, kept) = states["cluster"].read([asked[0], asked[1]])
    assert (forgotten != one[0]).any() and (kept == one[1]).all()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_primary_that_dies_costs_states_until_its_replica_takes_over(tmp_path, cluster, fault):
    """No read waits for longer than its budget, and the states come back by themselves."""
    settings = settings_of(tmp_path / "data", "int64", cluster)
    users = materialised(settings, list(range(300)))
    asked = [[StateRequest(user, "s", NOON) for user in users[at : at + 10]] for at in range(0, 300, 10)]
    failed: list[str] = []
    store = StateStore(settings, failed.append)
    try:
        store.wait_tried(60.0)
        before = [store.read(batch) for batch in asked]
        assert failed == [] and all(state is not None for batch in before for state in batch)
        waited, right = [], 0
        cluster.nodes[0].send(fault)
        end = time.monotonic() + FAIL_OVER_S
        while right < len(asked) and time.monotonic() < end:  # all of them, one after the other
            for batch, states in zip(asked, before, strict=True):
                started = time.monotonic()
                found = store.read(batch)
                waited.append(time.monotonic() - started)
                if found[0] is None:
                    right = 0
                    time.sleep(0.01)
                    continue
                np.testing.assert_array_equal(found, states)
                right += 1
        assert right >= len(asked), "the states did not come back"
        assert failed.count("read") > 0 and store.healthy
        assert max(waited) < BUDGET_MS / 1000 + 0.2
        state = OnlineState(settings)
        state.feedback([clicked(user, "r") for user in users[:10]])
        assert (state.read(asked[0]) != before[0]).any(axis=1).all()
    finally:
        store.close()
