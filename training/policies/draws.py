"""Random numbers of a step, which depend on the learner's seed, the step and what they are for alone."""

import math

import torch
from torch import Tensor

_BETWEEN_SEEDS = 15_485_863  # of two draws
_DRAWS = 3  # of a step
OF_Z, OF_CANDIDATES, OF_OWN = range(_DRAWS)  # z of eq. (3), latents of eq. (7) and of eq. (5)


class Draws:
    """Standard normals by PyTorch. A resumed run draws the same ones."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def normal(self, step: int, which: int, *shape: int, clip: float = math.inf) -> Tensor:
        """float32 of this shape, within ± clip; of a larger first dimension, more of the same."""
        seed = self.seed + _BETWEEN_SEEDS * (_DRAWS * step + which + 1)
        noise = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=noise, device=self.device).clamp_(-clip, clip)
