"""A failed task, cleared by hand in Airflow as a person would in the grid: the run goes on at that step."""

import time
from pathlib import Path

import pytest

from dags import stages
from dags.command_line import stack
from serving.release.bento import free_port
from tests.end_to_end import small_days
from tests.end_to_end.same_tables import deliver
from training.contract.records import read_record
from training.contract.settings import SETTINGS_VARIABLE

pytestmark = pytest.mark.slow  # Airflow's migrations and processes
SECONDS = 300


def ended(airflow: stack.Airflow, dag: str, day: str) -> dict[str, dict]:
    """The tasks of the DAG's only run of the day once it has ended."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        runs = airflow.runs(dag, day)
        if runs and runs[0]["state"] in ("success", "failed"):
            assert len(runs) == 1
            return {task["task_id"]: task for task in airflow.tasks(dag, runs[0]["dag_run_id"])}
        time.sleep(1)
    raise TimeoutError(f"{dag} of {day} did not end")


def test_a_cleared_task_goes_on_where_the_run_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (day,) = small_days.days(1)
    source = small_days.write_settings(tmp_path / "source")
    small_days.land_world(source, [day])
    settings = small_days.write_settings(
        tmp_path,
        {
            "logs": {"source": "files", "folder": str(tmp_path / "logs")},
            "orchestration": {"airflow_port": free_port(), "retries": 0},
        },
    )
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "mtf.yaml"))
    deliver(source, [day], settings.logs.folder)
    for stage in stages.DAY_STAGES[: stages.DAY_STAGES.index("validate_training_set")]:
        stages.run_stage(settings, day, stage)
    folder = settings.layout.model(day)
    folder.parent.mkdir(parents=True)
    folder.touch()  # a file where the model's folder has to be: the machine's fault, not the data's

    service = next(s for s in stack.services(settings, tmp_path / "mtf.yaml") if s.name == "airflow")
    stack.start(settings, service)
    try:
        stack.wait_ready(settings, service, timeout=SECONDS)
        airflow = stack.Airflow(settings)
        airflow.ensure_pool()
        airflow.wait_for_dags(["mtf_retrain", "mtf_promote"])
        run = airflow.trigger("mtf_retrain", str(day))
        tasks = ended(airflow, "mtf_retrain", str(day))
        states = {name: task["state"] for name, task in tasks.items()}
        assert states == {
            "validate_training_set": "success",
            "train": "failed",
            "evaluate": "upstream_failed",
        }
        assert not read_record(settings.layout, day, "train")["success"]
        assert airflow.runs("mtf_promote", str(day)) == []

        folder.unlink()
        # what the grid's "Clear" with "Only Failed" sends
        body = {"dry_run": False, "dag_run_id": run, "only_failed": True, "reset_dag_runs": True}
        airflow.client.post("/dags/mtf_retrain/clearTaskInstances", json=body).raise_for_status()
        tasks = ended(airflow, "mtf_retrain", str(day))
        assert {task["state"] for task in tasks.values()} == {"success"}
        assert tasks["validate_training_set"]["try_number"] == 1 and tasks["train"]["try_number"] == 2
        assert ended(airflow, "mtf_promote", str(day))["gate"]["state"] == "success"  # its asset was made
    finally:
        stack.stop(settings, "airflow")
    assert read_record(settings.layout, day, "gate") is not None
