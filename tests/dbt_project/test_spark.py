"""The same warehouse on Spark: every table bit for bit as DuckDB makes it, on every kind of day."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serving.release.bento import free_port
from tests.dbt_project.conftest import DAYS, Lake, contents, random_lake
from tests.dbt_project.same_marts import differences
from tests.dbt_project.test_lineage import events
from training.contract.errors import DataError
from training.contract.files import read_json
from training.contract.records import write_record
from training.contract.settings import (
    CalendarSettings,
    IdSettings,
    Settings,
    SparkSettings,
    StateSettings,
    WarehouseSettings,
)
from training.operations import lineage
from training.warehouse import transform
from training.warehouse.days import transformed
from training.warehouse.java import java_home

pytestmark = [pytest.mark.scale, pytest.mark.timeout(3600)]

# a JVM that lives for one small build spends its time on compiling
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
NIGHT = [date(2026, 10, 24), date(2026, 10, 25), date(2026, 10, 26)]  # in Berlin, clocks go back on the 25th


@pytest.fixture(scope="module", autouse=True)
def quick_java() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", QUICK)
        yield


@dataclass(frozen=True)
class Both:
    """One lake, transformed by both engines."""

    duckdb: Settings
    spark: Settings
    lake: Lake

    def land(self, *days: date, without: frozenset[str | int] = frozenset()) -> None:
        for settings in (self.duckdb, self.spark):
            Lake(settings, self.lake.rows).land(*days, without=without)

    def run(self, day: date) -> dict:
        """Run the day on both: the tables are the same, and so is what others read."""
        record, on_spark = (transform.run(settings, day) for settings in (self.duckdb, self.spark))
        for what in ("exported", "reprocessed_days"):
            assert on_spark[what] == record[what]
        assert on_spark["tests"] == record["tests"] | {"passed": record["tests"]["passed"] + 1}  # of NOT NULL
        self.same()
        return record

    def same(self) -> None:
        assert differences(self.duckdb, self.spark) == []
        assert contents(self.duckdb) == contents(self.spark)

    def valid(self, day: date, success: bool) -> None:
        for settings in (self.duckdb, self.spark):
            write_record(settings.layout, day, "land", {"success": True})
            write_record(settings.layout, day, "validate_landed", {"success": success})


def both(root: Path, days: list[date], spark: SparkSettings, **settings: object) -> Both:
    common = {"state": StateSettings(history_length=9), **settings}
    duckdb = Settings(data=root / "duckdb", **common)
    on_spark = Settings(
        data=root / "spark", warehouse=WarehouseSettings(engine="spark", spark=spark), **common
    )
    return Both(duckdb, on_spark, random_lake(duckdb, days=days))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Users and items are strings, days are of 24, 25 and 24 hours."""
    return both(
        tmp_path_factory.mktemp("night"),
        NIGHT,
        SparkSettings(partitions=2),
        ids=IdSettings(users="string", items="string"),
        calendar=CalendarSettings(timezone="Europe/Berlin"),
    )


def test_every_kind_of_day_is_the_same_on_both(night: Both) -> None:
    """One after the other: full build, the night, late rows, a held and an emptied day, and one is back."""
    for minute in (0, 59):
        night.lake.request(f"night{minute}", "000", f"2026-10-25T02:{minute:02d}:00", "night")
    first, second, third = NIGHT
    late = frozenset(sorted(r["request_id"] for r in night.lake.rows["decisions", first])[::5])
    late |= frozenset(r["user_id"] for r in night.lake.rows["users", first][::2])
    night.land(first, without=late)
    night.run(first)
    night.land(second)
    assert night.run(second)["reprocessed_days"] == [str(first), str(second)]
    night.land(first, third)
    assert night.run(third)["reprocessed_days"] == [str(day) for day in NIGHT]

    night.valid(second, False)
    for settings in (night.duckdb, night.spark):  # of the last day no decision is left
        path = settings.layout.partition("decisions", third) / "part-0.parquet"
        pq.write_table(pq.read_table(path, partitioning=None)[:0], path)
    record = night.run(third)
    assert record["exported"]["fct_transitions"]["days"] == [str(first)]
    night.valid(second, True)
    assert len(night.run(third)["exported"]["fct_transitions"]["days"]) == 2


Lying = Callable[[Path], bool]
STAGES: dict[str, Lying] = {
    "the first table's day is gone": lambda tables: not any(tables.glob("int_requests/dt=2026-10-24")),
    "in the middle of a table": lambda tables: any(tables.glob("int_*/.spark-staging*")),
    "before the last table": lambda tables: any(tables.glob("fct_session_state/dt=2026-10-24")),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_in_the_middle_leaves_days_that_the_next_one_makes_again(
    night: Both, stage: str
) -> None:
    """The run of the first day is killed; it is the last day's run, of unchanged logs, that mends it."""
    settings, tables = night.spark, night.spark.layout.spark_tables
    code = (
        "import sys; from datetime import date; from training.contract.settings import Settings; "
        "from training.warehouse import transform; "
        "transform.run(Settings.model_validate_json(sys.argv[1]), date(2026, 10, 24))"
    )
    running = subprocess.Popen([sys.executable, "-c", code, settings.model_dump_json()])
    try:
        while transformed(settings)["days"][str(NIGHT[0])] or not STAGES[stage](tables):
            assert running.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert transformed(settings)["days"][str(NIGHT[0])] == {}
    if stage == list(STAGES)[-1]:  # one run mends what all of them have left
        assert differences(night.duckdb, night.spark) != []
        transform.run(settings, NIGHT[2])
        night.same()


# of docs/profiles.md
WANTED = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.mergeSchema": "true",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
}


@contextmanager
def thrift_server(folder: Path, **more: str) -> Iterator[int]:
    """Spark's own, with its catalogue in a folder; its port. The wheel has the class and not the script."""
    import pyspark

    spark_home, port = Path(pyspark.__file__).parent, free_port()
    folder.mkdir()
    catalogue = f"jdbc:derby:;databaseName={folder}/catalogue;create=true"
    conf = {
        "spark.master": "local[2]",
        "spark.ui.enabled": "false",
        "spark.sql.warehouse.dir": f"{folder}/databases",
        "spark.hadoop.javax.jdo.option.ConnectionURL": catalogue,
        "spark.hadoop.hive.server2.thrift.port": str(port),
        "spark.hadoop.hive.server2.thrift.bind.host": "127.0.0.1",
        **WANTED,
        **more,
    }
    command = [str(spark_home / "bin" / "spark-submit")]
    command += ["--class", "org.apache.spark.sql.hive.thriftserver.HiveThriftServer2"]
    command += [part for name, value in conf.items() for part in ("--conf", f"{name}={value}")]
    java = {"JAVA_HOME": str(java_home(folder / "java")), "JDK_JAVA_OPTIONS": "-XX:-SegmentedCodeCache"}
    environment = {**os.environ, **java, "SPARK_LOCAL_IP": "127.0.0.1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "spark-internal"],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_thrift_server_of_other_settings_is_told_which(tmp_path: Path) -> None:
    name = "spark.sql.parquet.outputTimestampType"
    with thrift_server(tmp_path / "server", **{name: "INT96"}) as port:
        over = both(tmp_path, DAYS, SparkSettings(target="thrift", port=port, partitions=2))
        over.land(DAYS[0])
        with pytest.raises(RuntimeError, match=f"{name} of Spark is INT96; start the Thrift server with"):
            transform.run(over.spark, DAYS[0])


def test_a_thrift_server_with_a_catalogue_of_its_own(tmp_path: Path) -> None:
    """A full build, dbt's unit tests, and a value that the contract wants and a day has not."""
    with thrift_server(tmp_path / "server") as port:
        over = both(tmp_path, DAYS, SparkSettings(target="thrift", port=port, partitions=2))
        over.land(*DAYS)
        record = over.run(DAYS[-1])
        assert "fct_transitions" in transform.docs(over.spark).read_text()
        lineage.start(over.spark, DAYS[-1], "transform").end({"success": True, **record})
        told = events(over.spark, str(DAYS[-1]))
        written = {f"{d['namespace']}:{d['name']}" for event in told for d in event.get("outputs", [])}
        assert any(f"file://{over.spark.layout.spark_tables}:" in name for name in written), written

        results = transform._dbt(over.spark, ["test", "--select", "test_type:unit"])
        tests = {r["unique_id"]: r["status"] for r in results if r["unique_id"].startswith("unit_test.")}
        manifest = read_json(over.spark.layout.dbt_target / "manifest.json")
        assert tests == dict.fromkeys(manifest["unit_tests"], "pass")

        rows = over.lake.rows["impressions", DAYS[-1]]
        for row in rows:
            if row["user_id"] == rows[0]["user_id"]:
                row["play_time_ms"] = None  # a sum of nothing
        over.land(DAYS[-1])
        with pytest.raises(DataError, match=r"NOT NULL constraint failed: fct_user_days\.play_s"):
            transform.run(over.duckdb, DAYS[-1])
        found = r"required_columns_have_values: Got 1 result.*column_name: play_s.*table_name: fct_user_days"
        with pytest.raises(DataError, match=found):
            transform.run(over.spark, DAYS[-1])
        assert transform.pending(over.spark, DAYS[-1]) == [str(DAYS[-1])]
