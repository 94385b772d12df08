"""What is in service, in files and in a row of Redis; policies by their hash in an object store."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from tests.servers import Redis
from tests.serving.log import stores
from training.contract import in_service, rollout
from training.contract.errors import InServiceError, ObjectStoreError, PolicyError, SettingsError
from training.contract.in_service import policies
from training.contract.in_service.row import FENCE, KEY
from training.contract.pointer import PolicyPointer
from training.contract.policy import PolicyHeader, load_policy, save_policy
from training.contract.settings import Settings
from training.contract.shipped import POLICIES, replicas
from training.operations.backup import backup, restore

MakeSettings = Callable[[str], Settings]


def of_redis(folder: Path, port: int, **serving: object) -> Settings:
    return Settings(
        data=folder,
        store={"online": "redis", "redis_url": f"127.0.0.1:{port}"},
        serving={"index": "redis", **serving},
    )


@pytest.fixture(params=["files", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "files":
        return Settings(data=tmp_path / "data")
    port = request.getfixturevalue("redis_port")
    redis.Redis(port=port).flushall()
    return of_redis(tmp_path / "data", port)


@pytest.fixture
def shared(tmp_path: Path, redis_port: int) -> MakeSettings:
    """Settings of one more machine, with a data folder of its own."""
    redis.Redis(port=redis_port).flushall()
    return lambda name: of_redis(tmp_path / name, redis_port)


def policy(settings: Settings, version: str, day: str = "2026-01-05") -> PolicyPointer:
    """A policy file where promotions put it, and its pointer."""
    folder = settings.layout.serving / "policies"
    header = PolicyHeader("constant", version, settings.state_spec, settings.fusion)
    action = np.full(len(settings.heads), 0.5)
    digest = save_policy(folder / "new", header, {"action": action})
    path = (folder / "new").rename(folder / f"{digest}.safetensors")
    where = path.relative_to(settings.data).as_posix()
    return PolicyPointer(where, digest, version, day, "1", "2026-01-06T00:00:00Z")


def promote(settings: Settings, version: str, day: str = "2026-01-05") -> PolicyPointer:
    with in_service.changing(settings) as row:
        pointer = rollout.following(policy(settings, version, day), row.champion)
        rollout.make_champion(row, pointer, "passed the gate", {})
    return pointer


def test_what_is_changed_is_read_and_told_in_the_history(settings: Settings) -> None:
    first = in_service.read(settings)
    assert (first.champion, first.challenger, first.canary, first.history) == (None, None, None, [])
    assert first.shares == settings.serving.shares
    pointer = promote(settings, "v1")
    with in_service.changing(settings) as row:
        row.change_shares({"static": 0.2}, "a test")
        row.canary = {"step": 0}
    now = in_service.read(settings)
    assert now.champion == pointer and now.shares.static == 0.2 and now.canary == {"step": 0}
    assert [event["action"] for event in now.history] == ["promote", "shares"]
    with in_service.changing(settings) as row:
        row.champion = row.canary = None
    assert in_service.read(settings).champion is None and in_service.read(settings).canary is None


def test_a_change_that_fails_on_its_way_has_changed_nothing(settings: Settings) -> None:
    promote(settings, "v1")
    with pytest.raises(SettingsError), in_service.changing(settings) as row:
        row.champion = None
        row.change_shares({"static": 2.0}, "a test")
    now = in_service.read(settings)
    assert now.champion is not None and len(now.history) == 1


def test_each_change_raises_the_version_by_one_and_nothing_else_does(shared: MakeSettings) -> None:
    one, two = shared("a"), shared("b")
    promote(one, "v1")
    assert in_service.read(two).version == 1
    with in_service.changing(two) as row:
        row.champion = row.champion
    assert in_service.read(one).version == 1
    with in_service.changing(two) as row:
        row.change_shares({"static": 0.2}, "a test")
    assert in_service.read(one).version == 2 and in_service.read(one).shares.static == 0.2


def test_of_two_changes_of_one_version_the_second_is_refused_whole(shared: MakeSettings) -> None:
    one, two = shared("a"), shared("b")
    promote(one, "v1")
    with pytest.raises(InServiceError, match="was changed meanwhile"), in_service.changing(one) as row:
        rollout.step_back(row, "a test", to_static=True)
        promote(two, "v2", "2026-01-06")
    now = in_service.read(one)
    assert now.champion is not None and now.champion.version == "v2" and now.version == 2
    assert [event["action"] for event in now.history] == ["promote", "promote"]


def test_a_change_by_an_old_lease_is_refused_and_by_the_newest_made(
    shared: MakeSettings, redis_port: int
) -> None:
    settings = shared("a")
    promote(settings, "v1")
    redis.Redis(port=redis_port).hset(KEY, FENCE, "7")
    with (
        pytest.raises(InServiceError, match="lease is another replica's"),
        in_service.changing(settings, fence=6) as row,
    ):
        row.champion = None
    with in_service.changing(settings, fence=7) as row:
        row.canary = {"step": 1}
    assert in_service.read(settings).champion is not None and in_service.read(settings).canary == {"step": 1}


CHANGES = """
import itertools, pathlib, sys
from dataclasses import replace
from tests.training.contract.test_in_service import of_redis
from training.contract import in_service
settings = of_redis(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
while True:
    with in_service.changing(settings) as row:
        number = len(row.history) + 1
        row.champion = replace(row.champion, version=str(number))
        row.change_shares({"static": number % 97 / 1000}, str(number))
"""


def test_killed_anywhere_pointer_shares_and_history_are_of_one_change(
    shared: MakeSettings, redis_port: int
) -> None:
    settings = shared("a")
    promote(settings, "v1")
    for number in range(3):
        command = [sys.executable, "-c", CHANGES, str(settings.data), str(redis_port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(0.2 + 0.07 * number)
            os.kill(process.pid, signal.SIGKILL)
        row = in_service.read(settings)
        last = len(row.history)
        assert row.champion is not None and row.champion.version == row.history[-1]["reason"] == str(last)
        assert row.shares.static == last % 97 / 1000 and row.version == last


def test_the_row_begins_as_the_files_of_whoever_changes_it_first(
    shared: MakeSettings, tmp_path: Path
) -> None:
    files, row = Settings(data=tmp_path / "a"), shared("a")
    promote(files, "v1")
    with in_service.changing(files) as before:
        before.change_shares({"static": 0.2}, "a test")
    assert in_service.read(row).champion == in_service.read(files).champion
    promote(row, "v2", "2026-01-06")
    now = in_service.read(shared("b"))
    assert now.champion is not None and now.champion.version == "v2" and now.shares.static == 0.2
    assert [event["action"] for event in now.history] == ["promote", "shares", "promote"]
    assert in_service.read(files).champion.version == "v1"  # which nobody reads any more


def test_a_redis_that_forgot_is_told_and_not_taken_for_a_new_one(tmp_path: Path) -> None:
    server = Redis()
    server.start()
    settings = of_redis(tmp_path / "a", server.port)
    try:
        promote(settings, "v1")
        in_service.read(settings)
        server.stop()
        with pytest.raises(InServiceError, match="Redis, which holds what is in service"):
            in_service.read(settings)
        server.start()
        for ask in (in_service.read, lambda settings: promote(settings, "v2")):
            with pytest.raises(InServiceError, match="has lost what is in service"):
                ask(settings)
        settings.layout.in_redis.unlink()
        assert in_service.read(settings).champion is None
    finally:
        server.stop()


def test_a_backup_holds_the_row_as_the_files_that_it_would_be(shared: MakeSettings, tmp_path: Path) -> None:
    settings = shared("a")
    first = promote(Settings(data=settings.data), "v1")  # a file of before the move
    second = promote(settings, "v2", "2026-01-06")
    backup(settings, tmp_path / "b.tar.gz")
    back = Settings(data=tmp_path / "back")
    restore(back, tmp_path / "b.tar.gz")
    now = in_service.read(back)
    assert now.champion == second and second.previous["version"] == first.version
    assert [event["version"] for event in now.history] == ["v1", "v2"]
    assert not back.layout.in_redis.exists()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.scale)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[stores.Store]:
    with stores.opened(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def shipping(store: stores.Store, tmp_path: Path, redis_port: int) -> MakeSettings:
    redis.Redis(port=redis_port).flushall()
    return lambda name: of_redis(tmp_path / name, redis_port, ship=store.settings)


def test_a_policy_is_in_the_store_before_the_row_names_it_and_fetched_by_its_hash(
    shipping: MakeSettings, store: stores.Store
) -> None:
    one, two = shipping("a"), shipping("b")
    pointer = promote(one, "v1")
    found = policies.file_of(two, pointer)
    assert found.is_relative_to(two.data) and load_policy(found, pointer.sha256).version == "v1"
    assert POLICIES not in replicas(policies.object_store(one.serving.ship))
    store.stop()
    with pytest.raises(ObjectStoreError):
        promote(one, "v2", "2026-01-06")
    assert in_service.read(two).champion == pointer and len(in_service.read(two).history) == 1
    store.start()
    promote(one, "v2", "2026-01-06")
    store.stop()
    with in_service.changing(one) as row:  # what it goes back to is there already
        assert rollout.step_back(row, "a test").version == "v1"
    store.start()


def test_an_object_that_is_not_what_its_hash_says_is_refused_and_leaves_nothing(
    shipping: MakeSettings,
) -> None:
    one, two = shipping("a"), shipping("b")
    pointer = promote(one, "v1")
    policies.object_store(one.serving.ship).put(f"{POLICIES}/{pointer.sha256}", b"something else")
    with pytest.raises(PolicyError, match="remove it, and promote again"):
        policies.file_of(two, pointer)
    with pytest.raises(PolicyError, match="there is no policy"):
        policies.file_of(two, replace(pointer, policy="serving/policies/none", sha256="0" * 64))
    assert list(two.data.rglob("*.safetensors")) == [] and list(two.data.rglob("*.tmp")) == []
