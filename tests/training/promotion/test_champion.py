"""Promotion and rollback: pointer, registry and history agree, also after a rerun or a kill."""

from datetime import date, timedelta

import numpy as np
import pytest
import redis

from tests.training.promotion.conftest import Arrange
from training.contract import in_service, rollout
from training.contract.errors import MtfError, PolicyError
from training.contract.files import sha256
from training.contract.in_service import files
from training.contract.pointer import read_pointer
from training.contract.records import read_record
from training.contract.settings import ServingSettings, Settings, ShipSettings, StoreSettings
from training.promotion import (
    champion_before,
    champion_policy,
    gate,
    history,
    promote,
    registry,
    rollback,
)
from training.promotion.champion import champions_to_replay

DAYS = [date(2026, 1, 5) + timedelta(days=i) for i in range(4)]


def run_day(settings: Settings, arrange: Arrange, day: date, seed: int, **values: float) -> dict:
    arrange(day, seed=seed, **values)
    return promote(settings, day, gate(settings, day))


def test_static_weights_serve_before_the_first_promotion(settings: Settings) -> None:
    policy = champion_policy(settings)
    assert policy.version == "static"
    states = np.zeros((2, settings.state_spec.width), dtype=np.float32)
    np.testing.assert_allclose(policy.act(states), np.tile(settings.fusion.static_action, (2, 1)))
    with pytest.raises(MtfError, match="no champion to roll back"):
        rollback(settings)


def test_a_promotion_moves_pointer_alias_and_history(settings: Settings, arrange: Arrange) -> None:
    record = run_day(settings, arrange, DAYS[0], 1)
    pointer = read_pointer(settings.layout.champion)
    assert record["promoted"]
    assert record["version"] == pointer.version == champion_policy(settings).version == "p1"
    assert (settings.data / pointer.policy).is_file()
    assert registry.alias_version(settings, registry.CHAMPION) == pointer.model_version == "1"
    events = history(settings)
    assert [(e["action"], e["version"], e["from"]) for e in events] == [("promote", "p1", None)]


def test_in_redis_it_is_promoted_and_rolled_back_as_in_files_and_had_elsewhere(
    settings: Settings, arrange: Arrange, redis_port: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    redis.Redis(port=redis_port).flushall()
    shared = {
        "store": StoreSettings(online="redis", redis_url=f"127.0.0.1:{redis_port}"),
        "serving": ServingSettings(
            index="redis", ship=ShipSettings(to=str(tmp_path_factory.mktemp("store")))
        ),
    }
    here = settings.model_copy(update=shared)
    elsewhere = here.model_copy(update={"data": tmp_path_factory.mktemp("elsewhere")})
    run_day(here, arrange, DAYS[0], 1)
    assert run_day(here, arrange, DAYS[1], 2, champion=1.0)["promoted"]
    assert champion_policy(elsewhere).version == "p2"
    assert rollback(here)["version"] == "p1" == champion_policy(elsewhere).version
    assert registry.alias_version(here, registry.CHAMPION) == "1"
    assert [e["action"] for e in history(elsewhere)] == ["promote", "promote", "rollback"]
    assert gate(here, DAYS[1])["decision"] == "refuse"  # it was rolled back
    assert not here.layout.champion.exists() and in_service.read(elsewhere).version == 3


def test_a_retrain_of_the_day_does_not_touch_what_serves(settings: Settings, arrange: Arrange) -> None:
    run_day(settings, arrange, DAYS[0], 1)
    arrange(DAYS[0], seed=2, lower=0.0)
    assert gate(settings, DAYS[0])["decision"] == "refuse"
    assert champion_policy(settings).version == "p1"


def test_promoting_twice_changes_nothing(settings: Settings, arrange: Arrange) -> None:
    first = run_day(settings, arrange, DAYS[0], 1)
    bytes_before = settings.layout.champion.read_bytes()
    assert promote(settings, DAYS[0], gate(settings, DAYS[0])) == first
    assert settings.layout.champion.read_bytes() == bytes_before
    assert len(history(settings)) == 1


def test_a_refusal_leaves_the_champion(settings: Settings, arrange: Arrange) -> None:
    run_day(settings, arrange, DAYS[0], 1)
    record = run_day(settings, arrange, DAYS[1], 2, lower=0.5, champion=1.0)
    assert (record["promoted"], record["version"]) == (False, "p1")
    assert "differs from that of the champion by -0.5" in record["reason"]
    assert champion_policy(settings).version == "p1"


def test_rollback_goes_back_step_by_step_and_then_says_so(settings: Settings, arrange: Arrange) -> None:
    for i in range(3):
        run_day(settings, arrange, DAYS[i], i + 1, champion=1.0)
    assert champion_policy(settings, before=DAYS[1]).version == "p1"
    record = rollback(settings, "fewer returns")
    assert (record["version"], record["from_version"]) == ("p2", "p3")
    assert champion_policy(settings).version == "p2"
    assert registry.alias_version(settings, registry.CHAMPION) == "2"
    assert history(settings)[-1]["reason"] == "fewer returns"
    rollback(settings)
    with pytest.raises(MtfError, match="nothing to go back to: p1 is the first champion"):
        rollback(settings)
    assert champion_policy(settings).version == "p1"


def test_a_day_after_a_rollback_builds_on_what_serves(settings: Settings, arrange: Arrange) -> None:
    for i in range(2):
        run_day(settings, arrange, DAYS[i], i + 1, champion=1.0)
    rollback(settings)
    run_day(settings, arrange, DAYS[2], 3, champion=1.0)
    assert read_pointer(settings.layout.champion).previous["version"] == "p1"


def test_a_retrained_day_keeps_its_predecessor_for_rollback(settings: Settings, arrange: Arrange) -> None:
    for i in range(2):
        run_day(settings, arrange, DAYS[i], i + 1, champion=1.0)
    run_day(settings, arrange, DAYS[1], 9, champion=1.0)
    assert champion_before(settings, DAYS[1]).version == "p1"
    assert rollback(settings)["version"] == "p1"


def test_a_backfilled_older_day_does_not_replace_a_newer_champion(
    settings: Settings, arrange: Arrange
) -> None:
    for i in (0, 2):
        run_day(settings, arrange, DAYS[i], i + 1, champion=1.0)
    record = run_day(settings, arrange, DAYS[1], 2, champion=1.0)
    assert (record["promoted"], record["version"]) == (False, "p3")
    assert f"newer than {DAYS[1]}" in record["reason"]


@pytest.mark.parametrize("at", ["set_alias", "write_text_atomic"])
def test_a_promotion_killed_half_way_is_made_whole_by_a_rerun(
    settings: Settings, arrange: Arrange, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    run_day(settings, arrange, DAYS[0], 1)
    arrange(DAYS[1], seed=2, champion=1.0)
    decision = gate(settings, DAYS[1])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry if at == "set_alias" else files, at, killed)
        with pytest.raises(KeyboardInterrupt):
            promote(settings, DAYS[1], decision)
    assert champion_policy(settings).version == "p1"  # what serves is still whole
    promote(settings, DAYS[1], gate(settings, DAYS[1]))
    assert champion_policy(settings).version == "p2"
    assert registry.alias_version(settings, registry.CHAMPION) == "2"
    assert [e["version"] for e in history(settings)] == ["p1", "p2"]


def test_rollback_refuses_a_broken_predecessor_and_keeps_serving(
    settings: Settings, arrange: Arrange
) -> None:
    for i in range(2):
        run_day(settings, arrange, DAYS[i], i + 1, champion=1.0)
    kept = settings.data / read_pointer(settings.layout.champion).previous["policy"]
    kept.write_bytes(kept.read_bytes()[:-8])
    with pytest.raises(PolicyError):
        rollback(settings)
    assert champion_policy(settings).version == "p2"


def test_a_rollback_reaches_the_service_even_when_the_registry_is_broken(
    settings: Settings, arrange: Arrange
) -> None:
    for i in range(2):
        run_day(settings, arrange, DAYS[i], i + 1, champion=1.0)
    database = settings.layout.mlflow / "mlflow.db"
    database.rename(database.with_suffix(".gone"))
    with pytest.raises(MtfError, match="rolled back to p1"):
        rollback(settings)
    assert champion_policy(settings).version == "p1"


def test_a_policy_file_swapped_after_the_gate_is_not_promoted(settings: Settings, arrange: Arrange) -> None:
    arrange(DAYS[0], seed=1)
    decision = gate(settings, DAYS[0])
    arrange(DAYS[0], seed=2)
    with pytest.raises(PolicyError, match="SHA-256"):
        promote(settings, DAYS[0], decision)
    assert read_pointer(settings.layout.champion) is None


def test_a_champion_of_other_heads_is_not_compared(settings: Settings, arrange: Arrange) -> None:
    run_day(settings, arrange, DAYS[0], 1)
    changed = settings.model_copy(update={"heads": settings.heads[::-1]})
    assert champion_policy(changed).version == "static"


def test_the_pointer_does_not_grow_for_ever(
    settings: Settings, arrange: Arrange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "CHAIN", 2)
    for i in range(4):
        run_day(settings, arrange, DAYS[i], i + 1, champion=1.0)
    pointer = read_pointer(settings.layout.champion)
    assert pointer.previous["previous"]["version"] == "p2"
    assert pointer.previous["previous"]["previous"] is None


def test_the_registry_holds_one_run_and_version_a_policy(settings: Settings, arrange: Arrange) -> None:
    digest = arrange(DAYS[0])
    records = [read_record(settings.layout, DAYS[0], stage) for stage in ("train", "evaluate")]
    assert [registry.register(settings, DAYS[0], *records) for _ in range(2)] == ["1", "1"]
    client = registry._client(settings)
    (version,) = client.search_model_versions(f"name = '{registry.MODEL}'")
    run = client.get_run(version.run_id)
    assert version.tags == {"sha256": digest, "policy": "p1", "day": str(DAYS[0])}
    assert run.data.params["gamma"] == "0.95"
    assert run.data.metrics["challenger.lower"] == 1.2
    assert [m.step for m in client.get_metric_history(version.run_id, "train.critic")] == [10, 20]
    assert run.data.tags["lineage.partitions"] == '{"2026-01-05": "ab"}'
    assert registry.alias_version(settings, registry.CHALLENGER) == "1"
    files = {path.name: path for path in registry.artifacts(settings, version.run_id).iterdir()}
    assert set(files) == {"lineage.json", "policy.safetensors"}
    assert sha256(files["policy.safetensors"]) == digest


STEPS = ({"share": 0.1, "minutes": 0.0}, {"share": 0.5, "minutes": 0.0})


@pytest.fixture
def careful(settings: Settings) -> Settings:
    """The same data folder, with a canary before a promotion."""
    serving = Settings(serving={"canary": STEPS, "shares": {"static": 0.1}}).serving
    gate = settings.gate.model_copy(update={"evidence": "canary"})
    return settings.model_copy(update={"serving": serving, "gate": gate})


def test_with_a_canary_the_daily_loop_makes_a_challenger_and_the_registry_follows_later(
    settings: Settings, careful: Settings, arrange: Arrange
) -> None:
    run_day(settings, arrange, DAYS[0], 1)
    arrange(DAYS[1], seed=2, champion=1.0)
    decision = gate(careful, DAYS[1])
    record = promote(careful, DAYS[1], decision)
    assert (record["promoted"], record["version"]) == (False, "p1") and "canary" in record["reason"]
    assert promote(careful, DAYS[1], decision) == record  # a rerun does not begin it again
    assert read_pointer(careful.layout.champion).version == "p1"
    assert read_pointer(careful.layout.challenger).version == "p2"
    assert registry.alias_version(careful, registry.CHALLENGER) == "2"
    # the service ends the canary
    with in_service.changing(careful) as row:
        done = rollout.complete_canary(row, "it brings more", {"by": "canary", "lower": 0.1})
    assert (done.version, done.previous["version"]) == ("p2", "p1")
    assert not careful.layout.challenger.exists() and champion_policy(careful).version == "p2"
    assert [e["action"] for e in history(careful)] == ["promote", "promote"]
    assert registry.alias_version(careful, registry.CHAMPION) == "1"
    assert promote(careful, DAYS[1], decision)["promoted"]
    assert registry.alias_version(careful, registry.CHAMPION) == "2"
    assert rollback(careful)["version"] == "p1"


def test_a_policy_waits_while_another_is_in_its_canary_and_does_not_come_again_after_its_own(
    settings: Settings, careful: Settings, arrange: Arrange
) -> None:
    run_day(settings, arrange, DAYS[0], 1)
    for day, seed in ((DAYS[1], 2), (DAYS[2], 3)):  # nobody was served by p2 yet: p3 is tried in its place
        arrange(day, seed=seed, champion=1.0)
        promote(careful, day, gate(careful, day))
    assert read_pointer(careful.layout.challenger).version == "p3"
    careful.layout.canary.write_text("{}")  # the service has begun
    arrange(DAYS[3], seed=4, champion=1.0)
    record = promote(careful, DAYS[3], gate(careful, DAYS[3]))
    assert not record["promoted"] and "policy p3 is in its canary, and decides first" in record["reason"]
    with in_service.changing(careful) as row:
        rollout.end_canary(row, "no gain shown")
    assert not careful.layout.challenger.exists() and champion_policy(careful).version == "p1"
    again = promote(careful, DAYS[2], gate(careful, DAYS[2]))
    assert not again["promoted"] and "ended its canary" in again["reason"]
    assert [e["action"] for e in history(careful)] == ["promote"]


def test_a_rollback_during_a_canary_takes_the_challenger_out_for_good(
    settings: Settings, careful: Settings, arrange: Arrange
) -> None:
    run_day(settings, arrange, DAYS[0], 1)
    arrange(DAYS[1], seed=2, champion=1.0)
    promote(careful, DAYS[1], gate(careful, DAYS[1]))
    record = rollback(careful, "it looks odd")
    assert (record["version"], record["from_version"]) == ("p1", "p2")
    assert not careful.layout.challenger.exists() and champion_policy(careful).version == "p1"
    again = promote(careful, DAYS[1], gate(careful, DAYS[1]))
    assert not again["promoted"] and "it looks odd" in again["reason"]


def test_the_champion_of_some_days_ago_is_replayed_or_the_oldest_known(
    settings: Settings, arrange: Arrange
) -> None:
    assert champions_to_replay(settings, DAYS[0]) == {}
    for number, day in enumerate(DAYS):
        run_day(settings, arrange, day, number + 1, lower=1.2 + number)

    def replayed(day: date, days: int) -> list[str]:
        how = settings.model_copy(
            update={"evaluation": settings.evaluation.model_copy(update={"steadiness_days": days})}
        )
        return [policy.version for policy in champions_to_replay(how, day).values()]

    after = DAYS[-1] + timedelta(days=1)
    assert replayed(after, 7) == ["p1", "p4"]  # none is a week old
    assert replayed(after, 3) == ["p2", "p4"]
    assert replayed(after, 1) == ["p4"]
    assert replayed(DAYS[-1], 2) == ["p2", "p3"]
    assert replayed(after + timedelta(days=30), 7) == ["p4"]  # it was the champion a week ago, too
    (settings.data / champion_before(settings, after).policy).unlink()
    assert replayed(after, 7) == ["p1"]
