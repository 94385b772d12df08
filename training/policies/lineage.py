"""Where a policy comes from: data, settings, code. Equal lineage on one machine means an equal policy."""

import importlib.metadata
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

from training.contract import code_sources
from training.contract.files import json_sha256
from training.contract.settings import Settings
from training.trajectories import Trajectories

_SECTIONS = ("seed", "heads", "fusion_form", "signals", "reward", "state", "session", "learner")
# they change how long a run takes, how often it saves or where it keeps its data, and nothing of its result
_WITHOUT_EFFECT = {"learner": {"checkpoint_every", "map_above_bytes", "threads"}}


def settings_hash(settings: Settings) -> str:
    """SHA-256 of the sections that what is learnt depends on."""
    values = settings.model_dump(mode="json", include=set(_SECTIONS), exclude=_WITHOUT_EFFECT)
    return json_sha256(values)


def code_version() -> str:
    """The git commit of this code where it lies in its repository, else the package's version."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        if answer.returncode == 0:
            return answer.stdout.strip()
    return importlib.metadata.version("mtf")


def code_sha256() -> str:
    """Of the sources that turn transitions into weights: a changed learner must not resume an old one."""
    return code_sources.sha256_of("training.policies.retrain")


def describe(
    settings: Settings,
    day: date,
    seed: int,
    data: Trajectories,
    arithmetic: dict[str, str],
) -> dict[str, Any]:
    """The lineage that the day's policies share; ``algorithm``, ``warm_start`` and ``leaning`` are each one's
    own.

    ``arithmetic``: by algorithm, what a learner's products are in
    (:meth:`training.policies.learner.Learner.arithmetic`).
    """
    return {
        "day": day.isoformat(),
        "partitions": data.partitions,
        # of the splits, and of the days that closed forms read themselves
        "data_sha256": json_sha256([data.sha256(), data.partitions]),
        "train": {"transitions": len(data.train), "arms": data.train.arm_counts()},
        "test": {"transitions": len(data.test), "arms": data.test.arm_counts()},
        "left_out": data.left_out,
        "warnings": list(data.warnings),
        "state_spec": data.state_spec,
        "settings_sha256": settings_hash(settings),
        "seed": seed,
        "code": code_version(),
        "code_sha256": code_sha256(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": arithmetic,
    }


def fingerprint(lineage: dict[str, Any]) -> str:
    """Key of a training run: what its result depends on, and nothing else of the lineage."""
    keys = (
        "algorithm",
        "day",
        "data_sha256",
        "settings_sha256",
        "seed",
        "warm_start",
        "code_sha256",
        "torch",
        "threads",
        "precision",
    )
    # of a policy for another weighting of the reward than the settings'
    leaning = [lineage["leaning"]] if "leaning" in lineage else []
    return json_sha256([*(lineage[key] for key in keys), *leaning])


def version(lineage: dict[str, Any]) -> str:
    """What a policy is called: its day, and eight digits of its fingerprint."""
    return f"{lineage['day']}-{fingerprint(lineage)[:8]}"
