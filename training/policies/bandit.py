"""The γ = 0 bandit: the immediate reward alone, by the same networks and the same distance from the data.

What BatchRL-MTF gains over it is what looking ahead gains.
"""

from training.contract.fusion import Fusion
from training.contract.settings import LearnerSettings
from training.policies.batchrl_mtf import BatchRLMTF
from training.trajectories import Transitions


class Bandit(BatchRLMTF):
    """BatchRL-MTF whose target is r."""

    kind = "bandit"

    def __init__(
        self, settings: LearnerSettings, data: Transitions, seed: int, fusion: Fusion | None = None
    ) -> None:
        super().__init__(settings.model_copy(update={"gamma": 0.0}), data, seed, fusion)
