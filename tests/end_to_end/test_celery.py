"""The loop on CeleryExecutor, PostgreSQL and Redis: two days, and a worker killed in the second.

What comes out is what the embedded default makes of the same logs.
"""

import contextlib
import re
import shutil
import time
from datetime import timedelta

import numpy as np
import psutil
import pytest
import yaml

from dags import stages
from dags.command_line import stack
from serving.release.bento import free_port
from serving.state.online_state import OnlineState
from serving.state.questions import StateRequest
from tests.end_to_end import same_tables, small_days
from tests.end_to_end.conftest import LOOP
from tests.end_to_end.scaled import PASSWORD, database, ended, scale_servers, sections
from tests.servers import files_with
from training.contract.records import read_records
from training.contract.settings import SETTINGS_VARIABLE, load_settings

pytestmark = pytest.mark.scale
FIRST, SECOND = small_days.days(2)
HEARTBEAT_S = 30  # after which a task without one has lost its worker; Airflow's own is 300


@pytest.fixture(scope="module")
def servers():
    with scale_servers() as ports:
        yield ports


# of either way: long enough to be killed in the middle, and nothing refused that few steps have learnt
LONGER = {
    "learner": {"steps": 1_500, "checkpoint_every": 200},
    "gate": {"max_parity_mismatch": 1.0},
}


def settings_on(servers, folder):
    values = small_days.values(folder / "data") | sections(servers)
    for section, entries in LONGER.items():
        values[section] |= entries
    values["orchestration"] |= {
        "executor": "celery",
        "broker": f"127.0.0.1:{servers[1]}/1",
        "broker_password": True,
        "airflow_port": free_port(),
        "mlflow_port": free_port(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mtf.yaml").write_text(yaml.safe_dump(values))
    return folder / "mtf.yaml"


# of a machine that is busy with other things, too
@pytest.mark.timeout(3600)
def test_two_days_through_workers_one_of_them_killed(servers, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", str(HEARTBEAT_S))
    expected = small_days.write_settings(tmp_path / "embedded", LONGER)
    small_days.land_world(expected, [FIRST, SECOND])
    shutil.copytree(expected.data, tmp_path / "celery" / "data")
    file = settings_on(servers, tmp_path / "celery")
    monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
    settings = load_settings(file)
    service = next(s for s in stack.services(settings, file) if s.name == "airflow")
    try:
        stack.start(settings, service)
        stack.wait_ready(settings, service, timeout=900)
        airflow = stack.Airflow(settings)
        airflow.ensure_pool()
        airflow.wait_for_dags(list(LOOP), timeout=900)
        airflow.trigger("mtf_ingest", str(FIRST))
        assert ended(airflow, FIRST) == dict.fromkeys(LOOP, "success")
        airflow.trigger("mtf_ingest", str(SECOND))
        killed = kill_the_worker_of(airflow, "mtf_retrain", "train", stack.pid_of(settings, "airflow"))
        assert ended(airflow, SECOND) == dict.fromkeys(LOOP, "success")
        tries = {one["task_id"]: one["try_number"] for dag in LOOP for one in tasks(airflow, dag, SECOND)}
        wait(lambda: len(workers_of(stack.pid_of(settings, "airflow"))) == 2)  # another took its place
    finally:
        stack.stop(settings, "airflow")
    assert tries.pop("train") == 2 and set(tries.values()) <= {0, 1}  # 0: of a teardown or a skipped one
    assert not psutil.pid_exists(killed)
    with database(servers, "airflow") as connection:
        (done,) = connection.execute(
            "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'"
        ).fetchone()
    assert done >= 2 * len(stages.DAY_STAGES)  # by Celery, and not beside it
    assert files_with(settings.data, PASSWORD) == []
    for day in (FIRST, SECOND):
        stages.run_day(expected, day)  # by the embedded default, as `mtf day` does
    assert_same(expected, settings)


def workers_of(standalone):
    """The main processes of Airflow's workers, each with its node's name."""
    found = {}
    for child in psutil.Process(standalone).children():
        name = re.search(r"mtf-\d+@", " ".join(child.cmdline()))
        if name:
            found[name[0]] = child
    return found


def kill_the_worker_of(airflow, dag, task, standalone):
    """Once the task runs: its worker, with all its processes at once, as when a machine is lost."""
    busy: list[psutil.Process] = []

    def runs() -> bool:
        for one in tasks(airflow, dag, SECOND):
            if one["task_id"] == task and one["state"] == "running":
                busy.extend(w for w in workers_of(standalone).values() if works_on(w, one["id"]))
        return bool(busy)

    wait(runs)
    (worker,) = busy
    for process in [*worker.children(recursive=True), worker]:
        process.kill()
    return worker.pid


def works_on(worker: psutil.Process, instance: str) -> bool:
    """Whether a process below the worker is named for the task instance."""
    for child in worker.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended while it was looked at
            if instance in " ".join(child.cmdline()):
                return True
    return False


def tasks(airflow, dag, day):
    runs = airflow.runs(dag, str(day))
    return airflow.tasks(dag, runs[-1]["dag_run_id"]) if runs else []


def wait(condition, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def assert_same(expected, settings):
    """Records, tables, features and champion, as one machine makes them of the same logs."""
    for day in (FIRST, SECOND):
        ours, theirs = (plain(read_records(one.layout, day)) for one in (settings, expected))
        assert ours == theirs
    ours, theirs = (same_tables.final_state(one) for one in (settings, expected))
    in_files = [name for name in theirs if not name.startswith("online ")]
    assert {name: ours.get(name) for name in in_files} == {name: theirs[name] for name in in_files}
    assert theirs["champion"] != "none"
    users = range(settings.world.users)
    noon = settings.day_start(SECOND) + timedelta(days=1, hours=12)
    asked = [StateRequest(user, f"s{user}", noon) for user in users]
    states, as_expected = (OnlineState(one).read(asked) for one in (settings, expected))
    np.testing.assert_array_equal(states, as_expected)
    assert np.count_nonzero(states)


# when, how long, by which code and settings, where it was written, and what one kind of store purges itself
OWN = {"seconds", "why", "inputs", "lineage", "run_id", "model_version", "latency_ms", "page", "data_docs"}
OWN |= {"promoted_ts", "purged"}
TIMED = ("latency", "smoke")  # rules of the gate that tell milliseconds


def plain(record):
    """What a record says of the day itself."""
    if isinstance(record, dict):
        if record.get("rule") in TIMED:
            return {name: record[name] for name in ("rule", "passed")}
        return {name: plain(value) for name, value in record.items() if name not in OWN}
    if isinstance(record, float):
        return float(f"{record:.12g}")  # a sum in another order, as the cores were free
    return [plain(one) for one in record] if isinstance(record, list) else record
