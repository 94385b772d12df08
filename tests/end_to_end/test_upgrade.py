"""A data folder of an earlier release works once `mtf upgrade` has carried it over; until then it is refused.

``earlier_release.tar.xz`` is what a day of the simulated world left in such a release, which served it and
promoted its policy: lake, records, marts, warehouse, models, the service's log and index, and the databases
of Airflow, MLflow and Feast. Pages, Data Docs, lineage and logs of processes were left out of it.
"""

import json
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from typer.testing import CliRunner

from dags import stages
from dags.command_line.main import app
from tests.end_to_end import small_days
from training.contract import version
from training.contract.errors import MtfError
from training.contract.files import read_json, write_json_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.log import LAKE_VERSION
from training.contract.pointer import read_pointer
from training.contract.policy import load_policy
from training.contract.records import read_record
from training.contract.settings import SETTINGS_VARIABLE, Settings, load_settings
from training.features.store import open_store
from training.ingest.landing import read_note, read_partition
from training.operations import upgrade as carrying
from training.promotion import registry

PAST, DAY = small_days.FIRST.replace(day=4), small_days.FIRST
ARCHIVE = Path(__file__).with_name("earlier_release.tar.xz")
SAID = "is of an earlier release: `mtf upgrade` carries it over"


def unpack(folder: Path) -> Settings:
    """The earlier release's folder, below settings of today."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    chosen = small_days.values(folder / "data") | {"calendar": {"timezone": "Asia/Shanghai"}}
    (folder / "mtf.yaml").write_text(yaml.safe_dump(chosen))
    return load_settings(folder / "mtf.yaml")


def mtf(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    return unpack(tmp_path)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_every_other_command_refuses_it_in_one_line_and_changes_nothing(earlier: Settings, tmp_path: Path):
    before = contents(earlier.data)
    for command in (
        *("status", "report", "up", "serve", "check", "keep", "arms", "canary"),
        *(
            f"day --date {DAY}",
            f"backfill --from {DAY} --to {DAY}",
            f"ingest --date {DAY}",
            "forget --user 7",
        ),
        *(f"backup --to {tmp_path / 'b.tar.gz'}", f"train --date {DAY}"),
    ):
        said = mtf(*command.split())
        assert said.exit_code == 1 and isinstance(said.exception, MtfError), (command, said.output)
        assert SAID in str(said.exception) and "\n" not in str(said.exception)
    with pytest.raises(MtfError, match="mtf upgrade"):  # as Airflow's tasks do
        stages.run_stage(earlier, DAY, "features")
    assert contents(earlier.data) == before
    assert mtf("down").exit_code == 0 and mtf("init", str(tmp_path / "new.yaml")).exit_code == 0


def test_days_of_another_zone_are_named_and_nothing_changes(earlier: Settings, monkeypatch):
    before = contents(earlier.data)
    monkeypatch.setenv("MTF__CALENDAR__TIMEZONE", "UTC")
    said = mtf("upgrade")
    assert said.exit_code == 1 and "set calendar.timezone to the one" in str(said.exception)
    kept = {name: content for name, content in contents(earlier.data).items() if not name.endswith(".lock")}
    assert kept == before


def test_a_folder_of_a_later_release_or_of_none_is_refused(tmp_path: Path, monkeypatch):
    settings = small_days.write_settings(tmp_path)
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    assert "there is no data folder" in str(mtf("upgrade").exception)
    write_json_atomic(settings.layout.version, {"form": version.FORM + 1})
    for command in ("status", "upgrade"):
        assert "is of a later release" in str(mtf(command).exception)
    settings.layout.version.write_text("{")
    assert "does not say of which form" in str(mtf("status").exception)


def test_a_new_folder_is_of_this_release(tmp_path: Path, monkeypatch):
    settings = small_days.write_settings(tmp_path)
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    small_days.land_world(settings, [DAY])
    assert read_json(settings.layout.version) == {"form": version.FORM}
    said = mtf("upgrade")
    assert said.exit_code == 0 and "nothing was to be done" in said.output.replace("\n", " ")


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, list[str]]]:
    """Carried over by two runs: the first is killed between two parts, and within one."""
    folder = tmp_path_factory.mktemp("upgraded")
    settings = unpack(folder)
    shutil.copytree(settings.data, folder / "before")
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SETTINGS_VARIABLE, str(folder / "mtf.yaml"))

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        for where in ("write_atomic", "_tables"):
            with pytest.MonkeyPatch.context() as kill:
                kill.setattr(carrying, where, killed)
                told.append(mtf("upgrade"))
        told.append(mtf("upgrade"))
        yield settings, [one.output for one in told]


def parts(output: str) -> list[str]:
    return [line.removeprefix("carrying over: ") for line in output.splitlines() if "carrying over" in line]


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestUpgraded:
    def test_what_was_killed_goes_on_where_it_ended(self, upgraded: tuple[Settings, list[str]]):
        settings, (first, second, third) = upgraded
        assert parts(first) == ["the lake", "records", "MLflow's database"]
        assert parts(second) == ["MLflow's database", "Airflow's database", "tables"]
        assert parts(third) == ["tables", "features"]
        assert read_json(settings.layout.version) == {"form": version.FORM}
        assert not list(settings.data.rglob("*.tmp*"))
        again = mtf("upgrade")
        assert again.exit_code == 0 and parts(again.output) == []

    def test_the_lake_holds_its_rows(self, upgraded: tuple[Settings, list[str]]):
        settings, _ = upgraded
        before = settings.data.parent / "before"
        for table in (IMPRESSIONS, DECISIONS):
            for day in (PAST, DAY):
                folder = settings.layout.partition(table, day)
                rows = read_partition(folder)
                old = read_partition(before / folder.relative_to(settings.data))
                assert rows.select(old.column_names).to_pylist() == old.to_pylist()
                note, entry = read_note(folder), read_record(settings.layout, day, "land")["tables"][table]
                assert note["contract_version"] == LAKE_VERSION
                assert entry["sha256"] == note["sha256"] and entry["revision"] == note["revision"]

    def test_marts_are_made_of_it_with_todays_columns(self, upgraded: tuple[Settings, list[str]]):
        settings, _ = upgraded
        old = settings.data.parent / "before/warehouse/mtf.duckdb"
        shared = "request_id, user_id, reward, done"
        found = []
        for path in (settings.layout.warehouse, old):
            with duckdb.connect(str(path), read_only=True) as connection:
                rows = connection.sql(f"select {shared} from fct_transitions order by all")  # noqa: S608
                found.append(rows.fetchall())
        assert found[0] == found[1] and len(found[0]) > 200

    def test_databases_and_what_serves_are_carried_over(self, upgraded: tuple[Settings, list[str]]):
        settings, _ = upgraded
        layout = settings.layout
        champion = read_pointer(layout.champion)
        assert champion is not None and champion.day == str(DAY)
        load_policy(settings.data / champion.policy, champion.sha256)
        assert registry.alias_version(settings, registry.CHAMPION) == champion.model_version
        with closing(sqlite3.connect(layout.mlflow / "mlflow.db")) as connection:
            addresses = connection.execute(
                "select artifact_uri, run_uuid from runs union select source, run_id from model_versions"
            ).fetchall()
        for address, run in addresses:
            assert address.startswith(f"mlflow-artifacts:/{run}/artifacts")
            assert (registry.artifacts(settings, run) / "policy.safetensors").exists()
        with closing(sqlite3.connect(layout.airflow / "airflow.db")) as connection:
            runs = connection.execute("select dag_id from dag_run").fetchall()
        assert runs == [("mtf_traffic",)]
        store = open_store(settings)
        users = sorted(
            {row["user_id"] for row in read_partition(layout.partition(DECISIONS, DAY)).to_pylist()}
        )
        names = ["user_history:hist_count"]
        online = store.get_online_features(names, [{"user_id": user} for user in users]).to_dict()
        assert all(count > 0 for count in online["hist_count"])

    def test_pages_tell_of_its_days_and_the_next_day_runs(self, upgraded: tuple[Settings, list[str]]):
        settings, _ = upgraded
        said = mtf("status")
        assert said.exit_code == 0 and f"{DAY}-" in said.output, (said.output, said.exception)
        for day in (PAST, DAY):
            assert mtf("report", "--date", str(day)).exit_code == 0
        following = small_days.days(2)[1]
        small_days.land_world(settings, [following])
        for stage in stages.DAY_STAGES[: stages.DAY_STAGES.index("parity") + 1]:
            stages.run_stage(settings, following, stage)
        assert json.loads((settings.layout.run(following) / "features.json").read_text())["success"]
