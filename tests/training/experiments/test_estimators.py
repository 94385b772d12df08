"""The experiment on the estimators, at its smallest: complete, and resumed without repeating a unit."""

import json
from pathlib import Path
from typing import get_args

import pytest

from training.contract.settings import Settings
from training.contract.settings.evaluation import Estimator
from training.experiments import estimators

SIZES = {
    "train_sessions": 60,
    "learner_steps": (2, 4),
    "random_constants": 2,
    "random_networks": 1,
    "search_sessions": 20,
    "log_sessions": 240,
    "truth_sessions": 60,
    "draws": 2,
    "draw_sessions": 240,
    "batch": 12,
}


@pytest.fixture
def settings() -> Settings:
    own = {"serving_candidates": 5, "generator_hidden": (16,), "perturbation_hidden": (16,)}
    return Settings(
        world={"users": 300, "items": 300},
        learner={"batch_size": 16, "critic_hidden": (16,), "batchrl_mtf": own},
        evaluation={"steps": 3, "hidden": (8,), "batch_size": 32, "replicates": 2, "bootstraps": 50},
    )


@pytest.mark.slow
def test_it_measures_every_estimator_and_goes_on_where_it_was_stopped(
    settings: Settings, tmp_path: Path
) -> None:
    told: list[str] = []
    result = estimators.run(settings, tmp_path, lambda done, units, name: told.append(name), **SIZES)
    assert set(result["rank"]["estimators"]) == set(get_args(Estimator))
    for own in result["rank"]["estimators"].values():
        assert own["policies"] == len(result["truth"]) >= 14
        assert -1.0 <= own["discounted"]["spearman"] <= 1.0
    coverage = result["coverage"]["fqe"]["best - static"]
    assert coverage["draws"] == 2 and 0.0 <= coverage["passed"] <= 1.0
    assert set(result["seed_spread"]) >= {"batchrl_mtf"}
    assert json.loads((tmp_path / "estimators.json").read_text())["truth"] == result["truth"]
    assert "| fqe | best - static |" in (tmp_path / "estimators.md").read_text()
    assert (tmp_path / "estimators.png").stat().st_size > 10_000

    units = {path: path.stat().st_mtime_ns for path in (tmp_path / "units").iterdir()}
    assert len(units) == len(told)
    stopped = tmp_path / "units" / "draw_1.json"
    del units[stopped]
    stopped.unlink()
    again = estimators.run(settings, tmp_path, **SIZES)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(result))
    assert all(path.stat().st_mtime_ns == at for path, at in units.items())


@pytest.mark.slow
def test_the_closed_forms_are_measured_on_large_logs_of_the_same_policies(
    settings: Settings, tmp_path: Path
) -> None:
    told: list[str] = []
    sizes = {name: size for name, size in SIZES.items() if name != "draws"} | {
        "logs": 2,
        "judge_sessions": 400,
    }
    result = estimators.run_closed(settings, tmp_path, lambda done, units, name: told.append(name), **sizes)
    assert set(result["whole"]) == {"session_return", "lstd_q"}
    for own in result["whole"].values():
        assert own["logs"] == 2 and len(own["policies"]) == len(result["truth"]) - 1
        assert set(own["coverage"]) == {"constants", "untrained networks", "BatchRL-MTF", "TD3 (corners)"}
        assert own["regret"]["worst"] >= own["regret"]["median"] >= 0.0
    assert "| session_return |" in (tmp_path / "closed_forms.md").read_text()
    assert {"whole_0", "whole_1"} <= set(told)
