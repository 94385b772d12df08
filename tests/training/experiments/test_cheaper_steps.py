"""Steps in lower precision learn policies of the same return."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.training.policies.fast.compiled import compiled
from training.experiments import load_table, run
from training.experiments.run import Unit

SMALL = Path(__file__).with_name("small.yaml")


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_lower_precision_brings_the_same_return(tmp_path: Path, precision: str) -> None:
    """Paired by session, over three logs; the interval must lie within 2 % of the return, around 0."""
    values = yaml.safe_load(SMALL.read_text()) | {
        "seeds": [1, 2, 3],
        "baseline": "float32",
        "logs": {"mixed": {"sessions": 1_500}},
        "judge": {"sessions": 1_500, "curve_sessions": 20, "checkpoints": 1, "log": "mixed"},
        "columns": ["session_return"],
        "methods": [
            {"name": name, "kind": "learner", "learner": {"batchrl_mtf": {"precision": name}}}
            for name in ("float32", precision)
        ],
    }
    values["settings"]["world"] = {"users": 600, "items": 1_000, "requests_per_day": 1_500}
    values["settings"]["learner"] = {
        "algorithms": ["batchrl_mtf"],
        "steps": 800,
        "critic_lr": 0.001,
        "critic_hidden": [64, 64],
        "batchrl_mtf": {
            "perturbation_lr": 0.001,
            "generator_hidden": [64, 64],
            "perturbation_hidden": [64, 64],
            "serving_candidates": 20,
        },
    }
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(values))
    table = load_table(path)
    run(table, tmp_path / "out", workers=2)

    def returns(method: str) -> np.ndarray:
        files = (
            Unit("log_sum", seed, method).path(tmp_path / "out").with_suffix(".npz") for seed in table.seeds
        )
        return np.stack([np.load(file, allow_pickle=False)["session_return"] for file in files])

    exact, rough = returns("float32"), returns(precision)
    assert (exact != rough).any()  # they are not the same policy
    difference = (rough - exact).mean(axis=1)
    half = 1.96 * (rough - exact).std() / np.sqrt(exact.size)
    assert abs(difference.mean()) + half < 0.02 * exact.mean(), (difference, half)
