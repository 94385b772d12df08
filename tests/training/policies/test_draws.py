"""Random numbers of a step: standard normals that depend on seed, step and draw alone."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from training.policies import fast
from training.policies.draws import Draws

CPU = torch.device("cpu")
KINDS = {type(fast.draws(7, CPU)), Draws}


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_they_are_standard_normal_and_of_their_own(kind: type[Draws]) -> None:
    def normal(seed: int, step: int, which: int) -> Tensor:
        return kind(seed, CPU).normal(step, which, 200_000)

    first, second = normal(7, 12, 0), normal(7, 12, 1)
    for drawn in (first, second):
        assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
        assert 4.0 < drawn.abs().max() < 6.0
    others = (normal(8, 12, 0), normal(7, 13, 0), second)
    pairs = [
        *((first, other) for other in others),
        *((first[lag:], first[:-lag]) for lag in (1, 2, 3, 16, 64)),
    ]
    for one, other in pairs:  # five standard errors of a correlation
        for both in (one * other, (one.square() - 1.0) * (other.square() - 1.0) / 2.0):
            assert abs(float(both.mean())) < 5.0 / len(one) ** 0.5
    assert torch.equal(normal(7, 12, 0), first) and torch.equal(normal(7, 12, 1), second)


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_of_more_rows_the_first_are_the_same_and_all_can_be_clipped(kind: type[Draws]) -> None:
    whole = kind(7, CPU).normal(12, 1, 256, 10, 24)
    for rows in (8, 64, 248):
        assert torch.equal(kind(7, CPU).normal(12, 1, rows, 10, 24), whole[:rows])
    assert torch.equal(kind(7, CPU).normal(12, 1, 256, 10, 24, clip=0.5), whole.clamp(-0.5, 0.5))
