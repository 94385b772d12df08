"""Airflow's own OpenLineage events, and the stages' below them, as the stack's Airflow writes them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dags.command_line.settings_file import render
from dags.command_line.stack import airflow_environment
from training.contract.settings import Settings

RUN = """
from airflow.dag_processing.dagbag import DagBag
DagBag().dags["mtf_ingest"].test(run_conf={"day": "2026-01-05"})
"""


@pytest.mark.slow
def test_a_task_and_its_stage_are_one_tree(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    file = tmp_path / "mtf.yaml"
    file.write_text(render(settings))
    settings.layout.lineage.mkdir(parents=True)
    environment = airflow_environment(settings, file)
    for command in (["-m", "airflow", "db", "migrate"], ["-c", RUN]):
        subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
    ours = [json.loads(line) for line in (settings.layout.lineage / "2026-01-05.jsonl").open()]
    airflows = [json.loads(line) for line in (settings.layout.lineage / "airflow.jsonl").open()]
    failed = {event["job"]["name"]: event for event in airflows if event["eventType"] == "FAIL"}
    assert {"mtf_ingest", "mtf_ingest.land"} <= failed.keys()
    assert [event["eventType"] for event in ours] == ["START", "FAIL"]  # nothing was logged that day
    assert ours[1]["run"]["facets"]["parent"]["run"]["runId"] == failed["mtf_ingest.land"]["run"]["runId"]
