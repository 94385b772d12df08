"""Two replicas on disks of their own follow what a third machine promotes, rolls back and shares out."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dags.command import mtf
from tests.servers import redis_server
from tests.serving.conftest import Server, settings_file
from tests.serving.log import stores
from training import features
from training.contract import in_service, rollout
from training.contract.settings import load_settings

pytestmark = [pytest.mark.scale, pytest.mark.timeout(1800)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[stores.Store]:
    with stores.opened("s3", tmp_path) as opened:
        yield opened


@pytest.fixture
def apart(tmp_path: Path, store, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[Server]]]:
    """The settings of a machine that promotes, and two that serve: nothing of their folders is shared."""
    serving = {"index": "redis", "ship": {**store.settings, "every_seconds": 60.0}}
    with redis_server() as port:
        monkeypatch.setenv("MTF__STORE__ONLINE", "redis")
        monkeypatch.setenv("MTF__STORE__REDIS_URL", f"127.0.0.1:{port}")
        servers = []
        for name in ("promoting", "a", "b"):
            (tmp_path / name).mkdir()
        for name in ("a", "b"):
            server = Server(tmp_path / name, policy_budget_ms=5_000.0, **serving)
            server.environment = {"MTF__SERVING__REPLICA": name}
            servers.append(server)
        features.apply(servers[0].settings)
        features.apply(servers[1].settings)
        try:
            for server in servers:
                server.start(seconds=600)
            yield settings_file(tmp_path / "promoting", **serving), servers
        finally:
            for server in servers:
                server.stop()


def until(servers: list[Server], told: Callable[[dict], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    for server in servers:
        with server.client(60.0) as client:
            while not told(client.status()):
                assert time.monotonic() < deadline, client.status()
                time.sleep(0.05)


def serves(version: str) -> Callable[[dict], bool]:
    return lambda status: (status["champion"] or {}).get("version") == version and status["refused"] is None


def test_one_promotion_and_one_rollback_reach_every_replica(apart, store, constant):
    path, servers = apart
    here = load_settings(path)

    def promote(version: str, day: str) -> None:
        with in_service.changing(here) as row:
            policy = replace(constant(here, version, 0.5), day=day, model_version="")
            rollout.make_champion(row, rollout.following(policy, row.champion), "a test", {})

    promote("v1", "2026-01-05")
    until(servers, serves("v1"))
    promote("v2", "2026-01-06")
    until(servers, serves("v2"))
    for command in (("rollback", "--reason", "a test"), ("arms", "--static", "0.25")):
        done = mtf(*command, settings=path)
        assert done.returncode == 0, done.stderr
    until(servers, lambda status: serves("v1")(status) and status["shares"]["static"] == 0.25)

    promote("v3", "2026-01-07")
    until(servers, serves("v3"))
    for server in servers:  # its disk is lost, and the store away, when it starts again
        server.stop()
        for file in server.settings.data.glob("models/*.safetensors"):
            file.unlink()
    store.stop()
    for server in servers:
        server.start(seconds=600)
    until(servers, lambda status: status["champion"] is None and "object store" in (status["refused"] or ""))
    with servers[0].client(60.0) as client:
        assert client.rank(1, range(5), {}).items  # by static weights
    store.start()
    until(servers, serves("v3"), seconds=200.0)
    told = [event["action"] for event in in_service.read(here).history]
    assert told == ["promote", "promote", "rollback", "shares", "promote"]
