"""Retention: old things go, what a policy, a window, a band or a history needs stays; a kill does no harm."""

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow.entities import ViewType

from tests.training.ingest.conftest import MIDNIGHT, SHANGHAI, impressions
from training.contract import in_service
from training.contract.errors import MtfError
from training.contract.files import leftovers, read_json, write_json_atomic, write_text_atomic
from training.contract.layout import IMPRESSIONS
from training.contract.pointer import PolicyPointer, write_pointer
from training.contract.policy import PolicyHeader, save_policy
from training.contract.records import read_record, write_record
from training.contract.rollout import following
from training.contract.settings import Settings
from training.features import EMPTY_DAY
from training.ingest import changed_days, land, landed
from training.operations import retention
from training.promotion import registry

FIRST = date(2026, 1, 5)
DAYS = [FIRST + timedelta(days=n) for n in range(20)]


def small(data: Path, **keep: int) -> Settings:
    limits = {"lake_days": 5, "warehouse_days": 5, "models_days": 5, "reports_days": 5, "serving_policies": 0}
    return Settings(
        data=data,
        calendar=SHANGHAI,
        state={"history_length": 4, "profile": []},
        learner={"window_days": 2},
        orchestration={"reopen_days": 0},
        validation={"recent_days": 3},
        retention=limits | keep,
    )


def land_day(settings: Settings, day: date, users: dict[int, int]) -> None:
    """``users``: impressions of each."""
    at = MIDNIGHT + (day - FIRST)
    rows = [
        {"request_id": f"{day}-{user}", "user_id": user, "item_id": n, "event_ts": at}
        for user, count in users.items()
        for n in range(count)
    ]
    land(settings, IMPRESSIONS, day, impressions(rows, settings), "test")


def policy(settings: Settings, day: date, partitions: list[date], promoted: bool = True) -> PolicyPointer:
    lineage = {"partitions": {str(one): {"rows": 1} for one in partitions}}
    header = PolicyHeader("constant", f"p-{day}", settings.state_spec, settings.fusion, lineage=lineage)
    path = settings.layout.model(day) / "policy.safetensors"
    digest = save_policy(path, header, {"action": settings.fusion.static_action})
    kept = settings.layout.serving / "policies" / f"{digest}.safetensors"
    if promoted:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(path.read_bytes())
    write_text_atomic(
        settings.layout.bentos / "bentos/mtf_rank" / f"{digest[:12]}-{'0' * 12}/bento.yaml", "x"
    )
    write_record(settings.layout, day, "evaluate", {"sha256": digest, "version": header.version})
    where = kept.relative_to(settings.data).as_posix()
    return PolicyPointer(where, digest, header.version, str(day), "", "")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Twenty days of two busy users; a third was seen on the fourth day alone."""
    settings = small(tmp_path / "data")
    for n, day in enumerate(DAYS):
        land_day(settings, day, {1: 4, 2: 4} | ({3: 2} if n == 3 else {}))
        write_record(settings.layout, day, "land", landed(settings, day))
        write_text_atomic(settings.layout.reports / f"dt={day}/index.html", "x")
    for mart in ("fct_transitions", "fct_user_history", "dim_users"):
        for day in (EMPTY_DAY, *DAYS):
            write_text_atomic(settings.layout.mart(mart) / f"dt={day}" / "part-0.parquet", "x")
    return settings


def going(settings: Settings, kind: str) -> list[date]:
    return sorted({item.day for item in retention.plan(settings).items if item.kind == kind})


def test_old_days_go_and_the_history_of_a_user_holds_his(settings: Settings) -> None:
    planned = retention.plan(settings)
    assert going(settings, "lake") == [d for d in DAYS[:15] if d not in (DAYS[3], DAYS[14])]
    assert "histories" in planned.held[DAYS[3]] and "histories" in planned.held[DAYS[14]]
    assert all("window or bands" in planned.held[day] for day in DAYS[-4:])
    assert EMPTY_DAY not in {item.day for item in planned.items}
    assert {item.name for item in planned.items if item.kind == "warehouse"} == {
        "fct_transitions",
        "fct_user_history",
    }  # a profile holds until the next one
    assert all(item.bytes > 0 for item in planned.items)


def test_what_killed_writers_left_goes_when_no_living_one_can_be_that_old(settings: Settings) -> None:
    """Killed for real, in the middle of a write; a temporary of now may be somebody's."""
    target = settings.layout.run(DAYS[-1]) / "land.json"
    code = (
        "import os, signal, sys; from pathlib import Path; from training.contract.files import *\n"
        "with replaced_folder(Path(sys.argv[1]).parent / 'dt=x') as fresh:\n"
        "    (fresh / 'part').touch()\n"
        "    write_atomic(Path(sys.argv[1]), lambda temporary: os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == -9
    left = leftovers(settings.data, timedelta())
    assert [path.suffix for path in left] == [".new", ".tmp"]
    live = target.with_name(".land.json.abcd1234.tmp")
    live.touch()
    assert "temporary" not in {item.kind for item in retention.plan(settings).items}
    for path in (*left, left[0] / "part"):
        os.utime(path, (0, 0))
    retention.keep(settings, retention.plan(settings))
    assert leftovers(settings.data, timedelta()) == [live]
    assert read_record(settings.layout, DAYS[-1], "land") is not None


def test_a_user_not_seen_for_long_holds_nothing(settings: Settings) -> None:
    limited = settings.model_copy(
        update={"retention": settings.retention.model_copy(update={"history_days": 10})}
    )
    assert DAYS[3] in going(limited, "lake")


def test_what_was_planned_goes_and_nothing_else(settings: Settings) -> None:
    transformed = settings.layout.warehouse.parent / "transformed.json"
    write_json_atomic(transformed, {"variables": {}, "days": {str(d): {IMPRESSIONS: "x"} for d in DAYS}})
    with duckdb.connect(str(settings.layout.warehouse)) as connection:
        connection.execute("create table fct_transitions as select unnest(?::date[]) as dt", [DAYS])
    land_day(settings, DAYS[0], {1: 4, 2: 5})  # late rows: it waits for its rerun
    assert changed_days(settings) == [DAYS[0]]
    gone = going(settings, "lake")
    assert DAYS[0] not in gone and DAYS[1] in gone
    retention.keep(settings, retention.plan(settings))
    left = [day for day in DAYS if day not in gone]
    assert settings.layout.days(IMPRESSIONS) == left
    assert sorted(read_json(transformed)["days"]) == [str(day) for day in left]
    with duckdb.connect(str(settings.layout.warehouse)) as connection:
        rows = connection.execute("select dt from fct_transitions order by dt").fetchall()
    assert [row[0] for row in rows] == left
    assert [read_record(settings.layout, day, "land") is None for day in DAYS] == [d in gone for d in DAYS]
    assert retention.plan(settings).items == []


def test_what_serves_and_what_a_rollback_needs_stays(settings: Settings) -> None:
    old = policy(settings, DAYS[2], [DAYS[1], DAYS[2]])
    lost = policy(settings, DAYS[5], [DAYS[4], DAYS[5]])
    other = policy(settings, DAYS[6], [DAYS[6]], promoted=False)
    new = policy(settings, DAYS[8], [DAYS[7], DAYS[8]])
    with in_service.changing(settings) as row:
        row.append({"action": "promote", "sha256": lost.sha256, "reason": ""})
    write_pointer(settings.layout.champion, following(new, following(old, None)))
    planned = retention.plan(settings)
    held = {DAYS[1], DAYS[2], DAYS[7], DAYS[8]}
    assert held <= set(planned.held) and not held & {item.day for item in planned.items}
    assert going(settings, "model") == [DAYS[5], DAYS[6]]
    retention.keep(settings, planned)
    for pointer in (old, new):
        assert (settings.data / pointer.policy).exists()
        assert settings.layout.partition(IMPRESSIONS, date.fromisoformat(pointer.day)).is_dir()
        assert (settings.layout.model(date.fromisoformat(pointer.day)) / "policy.safetensors").exists()
    bentos = {path.name[:12] for path in (settings.layout.bentos / "bentos/mtf_rank").iterdir()}
    assert bentos == {old.sha256[:12], new.sha256[:12]}
    assert not (settings.data / lost.policy).exists() and other.sha256[:12] not in bentos


def test_promoted_policies_beyond_the_pointers_are_counted(settings: Settings) -> None:
    many = [policy(settings, day, []) for day in DAYS[-4:]]
    for one in many:
        with in_service.changing(settings) as row:
            row.append({"action": "promote", "sha256": one.sha256, "reason": ""})
    write_pointer(settings.layout.champion, many[0])  # the oldest is back after a rollback
    limited = settings.model_copy(
        update={"retention": settings.retention.model_copy(update={"serving_policies": 1})}
    )
    names = [item.name for item in retention.plan(limited).items if item.kind == "policy"]
    assert names == [f"{one.sha256}.safetensors" for one in many[1:3]]


def test_a_broken_policy_that_may_serve_stops_all_deleting(settings: Settings) -> None:
    pointer = policy(settings, DAYS[2], [])
    write_pointer(settings.layout.champion, pointer)
    (settings.data / pointer.policy).write_bytes(b"x")
    with pytest.raises(MtfError, match="nothing is deleted while a policy that may serve is broken"):
        retention.plan(settings)


def test_log_files_stay_while_a_landed_day_may_be_landed_from_them(settings: Settings) -> None:
    for day in DAYS:
        write_text_atomic(settings.layout.serving_log / "feedback" / f"{day}.w1.000000.jsonl", "{}")
        write_text_atomic(settings.layout.shipped / "a" / f"{day}.json", "{}")
    items = [item for item in retention.plan(settings).items if item.kind == "log"]
    lying = {day + timedelta(days=late) for day in (DAYS[3], *DAYS[14:]) for late in range(3)}
    files = {item.day for item in items if item.name.startswith("feedback")}
    manifests = {item.day for item in items if item.name == "manifest of a"}
    assert files == manifests == {day for day in DAYS[:15] if day not in lying}


def test_killed_half_way_it_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = retention.plan(settings)
    removed = 0

    def dying(path: Path, *arguments: Any, **options: Any) -> None:
        nonlocal removed
        removed += 1
        if removed == 4:
            raise KeyboardInterrupt
        original(path, *arguments, **options)

    original = retention.shutil.rmtree
    monkeypatch.setattr(retention.shutil, "rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        retention.keep(settings, planned)
    monkeypatch.undo()
    assert all(
        (settings.layout.partition(IMPRESSIONS, d) / "_landed.json").exists()
        for d in settings.layout.days(IMPRESSIONS)
    )
    retention.keep(settings, retention.plan(settings))
    assert retention.plan(settings).items == []
    assert not list(settings.data.rglob(f"*{retention._GONE}"))


def test_an_empty_folder_has_nothing_to_delete(tmp_path: Path) -> None:
    assert retention.plan(Settings(data=tmp_path)).items == []


@given(
    ages=st.sets(st.integers(0, 40)),
    keep=st.integers(1, 30),
    held=st.sets(st.integers(0, 40)),
)
def test_exactly_the_old_days_that_nothing_holds_expire(ages: set[int], keep: int, held: set[int]) -> None:
    newest = date(2026, 3, 1)
    days, holding = ({newest - timedelta(days=n) for n in some} for some in (ages, held))
    gone = retention.expired(days, newest, keep, holding)
    assert gone == sorted(newest - timedelta(days=n) for n in ages - held if n >= keep)
    assert retention.expired(days - set(gone), newest, keep, holding) == []


SEEN = st.lists(st.dictionaries(st.integers(1, 4), st.integers(1, 3), min_size=1), min_size=8, max_size=12)


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seen=SEEN)
def test_no_users_history_loses_an_impression(
    tmp_path_factory: pytest.TempPathFactory, seen: list[dict[int, int]]
) -> None:
    settings = small(tmp_path_factory.mktemp("lake"), lake_days=2)
    days = DAYS[: len(seen)]
    for day, users in zip(days, seen, strict=True):
        land_day(settings, day, users)

    def histories() -> dict[tuple[int, date], list[date]]:
        """The days of each user's last impressions before each of the last days."""
        shown: dict[int, list[date]] = defaultdict(list)
        for day in settings.layout.days(IMPRESSIONS):
            rows = pq.ParquetFile(settings.layout.partition(IMPRESSIONS, day) / "part-0.parquet").read()
            for user in rows["user_id"].to_pylist():
                shown[user].append(day)
        length = settings.state.history_length
        return {
            (user, end): [d for d in all_days if d < end][-length:]
            for user, all_days in shown.items()
            for end in (*days[-2:], days[-1] + timedelta(days=1))
        }

    before = histories()
    retention.keep(settings, retention.plan(settings))
    assert histories() == before


def test_runs_of_deleted_models_leave_the_registry_and_named_versions_stay(
    settings: Settings, empty_registry: Path
) -> None:
    settings.layout.mlflow.mkdir()
    shutil.copyfile(empty_registry, settings.layout.mlflow / "mlflow.db")
    old, new = policy(settings, DAYS[5], []), policy(settings, DAYS[6], [])
    estimates = {"estimates": {"challenger": {"lower": 0.0, "value": 1.0, "upper": 2.0}}}
    for pointer in (old, new):
        judged = {**estimates, "chosen": "constant", "sha256": pointer.sha256, "version": pointer.version}
        judged["policy"] = pointer.policy
        trained = {"pool": {"constant": {"curves": {}}}}
        version = registry.register(settings, date.fromisoformat(pointer.day), trained, judged)
    registry.set_alias(settings, registry.CHAMPION, version)
    client, artifacts = registry._client(settings), settings.layout.artifacts
    experiment = client.get_experiment_by_name(registry.EXPERIMENT).experiment_id
    assert len(list(artifacts.glob("*"))) == 2
    retention.keep(settings, retention.plan(settings))
    (run,) = client.search_runs([experiment], run_view_type=ViewType.ALL)  # none is only marked as deleted
    assert list(artifacts.iterdir()) == [artifacts / run.info.run_id]
    assert run.data.tags["mtf.sha256"] == new.sha256
    assert registry.alias_version(settings, registry.CHAMPION) == version
