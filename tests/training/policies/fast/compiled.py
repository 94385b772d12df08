"""What a test of the compiled step is on a machine that cannot run it."""

from collections.abc import Callable

import pytest
import torch

from training.contract.errors import SettingsError
from training.contract.settings import LearnerSettings
from training.policies import fast
from training.policies.fast import library


def compiled(test: Callable[..., None]) -> Callable[..., None]:
    """A test where the compiled step runs; else one that the page is taken, and what it lacks refused."""

    def instead() -> None:
        cpu = torch.device("cpu")
        assert fast.precision(LearnerSettings(), cpu) == "float32"
        for asked in ("bfloat16", "int8"):
            with pytest.raises(SettingsError, match=rf"learner\.batchrl_mtf\.precision: {asked} needs"):
                fast.precision(LearnerSettings(batchrl_mtf={"precision": asked}), cpu)

    return test if library.LIBRARY is not None else instead
