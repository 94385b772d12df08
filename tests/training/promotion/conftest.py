"""A data folder with the records and the policy file that a day's stages leave before the gate."""

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from training.contract.policy import PolicyHeader, save_policy
from training.contract.records import write_record
from training.contract.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, empty_registry: Path) -> Settings:
    # the latency rule has a test of its own: here the machine may be busy
    settings = Settings(data=tmp_path, gate={"max_latency_ms": 2_000.0, "evidence": "offline"})
    settings.layout.mlflow.mkdir()
    shutil.copyfile(empty_registry, settings.layout.mlflow / "mlflow.db")
    return settings


def write_policy(settings: Settings, day: date, seed: int, hidden: int = 16, **changes: int) -> str:
    """A BatchRL-MTF policy with random weights; ``changes`` shifts a layer's width to break it."""
    rng = np.random.default_rng(seed)
    state, heads, latent = settings.state_spec.width, len(settings.heads), 2 * len(settings.heads)
    sizes = {
        "decoder": (state + latent, heads),
        "perturbation": (state + heads, heads),
        "critic": (state + heads, 1),
    }
    tensors = {
        "state_mean": np.zeros(state),
        "state_scale": np.ones(state),
        "latents": rng.normal(size=(10, latent)),
    }
    for name, (inputs, outputs) in sizes.items():
        inputs += changes.get(name, 0)
        tensors[f"{name}.0.weight"] = rng.normal(size=(hidden, inputs)) / np.sqrt(inputs)
        tensors[f"{name}.0.bias"] = np.zeros(hidden)
        tensors[f"{name}.1.weight"] = rng.normal(size=(outputs, hidden)) / np.sqrt(hidden)
        tensors[f"{name}.1.bias"] = np.zeros(outputs)
    header = PolicyHeader(
        "batchrl_mtf", f"p{seed}", settings.state_spec, settings.fusion, options={"rho": 0.15}
    )
    return save_policy(settings.layout.model(day) / "policy.safetensors", header, tensors)


def estimate(lower: float) -> dict:
    return {
        "lower": lower,
        "value": lower + 0.5,
        "upper": lower + 1.0,
        "alarm": False,
        "bound_share": 0.1,
    }


def difference(value: float) -> dict:
    return {"lower": value - 0.1, "value": value, "upper": value + 0.1}


Arrange = Callable[..., str]


@pytest.fixture
def arrange(settings: Settings) -> Arrange:
    """``arrange(day, seed, lower)`` leaves a day whose challenger passes every rule if it is above 1.1."""

    def make(day: date, seed: int = 1, lower: float = 1.2, champion: float | None = None) -> str:
        digest = write_policy(settings, day, seed)
        names = {"challenger": estimate(lower), "static": estimate(1.0)}
        if champion is not None:
            names["champion"] = estimate(champion)
        records = {
            "validate_landed": {"success": True, "suites": {}},
            "validate_transitions": {"success": True, "suites": {}},
            "validate_training_set": {"success": True, "suites": {}},
            "parity": {"compared": 500, "mismatched": 1, "share": 0.002, "worst": []},
            "train": {
                "transitions": 900,
                "pool": {
                    "batchrl_mtf": {
                        "policy": f"models/dt={day}/batchrl_mtf/policy.safetensors",
                        "sha256": digest,
                        "version": f"p{seed}",
                        "steps": 20,
                        "curves": {"step": [10, 20], "critic": [0.5, 0.4]},
                        "summary": {},
                    }
                },
                "lineage": {"seed": seed, "partitions": {"2026-01-05": "ab"}},
            },
            "evaluate": {
                "chosen": "batchrl_mtf",
                "policy": f"models/dt={day}/policy.safetensors",
                "sha256": digest,
                "version": f"p{seed}",
                "trusted": True,
                "estimates": names,
                "differences": {
                    f"challenger - {rival}": difference(lower - own["lower"])
                    for rival, own in names.items()
                    if rival != "challenger"
                },
                "jump": {"challenger vs champion": 0.2},
            },
        }
        for stage, record in records.items():
            write_record(settings.layout, day, stage, record)
        return digest

    return make
