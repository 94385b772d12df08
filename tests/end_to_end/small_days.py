"""Small days of the simulated world, ranked in this process by the service's own code: for tests of days."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from dags.command_line.world import as_the_service
from training.contract.settings import Settings, load_settings
from training.world.simulator.past import land_past

FIRST = date(2026, 1, 5)
TINY = [16, 16]
NETWORKS = {
    "critic_hidden": TINY,
    "batchrl_mtf": {
        "members": 2,
        "generator_hidden": TINY,
        "perturbation_hidden": TINY,
        "latent_size": 4,
        "candidates": 4,
        "serving_candidates": 10,
    },
}


def values(data: Path) -> dict[str, Any]:
    """Settings of days of a few hundred requests, on which nothing takes long."""
    return {
        "data": str(data),
        "serving": {
            "accept_event_ts": True,
            "state_budget_ms": 2000,
            "policy_budget_ms": 2000,
            "shares": {"static": 0.2, "random": 0.3, "noise": 0.3},
            "max_exploration": 0.6,
            "guardrail": {"slow_ms": 2000},
        },
        "learner": {
            "steps": 60,
            "batch_size": 64,
            "checkpoint_every": 20,
            "threads": 1,
            "mixed_exploration": False,
            **NETWORKS,
        },
        "evaluation": {
            "estimators": ["fqe", "lstd_q"],
            "steps": 40,
            "batch_size": 64,
            "replicates": 2,
            "hidden": TINY,
            "lr": 0.001,
            "test_share": 0.3,
        },
        "validation": {"min_transitions": 50, "min_drift_rows": 1000, "max_volume_ratio": 4.0},
        # so few steps learn nothing: what is tested is that days run, not what they learn
        "gate": {
            "estimator": "fqe",
            "evidence": "offline",
            "gain": -10.0,
            "delta": 10.0,
            "delta_budget": 1000.0,
            "max_latency_ms": 2000.0,
            "max_bound_share": 1.0,
            "max_action_jump": 10.0,
            "parity_sample": 50,
            "max_parity_mismatch": 0.1,
        },
        "orchestration": {"retries": 2, "retry_seconds": 2},
        "world": {"users": 150, "items": 300, "requests_per_day": 300, "past_days": 1},
    }


def write_settings(folder: Path, more: dict[str, dict[str, Any]] | None = None) -> Settings:
    """``mtf.yaml`` in a folder, with its data below ``data``."""
    return written(folder, values(folder / "data"), more)


def written(folder: Path, chosen: dict[str, Any], more: dict[str, dict[str, Any]] | None = None) -> Settings:
    """``mtf.yaml`` in a folder; sections of ``more`` are entries over those of ``chosen``."""
    for section, entries in (more or {}).items():
        chosen[section] = {**chosen.get(section, {}), **entries}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mtf.yaml").write_text(yaml.safe_dump(chosen))
    return load_settings(folder / "mtf.yaml")


def days(count: int) -> list[date]:
    return [FIRST + timedelta(days=n) for n in range(count)]


def land_world(settings: Settings, calendar: list[date]) -> None:
    """Land the days as the world's users and the service make them, without a champion."""
    for day in calendar:
        land_past(settings, day, as_the_service(settings))
