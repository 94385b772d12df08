"""One simulated day, walked whole: a real service, HTTP traffic, and the real DAGs over its log."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from training.contract.settings import SETTINGS_VARIABLE, Settings, load_settings

LOOP = ("mtf_ingest", "mtf_transform", "mtf_features", "mtf_retrain", "mtf_promote")
OWN = {"serving_candidates": 20, "generator_hidden": [32, 32], "perturbation_hidden": [32, 32]}


def settings_of(folder: Path, port: int) -> dict:
    return {
        "data": str(folder / "data"),
        "serving": {
            "port": port,
            "accept_event_ts": True,
            "state_budget_ms": 2000,
            "policy_budget_ms": 2000,
            "shares": {"static": 0.2, "random": 0.25, "noise": 0.25, "box": 0.1},
            "max_exploration": 0.6,
            "guardrail": {"slow_ms": 2000},
        },
        "learner": {
            "steps": 300,
            "threads": 1,
            "batch_size": 128,
            "critic_hidden": [32, 32],
            "batchrl_mtf": OWN,
        },
        "evaluation": {"steps": 100, "replicates": 2, "hidden": [32, 32], "lr": 0.001, "test_share": 0.2},
        "validation": {"min_transitions": 100},
        "gate": {
            "evidence": "offline",
            "max_latency_ms": 500.0,
            "max_bound_share": 1.0,
            "parity_sample": 200,
        },
        "orchestration": {"retries": 0},
        "world": {"users": 500, "items": 500, "requests_per_day": 1200, "past_days": 1},
    }


@dataclass(frozen=True)
class Loop:
    """What is left of the day: its settings, and the state in which each DAG ended."""

    settings: Settings
    settings_file: Path
    day: date
    traffic: dict
    states: dict[str, str]


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory, airflow_database: None) -> Iterator[Loop]:
    from airflow.dag_processing.dagbag import DagBag

    from dags.command_line import stack
    from dags.command_line.world import fit_world, prepare_past, simulate_day
    from serving.release.bento import free_port

    folder = tmp_path_factory.mktemp("loop")
    file = folder / "mtf.yaml"
    file.write_text(yaml.safe_dump(settings_of(folder, free_port())))
    before = os.environ[SETTINGS_VARIABLE]
    os.environ[SETTINGS_VARIABLE] = str(file)  # the tasks load the settings themselves
    console = Console(quiet=True)
    settings, real = fit_world(load_settings(file), console)
    prepare_past(settings, real, console)
    day = date.fromisoformat(settings.world.start_day)
    service = next(s for s in stack.services(settings, file) if s.name == "service")
    stack.start(settings, service)
    try:
        stack.wait_ready(settings, service)
        traffic = simulate_day(settings, day)
        dags = DagBag().dags
        states = {}
        for name in LOOP:
            # Airflow 3.3's dag.test() looks for deadlines in the database, where it has not put them
            dags[name].deadline = None
            run = dags[name].test(run_conf={"day": day.isoformat()})
            states[name] = str(run.state)
        yield Loop(settings, file, day, traffic, states)
    finally:
        stack.stop(settings, "service")
        os.environ[SETTINGS_VARIABLE] = before


@pytest.fixture
def damaged(loop: Loop, tmp_path: Path) -> Settings:
    """A copy of the finished day, to be damaged: lake, reports, records and pointer."""
    for part in ("lake", "runs", "serving", "reports"):
        shutil.copytree(loop.settings.data / part, tmp_path / part)
    return loop.settings.model_copy(update={"data": tmp_path})
