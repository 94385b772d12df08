"""Fitted Q evaluation with target networks and an ensemble (Le, Voloshin, Yue, ICML 2019).

    θ ← argmin  mean((Q(s, a) − r − γ (1 − done) Q'(s', π(s')))²),   θ' ← θ' + η (θ − θ')

Beside the paper's estimator it has no penalty, a target network Q' that follows slowly, and its value is
the mean of all R + 1 fits: averaging takes out most of what the seed of one fit brings in.
"""

from collections.abc import Mapping

from torch import Tensor

from training.contract.settings import EvaluationSettings
from training.evaluation.acting import Actions
from training.evaluation.fitted_q import FittedQ
from training.evaluation.intervals import Estimates
from training.policies.networks import EnsembleMLP
from training.trajectories import Transitions


def fit(
    data: Transitions,
    policies: Mapping[str, Actions],
    settings: EvaluationSettings,
    gamma: float,
    seed: int,
) -> FittedQ:
    """The ensemble; ``data`` must hold initial states."""

    def loss(q: EnsembleMLP, s: Tensor, a: Tensor, pi: Tensor, y: Tensor) -> Tensor:
        (q_logged,) = q(s, a)
        return 0.5 * (q_logged - y).square().mean(dim=(1, 2))

    return FittedQ(data, policies, settings, gamma, seed, loss, settings.target_rate)


def estimate(fitted: FittedQ) -> Estimates:
    """V̂ of each policy: the ensemble's mean of the mean of Q(s0, π(s0)) over initial states s0."""
    values = fitted.initial_values().numpy()
    return Estimates(
        values={name: float(values[p].mean()) for p, name in enumerate(fitted.policies)},
        replicates={name: values[p, 1:] for p, name in enumerate(fitted.policies)},
        confidence=fitted.settings.confidence,
    )
