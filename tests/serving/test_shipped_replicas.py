"""Two replicas of the service, their own disks, and a bucket: what was acknowledged is landed, and once."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, cycle
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serving.release.client import Client, ServiceError
from tests.dags.command import mtf
from tests.servers import files_with, redis_server
from tests.serving.conftest import EPOCH_DAYS, Server
from tests.serving.log import stores
from training import features, ingest
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings, ShipSettings

pytestmark = [pytest.mark.scale, pytest.mark.timeout(1800)]
START = datetime(2026, 1, 5, 4, tzinfo=UTC)
ITEMS = range(20)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[stores.Store]:
    with stores.opened("s3", tmp_path) as opened:
        yield opened


@pytest.fixture
def replicas(tmp_path: Path, store, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    with redis_server() as port:
        monkeypatch.setenv("MTF__STORE__ONLINE", "redis")
        monkeypatch.setenv("MTF__STORE__REDIS_URL", f"127.0.0.1:{port}")
        servers = []
        for name in ("a", "b"):
            server = Server(
                tmp_path,
                index="redis",
                accept_event_ts=True,
                state_budget_ms=5_000.0,
                queue_budget_ms=10_000.0,
                exploration={"epoch_days": EPOCH_DAYS},
                ship={**store.settings, "every_seconds": 0.5},
            )
            log = str(tmp_path / f"disk-{name}")
            server.environment = {"MTF__SERVING__REPLICA": name, "MTF__SERVING__LOG_FOLDER": log}
            servers.append(server)
        features.apply(servers[0].settings)
        try:
            for server in servers:
                server.start(seconds=600)
            yield servers
        finally:
            for server in servers:
                server.stop()


class Load:
    """Users whose calls go to the replicas in turn; a call that is not acknowledged is not told of."""

    def __init__(self, clients: list[Client]) -> None:
        self._clients, self._numbers = cycle(clients), count()
        self.ranked, self.fed = list[str](), list[str]()

    def send(self, calls: int) -> None:
        for number in (next(self._numbers) for _ in range(calls)):
            request, at = f"request-{number}", START + timedelta(seconds=20 * number)
            try:
                client = next(self._clients)
                ranking = client.rank(number % 5, ITEMS, {}, request_id=request, event_ts=at.isoformat())
                self.ranked.append(request)
                if number % 3:  # else at the replica that ranked
                    client = next(self._clients)
                told = [{"item_id": ranking.items[0], "is_click": 1}]
                client.feedback(request, told, event_ts=(at + timedelta(seconds=5)).isoformat())
                self.fed.append(request)
            except ServiceError:
                time.sleep(0.05)  # of the replica that is down


def shipping_failed(server: Server) -> int:
    return server.log.read_text().count("the log is not shipped")


def landed(settings: Settings) -> dict[str, list[dict]]:
    ingest.land_service_log(settings, START.date())
    partitions = {t: settings.layout.partition(t, START.date()) for t in (DECISIONS, IMPRESSIONS)}
    return {t: pq.ParquetFile(path / "part-0.parquet").read().to_pylist() for t, path in partitions.items()}


def test_what_replicas_acknowledged_is_landed_once_whatever_fails(replicas, store, tmp_path, monkeypatch):
    with replicas[0].client(60.0) as one, replicas[1].client(60.0) as other:
        load = Load([one, other])
        load.send(60)
        store.stop()
        before = len(load.fed)
        failed = shipping_failed(replicas[0])
        deadline = time.monotonic() + 300
        while shipping_failed(replicas[0]) < failed + 2:
            load.send(10)  # the service goes on
            assert time.monotonic() < deadline
        assert len(load.fed) >= before + 10
        store.start()
        replicas[0].kill()
        load.send(20)
        replicas[0].start(seconds=600)
        load.send(60)
    for server in replicas:
        server.stop()
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        told = mtf("ship", settings=server.path)  # what the service had open when it ended
        assert told.returncode == 0, told.stderr
    for name in replicas[0].environment:
        monkeypatch.delenv(name)

    ship = ShipSettings(**store.settings)
    serving = replicas[0].settings.serving
    landing = Settings(data=tmp_path / "landing", serving=serving.model_copy(update={"ship": ship}))
    shared = Settings(data=tmp_path / "shared")
    for name in ("a", "b"):
        shutil.copytree(tmp_path / f"disk-{name}", shared.layout.serving_log, dirs_exist_ok=True)
    rows = landed(landing)
    assert rows == landed(shared)
    assert set(load.ranked) <= {row["request_id"] for row in rows[DECISIONS]}
    clicked = Counter(row["request_id"] for row in rows[IMPRESSIONS] if row["is_click"])
    assert set(load.fed) <= clicked.keys() and set(clicked.values()) == {1}
    for kind in ("decisions", "feedback"):
        lines = [
            json.loads(line)["request_id"]
            for path in (landing.layout.serving_log / kind).glob("*.jsonl")
            for line in path.read_bytes().splitlines()
        ]
        assert set(Counter(lines).values()) == {1}
    print(f"{len(load.ranked)} decisions, {len(load.fed)} feedbacks acknowledged")
    assert files_with(tmp_path, os.environ["AWS_SECRET_ACCESS_KEY"]) == []
