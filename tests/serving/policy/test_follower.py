import json
import time
from dataclasses import replace

import numpy as np
import pytest
import redis

from serving.policy.follower import InServiceSource, PackedSource, PolicyFollower, Source
from tests.serving.conftest import settings_file
from tests.serving.log import stores
from training.contract import in_service
from training.contract.fusion import Fusion
from training.contract.pointer import write_pointer
from training.contract.policy import PolicyHeader, save_policy
from training.contract.settings import Settings, load_settings
from training.contract.state import StateSpec


class Watched:
    """A follower and what it reported."""

    def __init__(self, settings: Settings, sources: list[Source] | None = None) -> None:
        self.refused: list[str] = []
        self.swapped: list[str] = []
        self.follower = PolicyFollower(
            settings, sources, lambda c: self.swapped.append(c.policy.version), self.refused.append
        )


@pytest.fixture
def watched(settings):
    return Watched(settings)


def test_follows_promotions_and_rollbacks(settings, watched, constant):
    assert not watched.follower.look() and watched.follower.current is None
    one, two = constant(settings, "v1", 0.1), constant(settings, "v2", 0.2)
    write_pointer(settings.layout.champion, one)
    assert watched.follower.look() and not watched.follower.look()  # once a change
    write_pointer(settings.layout.champion, two)
    assert watched.follower.look()
    action = watched.follower.current.policy.act(np.zeros((1, settings.state_spec.width)))
    assert action[0, 0] == np.float32(0.2)
    write_pointer(settings.layout.champion, one)
    assert watched.follower.look()
    assert watched.swapped == ["v1", "v2", "v1"] and watched.refused == []


def test_a_rollback_to_the_previous_needs_no_file(settings, watched, constant):
    one, two = constant(settings, "v1", 0.1), constant(settings, "v2", 0.2)
    for pointer in (one, two):
        write_pointer(settings.layout.champion, pointer)
        watched.follower.look()
    kept = (settings.data / one.policy).read_bytes()
    (settings.data / one.policy).write_bytes(kept)  # another inode time, the same hash
    write_pointer(settings.layout.champion, one)
    assert watched.follower.look() and watched.follower.current.policy.version == "v1"


def break_file(settings, pointer, constant):
    path = settings.data / pointer.policy
    path.write_bytes(path.read_bytes()[:-3])
    return pointer


def wrong_hash(settings, pointer, constant):
    return replace(pointer, sha256="0" * 64)


def no_file(settings, pointer, constant):
    return replace(pointer, policy="models/none.safetensors")


def wrong_version(settings, pointer, constant):
    return replace(pointer, version="v9")


def other_state(settings, pointer, constant):
    spec = StateSpec(settings.state_spec.features[:-1])
    return constant(settings, "v2", 0.2, spec=spec)


def other_bounds(settings, pointer, constant):
    heads = settings.fusion.heads
    return constant(settings, "v2", 0.2, fusion=Fusion((replace(heads[0], high=9.0), *heads[1:])))


def not_a_number(settings, pointer, constant):
    path = settings.data / pointer.policy
    header = PolicyHeader("constant", "v2", settings.state_spec, settings.fusion)
    digest = save_policy(path, header, {"action": np.full(len(settings.heads), np.nan)})
    return replace(pointer, sha256=digest)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (break_file, "has SHA-256"),
        (wrong_hash, "expected 0000"),
        (no_file, "none.safetensors"),
        (wrong_version, "the pointer names v9"),
        (other_state, "trained on state specification"),
        (other_bounds, "other names, β or bounds"),
        (not_a_number, "not a number"),
    ],
)
def test_a_bad_artefact_is_refused_once_and_the_old_serves_on(settings, watched, constant, spoil, reason):
    write_pointer(settings.layout.champion, constant(settings, "v1", 0.1))
    watched.follower.look()
    write_pointer(settings.layout.champion, spoil(settings, constant(settings, "v2", 0.2), constant))
    for _ in range(3):
        assert not watched.follower.look()
    assert len(watched.refused) == 1 and reason in watched.refused[0]
    assert watched.follower.refused == watched.refused[0]
    assert watched.follower.current.policy.version == "v1"
    # and a good one after it is taken
    write_pointer(settings.layout.champion, constant(settings, "v3", 0.3))
    assert watched.follower.look() and watched.follower.refused is None


def test_a_broken_or_vanished_pointer_changes_nothing(settings, watched, constant):
    write_pointer(settings.layout.champion, constant(settings, "v1", 0.1))
    watched.follower.look()
    settings.layout.champion.write_text(json.dumps({"policy": "x"}))
    assert not watched.follower.look() and "is not a pointer to a policy" in watched.refused[0]
    settings.layout.champion.unlink()
    assert not watched.follower.look()
    assert watched.follower.current.policy.version == "v1"


def test_a_file_that_comes_after_its_pointer_is_taken_then(settings, watched, constant):
    pointer = constant(settings, "v1", 0.1)
    path = settings.data / pointer.policy
    content = path.read_bytes()
    path.unlink()
    write_pointer(settings.layout.champion, pointer)
    assert not watched.follower.look() and len(watched.refused) == 1
    path.write_bytes(content)
    assert watched.follower.look()


def test_other_hand_tuned_weights_do_not_refuse_a_policy(settings, constant):
    heads = settings.heads
    tuned = heads[0].model_copy(update={"static": 0.123})
    changed = settings.model_copy(update={"heads": (tuned, *heads[1:])})
    write_pointer(settings.layout.champion, constant(settings, "v1", 0.1))
    assert Watched(changed).follower.look()


def test_a_packed_policy_serves_until_the_data_folder_has_one(settings, constant, tmp_path):
    packed = tmp_path / "packed"
    pointer = constant(settings, "v1", 0.1)
    packed.mkdir()
    (packed / "policy.safetensors").write_bytes((settings.data / pointer.policy).read_bytes())
    write_pointer(packed / "champion.json", replace(pointer, policy="policy.safetensors"))
    sources = [InServiceSource(settings, "champion"), PackedSource(packed / "champion.json")]
    watched = Watched(settings, sources)
    assert watched.follower.look() and watched.swapped == ["v1"]
    write_pointer(settings.layout.champion, constant(settings, "v2", 0.2))
    assert watched.follower.look() and watched.swapped == ["v1", "v2"]


def test_a_challenger_whose_pointer_vanishes_is_gone_and_may_come_again(settings, constant):
    gone = []
    follower = PolicyFollower(
        settings, [InServiceSource(settings, "challenger")], on_vanished=lambda: gone.append(1)
    )
    pointer = constant(settings, "c1", 0.1)
    for times in (1, 2):
        write_pointer(settings.layout.challenger, pointer)
        assert follower.look() and follower.current.policy.version == "c1"
        settings.layout.challenger.unlink()
        assert not follower.look() and follower.current is None
        assert not follower.look() and len(gone) == times


def test_a_policy_that_its_disk_lacks_is_fetched_and_what_serves_serves_on_meanwhile(
    tmp_path, redis_port, monkeypatch, constant
):
    redis.Redis(port=redis_port).flushall()
    monkeypatch.setenv("MTF__STORE__ONLINE", "redis")
    monkeypatch.setenv("MTF__STORE__REDIS_URL", f"127.0.0.1:{redis_port}")
    for name in ("promoting", "serving"):
        (tmp_path / name).mkdir()
    with stores.opened("folder", tmp_path) as store:
        how = {"index": "redis", "ship": store.settings}
        here, there = (load_settings(settings_file(tmp_path / n, **how)) for n in ("promoting", "serving"))
        watched = Watched(there)

        def promote(version: str) -> None:
            with in_service.changing(here) as row:
                row.champion = constant(here, version, 0.5)

        def looked(seconds: float = 30.0) -> bool:
            deadline = time.monotonic() + seconds
            while not watched.follower.look() and time.monotonic() < deadline:
                time.sleep(0.05)
            return watched.follower.refused is None

        promote("v1")
        assert looked() and watched.swapped == ["v1"]
        promote("v2")
        store.stop()
        for _ in range(3):
            assert not watched.follower.look()
        assert len(watched.refused) == 1 and "is not there" in watched.follower.refused
        assert watched.follower.waiting and watched.follower.current.policy.version == "v1"
        store.start()
        assert looked() and watched.swapped == ["v1", "v2"] and not watched.follower.waiting
        assert (there.data / watched.follower.current.pointer.policy).exists()


def test_a_policy_that_cannot_keep_its_budget_is_not_taken(settings, constant):
    serving = settings.serving.model_copy(update={"policy_budget_ms": 1e-6})
    watched = Watched(settings.model_copy(update={"serving": serving}))
    write_pointer(settings.layout.champion, constant(settings, "v1", 0.1))
    assert not watched.follower.look() and "more than serving.policy_budget_ms" in watched.refused[0]
