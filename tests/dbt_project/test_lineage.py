"""OpenLineage events: of stages, and of dbt's models below the transform."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dags import stages
from tests.dbt_project.conftest import DAYS, Warehouse
from training.contract.errors import DataError
from training.contract.settings import LineageSettings, Settings
from training.operations import lineage


def events(settings: Settings, name: str) -> list[dict]:
    lines = (settings.layout.lineage / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def named(datasets: list[dict]) -> dict[str, dict]:
    return {f"{d['namespace']}:{d['name']}": d for d in datasets}


def days(facets: dict, condition: str) -> list[str]:
    return [partition["dimensions"]["dt"] for partition in facets["subset"][condition]["partitions"]]


def test_the_transform_tells_partitions_tables_and_tests(warehouse: Warehouse) -> None:
    settings, record = warehouse.daily, warehouse.records[str(DAYS[1])]
    layout = settings.layout
    lineage.start(settings, DAYS[1], "transform").end({"success": True, **record})
    started, complete, *models = events(settings, str(DAYS[1]))
    assert (started["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert started["run"]["runId"] == complete["run"]["runId"]
    assert complete["run"]["facets"]["nominalTime"]["nominalStartTime"] == "2026-01-06T00:00:00+00:00"

    lake, transitions = layout.table("impressions"), layout.mart("fct_transitions")
    read = named(complete["inputs"])[f"file:{lake}"]
    wrote = named(complete["outputs"])[f"file:{transitions}"]
    assert days(read["inputFacets"], "inputCondition") == record["reprocessed_days"]
    assert days(wrote["outputFacets"], "outputCondition") == record["exported"]["fct_transitions"]["days"]
    rows = wrote["outputFacets"]["outputStatistics"]["rowCount"]
    assert rows == record["exported"]["fct_transitions"]["rows"] > 0

    jobs = {e["job"]["name"]: e for e in models if e["eventType"] == "COMPLETE"}
    assert all(e["run"]["facets"]["parent"]["run"]["runId"] == started["run"]["runId"] for e in models)
    warehouse_name = f"duckdb://{layout.warehouse}"
    staging = jobs["mtf.main.mtf.stg_impressions.build.run"]
    assert [*named(staging["inputs"])] == [f"file:{lake}"]  # joins the stage that landed it
    mart = jobs["mtf.main.mtf.fct_transitions.build.run"]
    assert {*named(mart["inputs"])} == {
        f"{warehouse_name}:mtf.main.{name}"
        for name in ("int_requests", "int_session_requests", "stg_decisions")
    }
    (output,) = mart["outputs"]
    fields = {field["name"]: field for field in output["facets"]["schema"]["fields"]}
    assert fields["reward"]["description"].startswith("r, eq. (2)")
    tested = jobs["mtf.main.mtf.fct_transitions.build.test"]["inputs"][0]
    assertions = tested["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert {one["assertion"] for one in assertions} == {"exactly_one", "primary_key"}
    assert all(one["success"] for one in assertions)


def test_a_stage_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = "01a2127f-db14-764b-af92-da696a3c8265"
    monkeypatch.setenv(lineage.PARENT, f"mtf/mtf_ingest.land/{run}")
    settings = Settings(data=tmp_path)
    with pytest.raises(DataError):
        stages.run_stage(settings, DAYS[0], "land")
    started, failed = events(settings, str(DAYS[0]))
    assert (started["eventType"], failed["eventType"]) == ("START", "FAIL")
    assert failed["run"]["facets"]["errorMessage"]["message"].startswith("there is no log of 2026-01-05")
    parent = failed["run"]["facets"]["parent"]
    assert (parent["job"]["name"], parent["run"]["runId"]) == ("mtf_ingest.land", run)


def test_every_stage_has_its_datasets(tmp_path: Path) -> None:
    for stage in stages.DAY_STAGES:
        reads, _ = lineage.datasets(Settings(data=tmp_path), DAYS[0], stage, {})
        assert reads or stage in ("validate_landed", "transform"), stage  # these read what is landed


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.events.append(json.loads(body))
        self.send_response(201)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_events_go_to_an_endpoint_and_one_that_is_down_fails_no_stage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        server.events = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        settings = Settings(data=tmp_path, lineage=LineageSettings(url=address, namespace="night"))
        lineage.start(settings, DAYS[0], "land").end({"success": True})
        server.shutdown()
        thread.join()
        assert [(e["eventType"], e["job"]["namespace"]) for e in server.events] == [
            ("START", "night"),
            ("COMPLETE", "night"),
        ]
    lineage.start(settings, DAYS[0], "land")
    assert "no lineage of land of 2026-01-05" in caplog.text


def test_no_lineage_where_the_settings_say_so(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, lineage=LineageSettings(enabled=False))
    lineage.start(settings, DAYS[0], "land").end({"success": True})
    assert not settings.layout.lineage.exists()
