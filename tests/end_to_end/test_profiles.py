"""The scale profile's real servers, with passwords: PostgreSQL under Feast, MLflow and Airflow, and Redis."""

from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import yaml
from rich.console import Console

from dags.command_line import stack
from dags.command_line.world import fit_world, prepare_past, simulate_day
from serving.release.bento import free_port
from serving.state.missing import StoreError
from serving.state.online_state import OnlineState
from serving.state.questions import Feedback, StateRequest
from tests.end_to_end.conftest import LOOP, settings_of
from tests.end_to_end.scaled import PASSWORD, database, ended, scale_servers, sections
from tests.servers import files_with
from training import features
from training.contract import databases
from training.contract.errors import SettingsError
from training.contract.records import read_records
from training.contract.settings import PostgresSettings, Settings, StoreSettings, load_settings
from training.contract.state import history_columns
from training.promotion import registry

DAY = date(2026, 1, 5)


@pytest.fixture(scope="module")
def servers():
    with scale_servers() as ports:
        yield ports


@pytest.fixture
def settings(tmp_path, servers):
    own = sections(servers)
    return Settings(
        data=tmp_path / "data",
        postgres=PostgresSettings(**own["postgres"]),
        store=StoreSettings(**own["store"]),
    )


def test_feast_keeps_its_registry_in_postgres_and_its_rows_in_redis(settings, servers):
    names = history_columns(settings.signal_names)
    midnight = settings.day_start(DAY + timedelta(days=1))
    rows = {"user_id": [1], "event_timestamp": [midnight], **{name: [0.5] for name in names}}
    path = settings.layout.mart("fct_user_history") / f"dt={DAY}" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table(rows | {"hist_last_ts": [midnight]})
    pq.write_table(table.cast(pa.schema([f.with_type(_micros(f.type)) for f in table.schema])), path)
    features.apply(settings)
    features.materialise(settings, DAY)
    noon = midnight + timedelta(hours=12)
    state = OnlineState(settings)
    entry = settings.state_spec.entry_names.index("hist_like_rate")
    (served,) = state.read([StateRequest(1, "s", noon)])
    assert served[entry] == 0.5
    state.feedback([Feedback(1, "s", "r", noon, [{"is_click": 1, "play_time_ms": 5}])])
    (moved,) = state.read([StateRequest(1, "s", noon + timedelta(seconds=5))])
    assert (moved != served).any()
    assert features.materialise(settings, DAY + timedelta(days=1))["views"]["user_history"]["users"] == 0
    with database(servers, "feast") as connection:
        (views,) = connection.execute("SELECT count(*) FROM feature_views").fetchone()
    assert views == 3 and not (settings.layout.feast / "registry.db").exists()
    assert redis.Redis(port=servers[1], password=PASSWORD).dbsize() == 1
    assert files_with(settings.data, PASSWORD) == []


def _micros(kind):
    return pa.timestamp("us", "UTC") if pa.types.is_timestamp(kind) else kind


def test_a_missing_or_unfit_password_is_named(settings, monkeypatch):
    monkeypatch.setenv(databases.REDIS_PASSWORD, "a,b")
    with pytest.raises(SettingsError, match=f"{databases.REDIS_PASSWORD} may hold"):
        features.apply(settings)
    monkeypatch.delenv(databases.REDIS_PASSWORD)
    with pytest.raises(SettingsError, match=f"{databases.REDIS_PASSWORD} is not set"):
        features.apply(settings)
    monkeypatch.setenv(databases.REDIS_PASSWORD, PASSWORD)
    features.apply(settings)
    monkeypatch.delenv(databases.REDIS_PASSWORD)
    with pytest.raises(StoreError, match="variable that is not set"):
        OnlineState(settings).read([StateRequest(1, "s", datetime.now(UTC))])


@pytest.mark.slow  # MLflow's migrations
def test_mlflow_keeps_its_runs_and_aliases_in_postgres(settings, servers):
    policy = settings.layout.model(DAY) / "policy.safetensors"
    policy.parent.mkdir(parents=True)
    policy.write_bytes(b"a policy")
    trained = {"lineage": {"code": "abc"}, "pool": {"constant": {"curves": {}}}}
    judged = {"estimates": {}, "chosen": "constant", "sha256": "0" * 64, "version": "p1"}
    judged["policy"] = policy.relative_to(settings.layout.root).as_posix()
    version = registry.register(settings, DAY, trained, judged)
    registry.set_alias(settings, registry.CHAMPION, version)
    assert registry.alias_version(settings, registry.CHAMPION) == version
    with database(servers, "mlflow") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert not list(settings.data.rglob("mlflow.db"))
    assert files_with(settings.data, PASSWORD) == []


@pytest.mark.slow  # two minutes: Airflow's migrations and processes, and a day through them
def test_a_day_through_airflow_on_postgres(servers, tmp_path_factory, monkeypatch):
    """``airflow standalone`` with LocalExecutor, as `mtf up` starts it, walks a day of real traffic."""
    folder = tmp_path_factory.mktemp("profile")
    file = folder / "mtf.yaml"
    values = settings_of(folder, free_port()) | sections(servers)
    values["orchestration"] |= {"airflow_port": free_port(), "mlflow_port": free_port()}
    file.write_text(yaml.safe_dump(values))
    monkeypatch.setenv("MTF_SETTINGS", str(file))
    settings, real = fit_world(load_settings(file), Console(quiet=True))
    running = [s for s in stack.services(settings, file) if s.name in ("service", "airflow")]
    day = date.fromisoformat(settings.world.start_day)
    try:
        for service in running:
            stack.start(settings, service)
        prepare_past(settings, real, Console(quiet=True))
        for service in running:
            stack.wait_ready(settings, service, timeout=300)
        assert simulate_day(settings, day)["failures"] == 0
        airflow = stack.Airflow(settings)
        airflow.ensure_pool()
        airflow.wait_for_dags(list(LOOP))
        airflow.trigger("mtf_ingest", day.isoformat())
        states = ended(airflow, day)
    finally:
        for service in running:
            stack.stop(settings, service.name)
    assert states == dict.fromkeys(LOOP, "success")
    records = read_records(settings.layout, day)
    assert records["gate"]["decision"] in ("promote", "refuse") and records["parity"]["mismatched"] == 0
    with database(servers, "airflow") as connection:
        found = connection.execute("SELECT dag_id, state FROM dag_run WHERE partition_key IS NOT NULL")
        assert {(dag, "success") for dag in LOOP} <= set(found.fetchall())
    assert not list(settings.data.rglob("airflow.db")) + list(settings.data.rglob("mlflow.db"))
    assert files_with(settings.data, PASSWORD) == []
