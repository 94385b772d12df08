"""Conservative-OPEstimator (BatchRL-MTF §4): fitted Q evaluation with a CQL penalty, and its interval.

The paper's estimator gives a number and no interval. Here it is fitted once on the data and once on
each of R bootstrap resamples of the sessions. All fits, of all policies, run at once as one ensemble;
the fits of one resample share their initial weights and their batches whatever the policy, so the
difference of two policies is paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from training.contract.settings import EvaluationSettings
from training.policies.networks import EnsembleMLP, standardisation, standardise
from training.trajectories import Transitions

_CHUNK = 512  # initial states valued at once


@dataclass(frozen=True)
class Actions:
    """What one policy does on the data: at s, and at s', each float32[N, k]."""

    here: Tensor
    next: Tensor


@dataclass(frozen=True)
class Estimates:
    """V̂ of each policy, eq. (9): of the fit on the data, and of the fits on the R resamples.

    ``interval`` is Student's t with R − 1 degrees of freedom around the fit on the data; its standard
    error is the root mean square deviation of the resampled fits from that fit. It holds the sampling
    of sessions, the seed of a fit, and the bias that less data brings (the deviation from their own
    mean would leave that out). Percentiles are not used: they would need hundreds of fits.
    """

    values: Mapping[str, float]
    replicates: Mapping[str, np.ndarray]  # float64[R]
    confidence: float

    def interval(self, name: str) -> dict[str, float]:
        return self._around(self.values[name], self.replicates[name])

    def difference(self, name: str, other: str) -> dict[str, float]:
        """Interval of V̂(name) − V̂(other), paired by resample."""
        return self._around(
            self.values[name] - self.values[other], self.replicates[name] - self.replicates[other]
        )

    def _around(self, value: float, replicates: np.ndarray) -> dict[str, float]:
        quantile = student_t.ppf(0.5 + self.confidence / 2.0, len(replicates) - 1)
        half = float(quantile * np.sqrt(np.square(replicates - value).mean()))
        return {"lower": value - half, "value": value, "upper": value + half}


def estimate(
    data: Transitions,
    policies: Mapping[str, Actions],
    settings: EvaluationSettings,
    gamma: float,
    seed: int,
) -> Estimates:
    """Fit every policy's Q on the data and its resamples; ``data`` must hold initial states.

    Deterministic in ``seed`` and the number of threads.
    """
    generator = torch.Generator().manual_seed(seed)
    fits, replicates = settings.replicates + 1, settings.replicates
    rows, counts = _resamples(data, replicates, generator)
    s_of, a_of = data.states.shape[1], data.actions.shape[1]
    mean, scale = standardisation(data.states)
    s, next_s = standardise(data.states, mean, scale), standardise(data.next_states, mean, scale)
    here = torch.stack([actions.here for actions in policies.values()])  # [P, N, k]
    there = torch.stack([actions.next for actions in policies.values()])

    # members: [P, R + 1], the fits of one resample alike at the start for all policies
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        q = EnsembleMLP(fits, s_of, a_of, settings.hidden, 1)
    # Q starts at the value of a process with the data's mean reward and stopping rate: 1e-4 · K steps
    # are too few to climb there from 0, and the estimate would be low for every policy alike.
    p_continue = 1.0 - float(data.dones.mean())
    q.biases[-1].data.fill_(float(data.rewards.mean()) / (1.0 - gamma * p_continue))
    for parameters in (q.weights, q.biases):
        for i, parameter in enumerate(parameters):
            parameters[i] = parameter.detach().repeat(len(policies), 1, 1)
    optimiser = torch.optim.Adam(q.parameters(), settings.lr, fused=True)

    def shared(x: Tensor) -> Tensor:
        """[R + 1, m, w] of the batches to [P (R + 1), m, w] of the members."""
        return x.expand(len(policies), *x.shape).flatten(0, 1)

    for _ in range(settings.steps):
        draws = torch.rand(fits, settings.batch_size, generator=generator)
        i = rows.gather(1, (draws * (rows >= 0).sum(dim=1, keepdim=True)).long())  # [R + 1, m]
        batch_s, batch_a = shared(s[i]), shared(data.actions[i])
        with torch.no_grad():  # the bootstrap is Q_k, the previous iterate: there is no target net
            (next_q,) = q(shared(next_s[i]), there[:, i].flatten(0, 1))
            y = (
                shared((data.rewards[i])[..., None])
                + gamma * (1.0 - shared(data.dones[i][..., None])) * next_q
            )
        q_logged, q_policy = q(batch_s, batch_a, here[:, i].flatten(0, 1))
        # eq. (10), summed over members, which share no parameter
        conservative = (q_policy - q_logged).mean(dim=(1, 2))
        bellman = (q_logged - y).square().mean(dim=(1, 2))
        loss = (settings.cql_weight * conservative + 0.5 * bellman).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    # eq. (9): the mean over initial states s0 of Q(s0, π(s0)), each resample over its own sessions
    first = torch.nonzero(data.steps == 0).flatten()
    if len(first) > settings.initial_states:
        first = first[torch.randperm(len(first), generator=generator)[: settings.initial_states]]
    weights = counts[:, data.sessions[first]].double()
    total = torch.zeros(len(policies), fits, dtype=torch.float64)
    with torch.no_grad():
        for chunk in first.split(_CHUNK):
            s0 = s[chunk].expand(len(policies) * fits, -1, -1)
            a0 = here[:, None, chunk].expand(-1, fits, -1, -1).flatten(0, 1)
            (values,) = q(s0, a0)
            values = values.double().view(len(policies), fits, -1)
            total += (values * counts[:, data.sessions[chunk]]).sum(dim=2)
    estimates = (total / weights.sum(dim=1)).numpy()
    return Estimates(
        values={name: float(estimates[p, 0]) for p, name in enumerate(policies)},
        replicates={name: estimates[p, 1:] for p, name in enumerate(policies)},
        confidence=settings.confidence,
    )


def _resamples(data: Transitions, replicates: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of the data and of R resamples of its sessions, and how often each session is in them.

    Rows are int64[R + 1, longest], filled up with −1; counts are int64[R + 1, sessions]. Row 0 is the
    data itself.
    """
    sessions = int(data.sessions.max()) + 1
    present = torch.unique(data.sessions)
    counts = torch.zeros(replicates + 1, sessions, dtype=torch.int64)
    counts[0, present] = 1
    for r in range(1, replicates + 1):
        drawn = present[torch.randint(len(present), (len(present),), generator=generator)]
        counts[r] = torch.bincount(drawn, minlength=sessions)
    everything = torch.arange(len(data))
    rows = [everything.repeat_interleave(count[data.sessions]) for count in counts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1), counts
