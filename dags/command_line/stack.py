"""The local stack: Airflow, the ranking service and the MLflow UI as processes of this machine."""

import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dags import workers
from dags.pools import WAREHOUSE_POOL
from serving.state import missing
from training.contract import databases
from training.contract.errors import MtfError
from training.contract.files import write_json_atomic, write_text_atomic
from training.contract.settings import SETTINGS_VARIABLE, Settings

if TYPE_CHECKING:
    import httpx

# Airflow imports this in each of its processes. Tasks are forks of its scheduler, or of Celery's workers.
LOCAL_SETTINGS = """import sys

if {parent!r} in sys.argv:
    import dags.preload  # noqa: F401
"""
REPOSITORY = Path(__file__).resolve().parents[2]
STOP_SECONDS = 20


class StackError(MtfError):
    """A process of the local stack did not start or answer; the message names its log."""


@dataclass(frozen=True)
class Service:
    """One process of the stack: how it starts, and the address that answers once it is ready. ``setting`` is
    that of its port, ``host`` where it listens."""

    name: str
    command: list[str]
    environment: dict[str, str]
    port: int
    ready_path: str
    setting: str
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        """Where this machine reaches it."""
        return _address(self.host, self.port)


def _address(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def executable(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).parent / name)


def token(settings: Settings) -> str:
    """The service's bearer token: ``$MTF_TOKEN``, else one made once and kept in the data folder.

    The file is readable by its owner only and is never logged.
    """
    if os.environ.get("MTF_TOKEN"):
        return os.environ["MTF_TOKEN"]
    path = settings.layout.serving / "token"
    if not path.exists():
        write_text_atomic(path, secrets.token_urlsafe(32), mode=0o600)
    return path.read_text(encoding="utf-8")


def airflow_environment(settings: Settings, settings_file: Path) -> dict[str, str]:
    """Airflow with its home under the data folder and the DAGs of this repository."""

    from training.operations import lineage

    home, airflow = settings.layout.airflow, settings.orchestration
    address = _address(airflow.airflow_host, airflow.airflow_port)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        SETTINGS_VARIABLE: str(settings_file),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        # every path that Airflow writes into its airflow.cfg: from here they follow the folder
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(home / "logs" / "dag_processor"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": databases.airflow(settings),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(airflow.parallelism),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__API__HOST": airflow.airflow_host,
        "AIRFLOW__API__PORT": str(airflow.airflow_port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
        "AIRFLOW__OPENLINEAGE__DISABLED": str(not settings.lineage.enabled),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": settings.lineage.namespace,
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(lineage.transport(settings, "airflow")),
        "_AIRFLOW__AS_LIBRARY": "",
        **(workers.environment(settings) if airflow.executor == "celery" else {}),
    }


def services(settings: Settings, settings_file: Path) -> list[Service]:
    layout = settings.layout
    plain = {**os.environ, SETTINGS_VARIABLE: str(settings_file)}
    return [
        Service(
            "service",
            [
                *[sys.executable, "-m", "bentoml", "serve", "serving.service:RankService", "--quiet"],
                *["--host", settings.serving.host, "--port", str(settings.serving.port)],
                *["--working-dir", str(REPOSITORY), "--api-workers", str(settings.serving.workers)],
            ],
            {
                **plain,
                "MTF_TOKEN": token(settings),
                "BENTOML_HOME": str(layout.bentos),
                "PYTHONWARNINGS": "ignore",
            },
            settings.serving.port,
            "/readyz",
            "serving.port",
            settings.serving.host,
        ),
        Service(
            "mlflow",
            [
                *[sys.executable, "-m", "training.operations.mlflow_server", "--host", "127.0.0.1"],
                *["--port", str(settings.orchestration.mlflow_port)],
                *["--backend", databases.mlflow(settings), "--artifacts", str(layout.artifacts)],
            ],
            plain,
            settings.orchestration.mlflow_port,
            "/health",
            "orchestration.mlflow_port",
        ),
        Service(
            "airflow",
            {
                "local": [executable("airflow"), "standalone"],
                "celery": [sys.executable, "-m", "dags.workers"],
            }[settings.orchestration.executor],
            airflow_environment(settings, settings_file),
            settings.orchestration.airflow_port,
            "/api/v2/monitor/health",
            "orchestration.airflow_port",
            settings.orchestration.airflow_host,
        ),
    ]


def start(settings: Settings, service: Service) -> None:
    """Start a service in its own process group; a running one is left alone.

    Raises :class:`StackError` when its port is taken by somebody else.
    """
    if pid_of(settings, service.name) is not None:
        return
    workers.refuse_unfit(settings)
    refuse_taken(service)
    layout = settings.layout
    for folder in (layout.mlflow, layout.airflow, layout.bentos, layout.lineage):
        folder.mkdir(parents=True, exist_ok=True)
    parent = {"local": "scheduler", "celery": "worker"}[settings.orchestration.executor]
    write_text_atomic(
        layout.airflow / "config" / "airflow_local_settings.py", LOCAL_SETTINGS.format(parent=parent)
    )
    log = log_file(settings, service.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = subprocess.Popen(
            service.command,
            env=service.environment,
            cwd=settings.layout.root,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    entry = {"pid": process.pid, "started": _started(process.pid)}
    write_json_atomic(_pid_file(settings, service.name), entry)


def refuse_taken(service: Service) -> None:
    """Raises :class:`StackError` where the service could not listen, with the setting to change."""
    family = socket.AF_INET6 if ":" in service.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((service.host, service.port))
    except OSError as error:
        port = f"port {service.port} of {service.name}"
        reason = {
            errno.EADDRINUSE: f"{port} is taken by another program: stop it, or change {service.setting}",
            errno.EACCES: f"{port} is not for this user: set {service.setting} to 1024 or more",
            errno.EADDRNOTAVAIL: f"{service.host} is no address of this machine: set serving.host to one of "
            "them, or to 0.0.0.0 for all",
        }.get(error.errno or 0, f"{service.name} cannot listen on {service.host}:{service.port}: {error}")
        raise StackError(reason) from None


def wait_ready(settings: Settings, service: Service, timeout: float = 180.0) -> str:
    """Wait for the service's address to answer; what to say of it. :class:`StackError` when it does not.

    Before the first day there are no features to be ready with: the ranking service is up then, and serves
    static weights.
    """

    import httpx

    started = time.monotonic()
    reason = "it did not answer"
    while time.monotonic() - started < timeout:
        try:
            answer = httpx.get(service.address + service.ready_path, timeout=5)
            if answer.status_code == 200:
                return f"ready after {time.monotonic() - started:.0f} s"
            reason = _told(answer)
            # where there is a store, the service is opening it: feedback that it cannot take yet is lost to
            # the state of a session that is going on
            if answer.status_code == 503 and missing.NONE_YET in reason and not missing.is_there(settings):
                return f"serves static weights, {reason}"
        except httpx.HTTPError:
            pass
        if pid_of(settings, service.name) is None:
            raise StackError(f"{service.name} ended while starting; see {log_file(settings, service.name)}")
        time.sleep(0.5)
    raise StackError(
        f"{service.name} is not ready at {service.address} after {timeout:.0f} s: {reason}; "
        f"see {log_file(settings, service.name)}"
    )


def _told(answer: "httpx.Response") -> str:
    """Why an address is not ready, by its own words."""
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"it answers {answer.status_code}"


def stop(settings: Settings, name: str) -> bool:
    """Stop a service and its children; True when one was running."""
    pid = pid_of(settings, name)
    if pid is None:
        _pid_file(settings, name).unlink(missing_ok=True)
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            break
        if _wait(lambda: not _group_alive(pid), STOP_SECONDS):
            break
    _pid_file(settings, name).unlink(missing_ok=True)
    return True


def pid_of(settings: Settings, name: str) -> int | None:
    """Process id of a service that this data folder's stack runs, else None."""
    path = _pid_file(settings, name)
    if not path.exists():
        return None
    entry = json.loads(path.read_text(encoding="utf-8"))
    _reap(entry["pid"])
    # a recycled pid belongs to a process that started at another time
    return entry["pid"] if _started(entry["pid"]) == entry["started"] else None


def running(settings: Settings) -> list[str]:
    """Names of the services that this data folder's stack runs; the folder is only read."""
    names = sorted(path.stem for path in (settings.layout.root / "processes").glob("*.json"))
    return [name for name in names if pid_of(settings, name) is not None]


def log_file(settings: Settings, name: str) -> Path:
    return settings.layout.root / "logs" / f"{name}.log"


def _pid_file(settings: Settings, name: str) -> Path:
    return settings.layout.root / "processes" / f"{name}.json"


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _reap(pid: int) -> None:
    """Collect an ended child of this very process, which would linger as a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _group_alive(pid: int) -> bool:
    _reap(pid)
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


class Airflow:
    """A small client of Airflow's REST API: trigger a DAG for a day, wait, create the pool."""

    def __init__(self, settings: Settings):
        import httpx

        self.address = _address(settings.orchestration.airflow_host, settings.orchestration.airflow_port)
        passwords = settings.layout.airflow / "passwords.json"
        password = json.loads(passwords.read_text(encoding="utf-8"))["admin"]
        answer = httpx.post(
            f"{self.address}/auth/token", json={"username": "admin", "password": password}, timeout=30
        )
        answer.raise_for_status()
        self.client = httpx.Client(
            base_url=f"{self.address}/api/v2",
            headers={"Authorization": f"Bearer {answer.json()['access_token']}"},
            timeout=60,
        )

    def ensure_pool(self) -> None:
        """The warehouse's single slot: DuckDB takes one writer."""
        body = {"name": WAREHOUSE_POOL, "slots": 1, "description": "DuckDB takes one writer"}
        answer = self.client.post("/pools", json=body)
        if answer.status_code not in (201, 409):
            answer.raise_for_status()

    def wait_for_dags(self, names: list[str], timeout: float = 120.0) -> None:
        """Until the DAG processor has parsed all of them."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            answer = self.client.get("/dags", params={"limit": 100})
            answer.raise_for_status()
            if set(names) <= {dag["dag_id"] for dag in answer.json()["dags"]}:
                return
            time.sleep(1)
        errors = self.client.get("/importErrors").json().get("import_errors", [])
        details = [line for error in errors for line in error["stack_trace"].splitlines()]
        raise StackError(f"Airflow did not load {', '.join(names)} in {timeout:.0f} s", *details)

    def trigger(self, dag: str, day: str) -> str:
        """Start a run of a DAG for one day; returns its run id."""
        body = {"logical_date": None, "partition_key": day, "conf": {"day": day}}
        answer = self.client.post(f"/dags/{dag}/dagRuns", json=body)
        if answer.status_code >= 400:
            raise StackError(f"Airflow refused a run of {dag} for {day}: {answer.text}")
        return answer.json()["dag_run_id"]

    def runs(self, dag: str, day: str) -> list[dict[str, Any]]:
        """Runs of a DAG for a day, oldest first."""
        answer = self.client.get(f"/dags/{dag}/dagRuns", params={"limit": 100, "order_by": "id"})
        answer.raise_for_status()
        return [run for run in answer.json()["dag_runs"] if run.get("partition_key") == day]

    def tasks(self, dag: str, run_id: str) -> list[dict[str, Any]]:
        answer = self.client.get(f"/dags/{dag}/dagRuns/{run_id}/taskInstances")
        answer.raise_for_status()
        return answer.json()["task_instances"]
