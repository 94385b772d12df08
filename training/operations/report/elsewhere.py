"""Where is everything else? One list: each place with its address, and what it answers."""

import os
from dataclasses import dataclass
from pathlib import Path

from training.contract.settings import Settings
from training.operations.runbook import RUNBOOK

REPOSITORY = Path(__file__).resolve().parents[3]
DASHBOARD = "serving/control/grafana/dashboard.json"


@dataclass(frozen=True)
class Place:
    """``address`` is relative to the page, or on this machine; None where there is nothing yet."""

    name: str
    answers: str
    address: str | None


def places(settings: Settings, start: Path) -> list[Place]:
    """All that shows something of the loop, for a page in the folder ``start``."""
    layout, ports = settings.layout, settings.orchestration
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.serving.host, settings.serving.host)  # noqa: S104
    return [
        Place(
            "Airflow", "which runs ran, wait or failed; their logs", f"http://127.0.0.1:{ports.airflow_port}/"
        ),
        Place(
            "MLflow", "every training, and the registry of policies", f"http://127.0.0.1:{ports.mlflow_port}/"
        ),
        Place("Service", "what serves, and its API with examples", f"http://{host}:{settings.serving.port}/"),
        Place(
            "Data Docs", "every check of every day", _file(layout.validation / "data_docs/index.html", start)
        ),
        Place(
            "dbt docs",
            "tables, columns and their tests",
            _file(layout.dbt_target / "static_index.html", start),
        ),
        Place("Metrics", "of the pipeline, for Prometheus", _file(layout.metrics / "mtf.prom", start)),
        Place(
            "Grafana",
            "a dashboard to import, of the service's /metrics",
            _file(REPOSITORY / DASHBOARD, start),
        ),
        Place("Runbook", "what each failure means", runbook(start)),
    ]


def runbook(start: Path, section: str = "") -> str | None:
    """Link to a section of the runbook: in the built docs where they are, else in the file."""
    built = REPOSITORY / "build/site" / Path(RUNBOOK).with_suffix(".html").name
    found = _file(built, start) or _file(REPOSITORY / RUNBOOK, start)
    return found and (f"{found}#{section}" if section else found)


def _file(path: Path, start: Path) -> str | None:
    return os.path.relpath(path, start) if path.exists() else None
