"""What the fitted estimators share: Q of every policy on the data and on resamples of its sessions.

All fits, of all policies, run at once as one ensemble. The fits of one resample share their initial
weights and their batches whatever the policy, so the difference of two policies is paired.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from training.contract.settings import EvaluationSettings
from training.evaluation.acting import Actions
from training.evaluation.intervals import resample
from training.policies.networks import EnsembleMLP, standardisation, standardise
from training.trajectories import Transitions

_CHUNK = 512  # states valued at once

# (Q, s, a, π(s), y) of a batch, [members, m, ·] each, to the loss of each member [members]
Loss = Callable[[EnsembleMLP, Tensor, Tensor, Tensor, Tensor], Tensor]


class FittedQ:
    """Fits P · (R + 1) networks Q_π(s, a): each policy on the data (fit 0) and on R resamples.

    One step descends ``loss`` with y = r + γ (1 − done) Q'(s', π(s')). Q' follows Q at ``target_rate`` a
    step; 1 makes it Q itself, the previous iterate. ``data`` must hold initial states. Deterministic
    in ``seed`` and the number of threads.
    """

    def __init__(
        self,
        data: Transitions,
        policies: Mapping[str, Actions],
        settings: EvaluationSettings,
        gamma: float,
        seed: int,
        loss: Loss,
        target_rate: float = 1.0,
    ) -> None:
        self.data, self.policies, self.settings = data, policies, settings
        self.generator = torch.Generator().manual_seed(seed)
        self.fits = fits = settings.replicates + 1
        self.counts = resample(data.sessions, settings.replicates, self.generator)
        drawn = [torch.arange(len(data)).repeat_interleave(count[data.sessions]) for count in self.counts]
        lengths = torch.tensor([[len(own)] for own in drawn])
        rows = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True, padding_value=-1)
        self.mean, self.scale = standardisation(data.states)
        s, next_s = self.standardised(data.states), self.standardised(data.next_states)
        here = torch.stack([actions.here for actions in policies.values()])  # [P, N, k]
        there = torch.stack([actions.next for actions in policies.values()])

        # members: [P, R + 1], the fits of one resample alike at the start for all policies
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            q = EnsembleMLP(fits, s.shape[1], here.shape[2], settings.hidden, 1)
        # Q starts at the value of a process with the data's mean reward and stopping rate: 1e-4 · K steps
        # are too few to climb there from 0, and the estimate would be low for every policy alike.
        p_continue = 1.0 - float(data.dones.mean())
        q.biases[-1].data.fill_(float(data.rewards.mean()) / (1.0 - gamma * p_continue))
        for parameters in (q.weights, q.biases):
            for layer, parameter in enumerate(parameters):
                parameters[layer] = parameter.detach().repeat(len(policies), 1, 1)
        target = q if target_rate == 1.0 else copy.deepcopy(q).requires_grad_(False)
        optimiser = torch.optim.Adam(q.parameters(), settings.lr, fused=True)

        def shared(x: Tensor) -> Tensor:
            """[R + 1, m, w] of the batches to [P (R + 1), m, w] of the members."""
            return x.expand(len(policies), *x.shape).flatten(0, 1)

        for _ in range(settings.steps):
            draws = torch.rand(fits, settings.batch_size, generator=self.generator)
            i = rows.gather(1, (draws * lengths).long())  # [R + 1, m]
            with torch.no_grad():
                (next_q,) = target(shared(next_s[i]), there[:, i].flatten(0, 1))
                y = (
                    shared(data.rewards[i][..., None])
                    + gamma * (1.0 - shared(data.dones[i][..., None])) * next_q
                )
            # summed over members, which share no parameter
            total = loss(q, shared(s[i]), shared(data.actions[i]), here[:, i].flatten(0, 1), y).sum()
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            if target is not q:
                with torch.no_grad():
                    torch._foreach_lerp_(list(target.parameters()), list(q.parameters()), target_rate)
        self.q = q

    def standardised(self, states: Tensor) -> Tensor:
        return standardise(states, self.mean, self.scale)

    @torch.no_grad()
    def values(self, states: Tensor, actions: Tensor) -> Tensor:
        """Q(s, a) float32[P, R + 1, n] of raw states [n, d] and each policy's actions [P, n, k]."""
        s, members = self.standardised(states), len(self.policies) * self.fits
        found = []
        for chunk in torch.arange(len(s)).split(_CHUNK):
            a = actions[:, None, chunk].expand(-1, self.fits, -1, -1).flatten(0, 1)
            (q,) = self.q(s[chunk].expand(members, -1, -1), a)
            found.append(q.view(len(self.policies), self.fits, len(chunk)))
        return torch.cat(found, dim=2)

    def initial_values(self) -> Tensor:
        """Eq. (9): the mean over initial states s0 of Q(s0, π(s0)), float64[P, R + 1].

        Each resample's is over its own sessions; at most ``initial_states`` are drawn.
        """
        first, most = torch.nonzero(self.data.steps == 0).flatten(), self.settings.initial_states
        if len(first) > most:
            first = first[torch.randperm(len(first), generator=self.generator)[:most]]
        a0 = torch.stack([actions.here[first] for actions in self.policies.values()])
        weights = self.counts[:, self.data.sessions[first]].double()
        values = self.values(self.data.states[first], a0).double()
        return (values * weights).sum(dim=2) / weights.sum(dim=1)
