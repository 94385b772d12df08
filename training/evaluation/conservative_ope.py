"""Conservative-OPEstimator (BatchRL-MTF §4): fitted Q evaluation with a CQL penalty, and its interval.

The paper's estimator gives a number and no interval. Here it is fitted once on the data, which gives the
value, and once on each of R bootstrap resamples of the sessions, which give the interval.
"""

from collections.abc import Mapping

from torch import Tensor

from training.contract.settings import EvaluationSettings
from training.evaluation.acting import Actions
from training.evaluation.fitted_q import FittedQ
from training.evaluation.intervals import Estimates
from training.policies.networks import EnsembleMLP
from training.trajectories import Transitions


def estimate(
    data: Transitions,
    policies: Mapping[str, Actions],
    settings: EvaluationSettings,
    gamma: float,
    seed: int,
) -> Estimates:
    """V̂ of each policy, eq. (9), by K steps of eq. (10); ``data`` must hold initial states."""

    def loss(q: EnsembleMLP, s: Tensor, a: Tensor, pi: Tensor, y: Tensor) -> Tensor:
        """Eq. (10): α_c · mean(Q(s, π(s)) − Q(s, a)) + ½ · mean((Q(s, a) − y)²)."""
        q_logged, q_policy = q(s, a, pi)
        conservative = (q_policy - q_logged).mean(dim=(1, 2))
        bellman = (q_logged - y).square().mean(dim=(1, 2))
        return settings.cql_weight * conservative + 0.5 * bellman

    # the bootstrap is Q_k, the previous iterate: there is no target net
    values = FittedQ(data, policies, settings, gamma, seed, loss).initial_values().numpy()
    return Estimates(
        values={name: float(values[p, 0]) for p, name in enumerate(policies)},
        replicates={name: values[p, 1:] for p, name in enumerate(policies)},
        confidence=settings.confidence,
    )
