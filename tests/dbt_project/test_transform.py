"""The daily run: what it replaces, what it refuses, what it leaves alone."""

import hashlib
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.dbt_project.conftest import DAYS, Lake, Warehouse, export, schema
from training.contract.columns import decision_columns, impression_columns, user_columns
from training.contract.errors import DataError
from training.contract.files import read_json
from training.contract.log import DECISION
from training.contract.settings import (
    CalendarSettings,
    HeadSettings,
    ProfileFeature,
    SessionSettings,
    Settings,
    SignalSettings,
    StateSettings,
)
from training.contract.transitions import MART, TRANSITION
from training.warehouse import transform
from training.warehouse.days import transformed

SOURCE = Path(transform.__file__).parents[2] / "dbt_project"
LAKE_TYPES = {
    "string": "string",
    "int8": "tinyint",
    "int32": "int",
    "int64": "bigint",
    "float": "float",
    "double": "double",
    "list<float>": "float[]",
    "timestamp[us, UTC]": "timestamptz",
}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_committed_project_is_that_of_the_default_settings(tmp_path: Path) -> None:
    variables = yaml.safe_load((SOURCE / "dbt_project.yml").read_text())["vars"]
    assert variables.pop("landed") == ["impressions", "decisions", "users"]
    assert variables.pop("decision_columns") == [{"name": c.name, "type": c.type} for c in DECISION]
    assert variables == transform._model_variables(Settings(data=tmp_path))


def test_the_hard_end_of_a_session_is_the_platforms_and_the_worlds_where_there_is_one(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, session=SessionSettings(max_requests=50))
    assert transform._model_variables(settings)["session_max_requests"] == 50
    settings.layout.world.mkdir()
    assert transform._model_variables(settings)["session_max_requests"] == settings.world.max_requests


def manifest(settings: Settings) -> dict:
    return read_json(settings.layout.dbt_target / "manifest.json")


def models(settings: Settings) -> dict[str, dict]:
    nodes = manifest(settings)["nodes"].values()
    return {node["name"]: node for node in nodes if node["resource_type"] == "model"}


def test_all_that_is_said_of_a_model_lies_beside_it(warehouse: Warehouse) -> None:
    everything = manifest(warehouse.daily)
    for name, node in models(warehouse.daily).items():
        yml = node["original_file_path"].removesuffix(".sql") + ".yml"
        assert node["patch_path"] == f"mtf://{yml}", name
        tests = [t for t in everything["nodes"].values() if t.get("attached_node") == node["unique_id"]]
        tests += [t for t in everything["unit_tests"].values() if t["model"] == name]
        assert {test["original_file_path"] for test in tests} == {yml}, name


def lake_as_declared(settings: Settings) -> dict[str, list[tuple]]:
    """Of each table in the lake: name, type, description and whether it is required, as dbt was told."""
    sources = manifest(settings)["sources"].values()
    return {
        source["name"]: [
            (column["name"], column["data_type"], column["description"], column["config"]["meta"])
            for column in source["columns"].values()
        ]
        for source in sources
    }


def lake_as_written(settings: Settings) -> dict[str, list[tuple]]:
    """The same as the contract tells the lake's writers."""
    columns = {
        "impressions": impression_columns(settings),
        "decisions": decision_columns(),
        "users": user_columns(settings),
    }
    return {
        table: [(c.name, LAKE_TYPES[c.type], c.description, {"required": c.required}) for c in of_table]
        + [("dt", "date", "local day of its partition", {})]
        for table, of_table in columns.items()
    }


def test_the_lake_is_declared_as_it_is_written(warehouse: Warehouse) -> None:
    assert lake_as_declared(warehouse.daily) == lake_as_written(warehouse.daily)


def test_columns_that_the_settings_make_are_declared_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that are words of YAML and SQL; `--warn-error` makes an error of all that dbt deprecates."""
    settings = Settings(
        data=tmp_path / "data",
        heads=(HeadSettings(name="share", static=0.2),),
        signals=(SignalSettings(name="share", column="yes", weight=0.8),),
        state=StateSettings(
            profile=(
                ProfileFeature(column="null", kind="flag"),
                ProfileFeature(column="age_group", kind="categorical", categories=("young", "old")),
            )
        ),
    )
    parse = ["parse", "--no-partial-parse", "--warn-error"]
    transform._dbt(settings, parse)
    assert lake_as_declared(settings) == lake_as_written(settings)
    columns = {name: node["columns"] for name, node in models(settings).items()}
    assert {"signal_share", "p_share"} <= columns["stg_impressions"].keys()
    assert "share_count" in columns["int_requests"]
    for model, column, data_type in (
        ("fct_user_history", "hist_share_rate", "double"),
        ("fct_session_state", "sess_share_count", "bigint"),
        ("fct_session_state", "last_share_count", "bigint"),
        ("fct_user_days", "share_count", "bigint"),
    ):
        found = columns[model][column]
        assert (found["data_type"], [c["type"] for c in found["constraints"]]) == (data_type, ["not_null"])
    for model in ("dim_users", "dim_user_versions"):
        assert (columns[model]["null"]["data_type"], columns[model]["null"]["quote"]) == ("bigint", True)
        assert columns[model]["age_group"]["data_type"] == "string"
    assert not any("click" in name or "fans_user_num" in name for found in columns.values() for name in found)

    project = tmp_path / "dbt_project"
    shutil.copytree(SOURCE, project, ignore=shutil.ignore_patterns("target", "logs"))
    described = project / "models/marts/dim_users.yml"
    described.write_text(
        described.read_text().replace("arguments: {columns: [user_id, dt]}", "columns: [dt]")
    )
    monkeypatch.setattr(transform, "PROJECT", project)
    with pytest.raises(RuntimeError, match="Found top-level arguments to test"):
        transform._dbt(settings, parse)


def test_grain_and_every_column_of_every_model_and_source_are_described(warehouse: Warehouse) -> None:
    """Held against the warehouse's own columns, so that one that no file names is found too."""
    with duckdb.connect(str(warehouse.daily.layout.warehouse), read_only=True) as connection:
        rows = connection.sql("select table_name, column_name from information_schema.columns").fetchall()
    columns = defaultdict(set)
    for table, column in rows:
        columns[table].add(column)
    tables = models(warehouse.daily)
    assert columns.keys() == tables.keys()
    for name, node in tables.items():
        assert node["description"].startswith("One row per"), name
        assert node["columns"].keys() == columns[name], name
    sources = {f"source {s['name']}": s for s in manifest(warehouse.daily)["sources"].values()}
    for name, node in {**tables, **sources}.items():
        assert node["description"].startswith("One row per"), name
        undescribed = [c["name"] for c in node["columns"].values() if not c["description"]]
        assert undescribed == [], name


def test_the_contracts_columns_are_those_of_staging_and_of_the_transitions(warehouse: Warehouse) -> None:
    """The mart by its export and by the contract that dbt enforces."""
    with duckdb.connect(str(warehouse.daily.layout.warehouse), read_only=True) as connection:
        connection.execute("set TimeZone = 'UTC'")
        staged = connection.sql("select * from stg_decisions").to_arrow_table().schema
    declared = schema(list(DECISION))
    names = ["served_session_id" if name == "session_id" else name for name in declared.names]
    assert (staged.names, staged.types) == ([*names, "dt"], [*declared.types, pa.date32()])
    path = warehouse.daily.layout.mart(MART) / f"dt={DAYS[0]}" / "part-0.parquet"
    exported, transition = pq.read_schema(path), schema(list(TRANSITION))
    assert (exported.names, exported.types) == (transition.names, transition.types)
    types = {"int32": "int", "int64": "bigint", "bool": "boolean", "list<float>": "float[]"}
    types["timestamp[us, UTC]"] = "timestamptz"
    enforced = models(warehouse.daily)[MART]["columns"].values()
    assert [(c["name"], c["data_type"]) for c in enforced] == [
        (column.name, types.get(column.type, column.type)) for column in TRANSITION
    ]
    required = {column.name for column in TRANSITION if column.required}
    assert {c["name"] for c in enforced if c["constraints"]} <= required


def test_every_model_has_a_tested_key_marts_a_contract_and_a_reader(warehouse: Warehouse) -> None:
    everything = manifest(warehouse.daily)
    tests = defaultdict(set)
    for node in everything["nodes"].values():
        if node["resource_type"] == "test" and node.get("attached_node"):
            tests[node["attached_node"].split(".")[2]].add(node["test_metadata"]["name"])
    unit_tested = {test["model"] for test in everything["unit_tests"].values()}
    read = {node for exposure in everything["exposures"].values() for node in exposure["depends_on"]["nodes"]}
    for name, node in models(warehouse.daily).items():
        assert "primary_key" in tests[name], name
        if name not in ("stg_decisions", "stg_users"):  # these only rename
            assert name in unit_tested, name
        if name.startswith(("fct_", "dim_")):
            assert node["config"]["contract"]["enforced"], name
            assert "part_of" in tests[name], name
            assert node["unique_id"] in read, name
    for source in everything["sources"].values():
        assert source["name"] == "users" or source["freshness"]["error_after"]["count"]


def test_models_hold_no_dialect() -> None:
    for path in SOURCE.rglob("models/**/*.sql"):
        sql = path.read_text().lower()
        for word in (
            "::",
            "epoch(",
            "epoch_",
            "read_parquet",
            "interval",
            "qualify",
            "filter (",
            "[]",
            "timestamptz",
        ):
            assert word not in sql, f"{path.name}: {word}"


def test_a_rerun_of_an_earlier_day_gives_the_same_bytes(warehouse: Warehouse) -> None:
    settings = warehouse.daily
    source, before = digests(SOURCE), digests(settings.layout.marts)
    record = transform.run(settings, DAYS[1])
    assert record["reprocessed_days"] == [str(d) for d in DAYS[:2]]
    assert digests(settings.layout.marts) == before
    assert digests(SOURCE) == source
    assert record["tests"] == {"passed": record["tests"]["passed"], "failed": 0, "warned": 0}
    assert record["tests"]["passed"] >= 15
    transitions = record["models"]["fct_transitions"]
    assert transitions == {"status": "success", "rows": len(export(settings, "fct_transitions"))}
    assert record["exported"]["fct_transitions"]["days"] == [str(d) for d in DAYS[:2]]


def test_unit_tests_of_the_arithmetic(warehouse: Warehouse) -> None:
    results = transform._dbt(warehouse.daily, ["test", "--select", "test_type:unit"])
    found = {r["unique_id"]: r["status"] for r in results if r["unique_id"].startswith("unit_test.")}
    assert found == dict.fromkeys(manifest(warehouse.daily)["unit_tests"], "pass")


def test_a_log_without_decisions_and_users_of_other_signals(tmp_path: Path) -> None:
    """As KuaiRand's: no session ids, no time of feedback; a day off UTC, own signals, own profile."""
    settings = Settings(
        data=tmp_path / "it's data",
        signals=(SignalSettings(name="order", column="group", weight=2.0, positive_interaction=True),),
        state=StateSettings(profile=(ProfileFeature(column="select", kind="numeric"),)),
        calendar=CalendarSettings(timezone="America/New_York"),
        session=SessionSettings(gap_minutes=10.5),
    )
    lake = Lake(settings)
    for request_id, local in (("a", "T23:55:00"), ("b", "T23:58:00")):
        items = [{"group": 1, "play_time_ms": 5000, "duration_ms": 0}]
        lake.request(request_id, 1, f"2026-01-05{local}", None, items, None, decision=False)
    lake.request("c", 1, "2026-01-06T00:05:00", None, [{}], None, decision=False)
    days = [date(2026, 1, 5), date(2026, 1, 6)]
    lake.land(*days)
    record = transform.run(settings, days[1])
    assert record["exported"]["fct_transitions"] == {"days": [], "rows": 0}
    assert record["exported"]["dim_users"] == {"days": [], "rows": 0}

    *_, last = export(settings, "fct_session_state")
    assert (last["sess_requests"], last["sess_order_count"], last["sess_play_s"]) == (3, 2, 10.0)
    assert last["event_timestamp"] == datetime(2026, 1, 6, 5, 5, tzinfo=UTC)
    first, second = export(settings, "fct_user_history")
    assert (first["hist_order_rate"], second["hist_order_rate"]) == (1.0, pytest.approx(2 / 3))
    assert first["event_timestamp"] == datetime(2026, 1, 6, 5, 0, tzinfo=UTC)
    (daily, _) = export(settings, "fct_policy_daily")
    assert (daily["arm"], daily["sessions"], daily["session_length_mean"]) == ("unknown", 1, 3.0)
    assert daily["session_return_mean"] == pytest.approx(2 * (2.0 + 0.02 * 5))
    assert (daily["upirate"], daily["return_rate"]) == (1.0, 1.0)

    with pytest.raises(DataError, match=r"no impressions of 2026-01-07 are landed: .*dt=2026-01-07"):
        transform.run(settings, date(2026, 1, 7))


def test_days_of_23_and_25_hours_end_at_their_midnight(tmp_path: Path) -> None:
    """In Berlin clocks go back on 2026-10-25, and a row of its 25th hour is of that day."""
    settings = Settings(data=tmp_path, calendar=CalendarSettings(timezone="Europe/Berlin"))
    days = [date(2026, 10, 24), date(2026, 10, 25), date(2026, 10, 26)]
    lake = Lake(settings)
    for day in days:
        for clock in ("00:00:00", "23:59:59"):
            lake.request(f"{day} {clock}", 1, f"{day}T{clock}", f"{day} {clock}")
    lake.land(*days)
    for day in days:
        transform.run(settings, day)
    rows = {row["dt"]: row for row in export(settings, "fct_user_history")}
    ends = {day: datetime(2026, 10, day.day, 22 + (day.day > 24), tzinfo=UTC) for day in days}
    assert {day: row["event_timestamp"] for day, row in rows.items()} == ends
    assert {row["hist_last_ts"] for row in rows.values()} == {
        end - timedelta(seconds=1) for end in ends.values()
    }
    requests = {row["request_id"]: row["dt"] for row in export(settings, "fct_transitions")}
    assert all(request.startswith(str(day)) for request, day in requests.items())


def test_bad_rows_stop_the_run_and_leave_the_exports(warehouse: Warehouse) -> None:
    """Uses the other warehouse up: the day with the duplicate is not exported, and is to be made again."""
    settings = warehouse.at_once
    before = digests(settings.layout.marts)
    lake = Lake(settings, {key: list(rows) for key, rows in warehouse.lake.rows.items()})
    lake.rows["decisions", DAYS[2]].append(lake.rows["decisions", DAYS[2]][0])
    lake.land(DAYS[2])
    done = transformed(settings)
    with pytest.raises(DataError, match=r"primary_key_stg_decisions_request_id: Got 1 result") as error:
        transform.run(settings, DAYS[2])
    repeated = lake.rows["decisions", DAYS[2]][0]["request_id"]
    assert f"(request_id: {repeated}, rows_of_it: 2)" in str(error.value)
    assert digests(settings.layout.marts) == before
    assert transformed(settings) == done | {"days": done["days"] | {str(DAYS[2]): {}}}


def test_a_killed_stage_leaves_no_dbt_behind(warehouse: Warehouse) -> None:
    """`dbt docs serve` stands for a long build: it ends only when it is killed."""
    target = warehouse.daily.layout.dbt_target
    command = ["docs", "serve", "--no-browser", "--port", "0", "--target-path", str(target)]
    command += ["--project-dir", str(target / "project"), "--profiles-dir", str(target / "project")]
    code = f"""
from pathlib import Path
from training.contract.settings import Settings
from training.warehouse.engines import engine_of
target = Path({str(target)!r})
engine_of(Settings(data=target)).invoke({command!r}, {{"DBT_TARGET": "duckdb"}}, target)
"""
    stage = subprocess.Popen([sys.executable, "-c", code], cwd=SOURCE.parent)
    try:
        while not (below := psutil.Process(stage.pid).children()):
            assert stage.poll() is None
            time.sleep(0.1)
        serving = below[-1]
        while not serving.net_connections():
            assert serving.is_running() and stage.poll() is None
            time.sleep(0.1)
    finally:
        stage.kill()
        stage.wait()
    assert psutil.wait_procs([serving], timeout=30)[1] == []


@pytest.mark.slow
def test_documentation_and_freshness(warehouse: Warehouse) -> None:
    page = transform.docs(warehouse.daily)
    text = page.read_text()
    for words in ("fct_transitions", "From logs to trajectories", "Feast feature view, the profile part"):
        assert words in text
    written = page.stat().st_mtime_ns
    assert transform.docs(warehouse.daily) == page and page.stat().st_mtime_ns == written
    # held against the clock, a log of another time is stale, and dbt says so
    with pytest.raises(RuntimeError, match="source freshness"):
        transform._dbt(warehouse.daily, ["source", "freshness", "--select", "source:lake.impressions"])
    (source,) = read_json(warehouse.daily.layout.dbt_target / "sources.json")["results"]
    newest = max(row["event_ts"] for row in warehouse.lake.all("impressions"))
    assert datetime.fromisoformat(source["max_loaded_at"]) == newest


@pytest.mark.slow
def test_sqlfluff_has_nothing_to_say(tmp_path: Path) -> None:
    project = tmp_path / "dbt_project"
    shutil.copytree(SOURCE, project, ignore=shutil.ignore_patterns("target", "logs"))
    command = [sys.executable, "-m", "sqlfluff", "lint", "models", "tests"]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
