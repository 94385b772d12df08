"""What a finished unit of a table left: its result, and its arrays."""

from pathlib import Path
from typing import Any

import numpy as np

from training.contract.files import read_json

Key = tuple[str, int, str]  # world, seed, method


class Measured:
    """A finished unit, read from its JSON file and the arrays beside it."""

    def __init__(self, path: Path) -> None:
        self.result: dict[str, Any] = read_json(path)["result"]
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            self.arrays: dict[str, np.ndarray] = {name: file[name] for name in file.files}

    def estimate(self, estimator: str) -> float | None:
        offline = self.result["offline"]
        found = offline and offline["estimators"].get(estimator)
        return found["policy"]["value"] if found else None
