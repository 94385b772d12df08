"""The stack's processes find their files in the settings' data folder, wherever it was before."""

import configparser
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from dags import workers
from dags.command_line import stack
from dags.command_line.stack import airflow_environment
from serving.release.bento import free_port
from serving.state import missing
from training.contract import databases
from training.contract.errors import SettingsError
from training.contract.settings import SETTINGS_VARIABLE, Settings


def test_no_path_is_taken_from_the_airflow_cfg_that_airflow_writes(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    environment = airflow_environment(settings, tmp_path / "mtf.yaml")
    command = [sys.executable, "-m", "airflow", "config", "get-value", "core", "executor"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    written = configparser.ConfigParser(interpolation=None)
    written.read(settings.layout.airflow / "airflow.cfg")
    absolute = {
        f"AIRFLOW__{section.upper()}__{name.upper()}"
        for section in written.sections()
        for name, value in written.items(section)
        if str(tmp_path) in value
    }
    assert len(absolute) >= 5 and absolute <= environment.keys()


CELERY = {"executor": "celery", "broker_password": True}


def test_celery_is_refused_without_postgres_its_provider_or_a_password(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="add airflow to postgres"):
        Settings(data=tmp_path, orchestration=CELERY)
    settings = Settings(data=tmp_path, orchestration=CELERY, postgres={"uses": ["airflow"]})
    monkeypatch.setitem(sys.modules, "airflow.providers.celery", None)  # as where it is not installed
    monkeypatch.setenv(databases.REDIS_PASSWORD, "good")
    with pytest.raises(SettingsError, match="make scale"):
        workers.refuse_unfit(settings)
    installed = ModuleType("celery")
    installed.__spec__ = ModuleSpec("celery", None)
    monkeypatch.setitem(sys.modules, "airflow.providers.celery", installed)
    workers.refuse_unfit(settings)
    monkeypatch.delenv(databases.REDIS_PASSWORD)
    with pytest.raises(SettingsError, match="broker_password is on"):
        workers.refuse_unfit(settings)
    assert (
        refused_worker(tmp_path)
        == "error: orchestration.executor: is local, which has no workers; celery has"
    )


def refused_worker(folder: Path) -> str:
    (folder / "mtf.yaml").write_text("data: data\n")
    environment = {**os.environ, SETTINGS_VARIABLE: str(folder / "mtf.yaml")}
    command = [sys.executable, "-c", "from dags.command_line.main import run; run()", "worker"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    return " ".join(done.stderr.split())


def test_no_task_of_celery_may_take_as_long_as_a_message_is_waited_for(tmp_path) -> None:
    settings = Settings(data=tmp_path, orchestration=CELERY, postgres={"uses": ["airflow"]})
    told = airflow_environment(settings, tmp_path / "mtf.yaml")
    waits = int(told["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"])
    assert waits > 60 * settings.orchestration.stage_minutes
    # a worker holds one message, that of the task that it runs
    for option in ("WORKER_CONCURRENCY", "WORKER_PREFETCH_MULTIPLIER"):
        assert told[f"AIRFLOW__CELERY__{option}"] == "1"


OPENING = """
import http.server, json, sys
class Answer(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Answer.asked += 1
        ready = Answer.asked > 3
        body = json.dumps({"error": sys.argv[2]}).encode()
        self.send_response(200 if ready else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *message): ...
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.mark.parametrize(("made", "told"), [(False, "serves static weights"), (True, "ready after")])
def test_a_store_that_is_there_is_waited_for_until_the_service_has_opened_it(
    tmp_path: Path, made: bool, told: str
) -> None:
    settings = Settings(data=tmp_path / "data")
    if made:
        settings.layout.feast.mkdir(parents=True)
        (settings.layout.feast / "feature_store.yaml").touch()
    port = free_port()
    command = [sys.executable, "-c", OPENING, str(port), missing.NONE_YET]
    service = stack.Service("service", command, dict(os.environ), port, "/readyz", "serving.port")
    stack.start(settings, service)
    try:
        assert stack.wait_ready(settings, service).startswith(told)
    finally:
        stack.stop(settings, "service")
