"""Random transitions and small networks, for the tests that recompute a learner's formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from training.contract.fusion import Fusion, Head
from training.contract.settings import BatchRLMTFSettings, LearnerSettings
from training.trajectories import Transitions

D, K, N = 5, 3, 200


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def random_transitions() -> Callable[..., Transitions]:
    """A function of a seed and the share of last steps: 200 transitions, states of 5, actions of 3."""

    def make(seed: int = 0, dones: float = 0.2) -> Transitions:
        g = torch.Generator().manual_seed(seed)
        return Transitions(
            states=torch.randn(N, D, generator=g) * 3.0 + 1.0,
            actions=torch.rand(N, K, generator=g) * 2.0 - 1.0,
            rewards=torch.randn(N, generator=g),
            next_states=torch.randn(N, D, generator=g),
            next_actions=torch.zeros(N, K),
            dones=(torch.rand(N, generator=g) < dones).float(),
            action_means=torch.zeros(N, K),
            log_densities=torch.zeros(N, dtype=torch.float64),
            sessions=torch.arange(N),
            users=torch.arange(N),
            steps=torch.zeros(N, dtype=torch.int64),
            by_session=torch.zeros(N, dtype=torch.bool),
            arms=torch.zeros(N, dtype=torch.int64),
            arm_names=("random",),
            next_action_means=torch.zeros(N, K),
            watch_rewards=torch.randn(N, generator=g),
            item_scores=torch.rand(N, 4, K, generator=g),
            item_rewards=torch.randn(N, 4, generator=g),
        )

    return make


@pytest.fixture(scope="session")
def small() -> Callable[..., LearnerSettings]:
    """Learner settings with small networks and batches of 16; any may be named otherwise."""
    shared = {"batch_size": 16, "critic_hidden": (10, 12), "actor_hidden": (9, 8)}
    own = {
        "latent_clip": 0.5,  # narrower than any latent that is asked for: a clip that was left out is seen
        "candidates": 4,
        "serving_candidates": 7,
        "generator_hidden": (11, 9),
        "perturbation_hidden": (8,),
        "precision": "float32",  # as the plain recomputations are
    }

    def make(**values: Any) -> LearnerSettings:
        of_section = {name: values.pop(name) for name in BatchRLMTFSettings.model_fields if name in values}
        return LearnerSettings(**shared | values, batchrl_mtf=own | of_section)

    return make


@pytest.fixture(scope="session")
def three_heads() -> Fusion:
    """A fusion formula for the three entries of those actions."""
    return Fusion(
        (
            Head("click", beta=0.1, low=0.0, high=2.0, static=1.0),
            Head("like", beta=0.01, low=0.0, high=1.0, static=0.3),
            Head("hate", beta=0.05, low=-2.0, high=0.0, static=-0.2),
        )
    )
