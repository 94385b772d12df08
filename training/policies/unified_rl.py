"""UnifiedRL (Liu et al., arXiv 2404.17589): an actor kept in the box that was explored, with grouped critics.

The box lies around μ_b(s), the mean of the policy that explores at present: what lies farther than its
half-width from it is not seen there. Letters: π actor, Q_{g,e} critic e of the group g of rewards
(watch: play time and integrity of eq. (2); interaction: the rest), w_g weight of a group, η weight of
leaving the box, λ weight of the critics' spread. Exploring, logging and training again, round by round,
moves the box, and all that was logged in earlier boxes still teaches the critics: the daily loop does it, or
rounds of ``mtf experiment``.

Ours, where its text is silent: the distance to the box is summed squared over the action's entries in
the actor's loss, and the largest entry's in the bootstrap's decay exp(−decay · distance); the actor's Q
terms are divided by the batch's mean |Σ_g w_g Q_g| (as in TD3+BC), so that η does not depend on the
unit of the reward; every critic bootstraps from its own target, so that their spread says how little
is known; without a present policy the box lies around the mean that was logged with the row's own action,
and that of the random group, which drew from everywhere, is then the whole action space.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.contract.fusion import Fusion
from training.contract.settings import LearnerSettings
from training.policies.learner import Learner
from training.policies.networks import MLP, EnsembleMLP
from training.trajectories import Transitions

# raw states float32[n, d] to the means [n, k] of the policy that explores at present
Behaviour = Callable[[np.ndarray], np.ndarray]
_RANDOM = "random"  # the arm without a prior


class UnifiedRL(Learner):
    """Deterministic actor and two groups of E critics on fixed transitions."""

    kind = "unified_rl"
    needs = ("watch_rewards",)
    sizes = ("unified_rl.critics",)
    curves = ("actor_loss", "outside", "spread", "critic_loss", "q", "target")

    def __init__(
        self,
        settings: LearnerSettings,
        data: Transitions,
        seed: int,
        fusion: Fusion | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        """``behaviour`` is the present champion: the box is around its means, and not around old ones."""
        self.behaviour = behaviour
        super().__init__(settings, data, seed, fusion)

    def build(self, d: int, k: int) -> None:
        settings, own = self.settings, self.settings.unified_rl
        self.policy = self.add("actor", MLP(d, settings.actor_hidden, k), settings.actor_lr)
        # both groups are one ensemble: critics 0 to E − 1 are of the watch reward
        critics = EnsembleMLP(2 * own.critics, d, k, settings.critic_hidden, 1)
        self.critics = self.add("critics", critics, settings.critic_lr)
        self.target_policy = self.add_target("target_actor", self.policy)
        self.target_critics = self.add_target("target_critics", self.critics)
        self.weights = torch.tensor([own.watch_weight, own.interaction_weight], device=self.device)
        watch = self.data.watch_rewards
        assert watch is not None  # the learner needs them
        self.rewards = torch.stack([watch, self.data.rewards - watch])  # [2, N]
        if self.behaviour is not None:
            self.means, self.next_means = (
                self._present(states) for states in (self.data.states, self.data.next_states)
            )
            self.half_width = torch.full((len(self.data),), own.box, device=self.device)
        else:
            assert self.data.next_action_means is not None  # every set with action_means has them
            self.means, self.next_means = self.data.action_means, self.data.next_action_means
            everywhere = torch.tensor([name == _RANDOM for name in self.data.arm_names], device=self.device)
            # the next request is of the same session, so of the same arm
            self.half_width = torch.where(everywhere, 2.0, own.box)[self.data.arms]

    def _present(self, states: Tensor) -> Tensor:
        """Means float32[N, k] of the present policy at raw states [N, d]."""
        assert self.behaviour is not None
        means = np.asarray(self.behaviour(states.cpu().numpy()), dtype=np.float32)
        return torch.from_numpy(means).to(self.device)

    def values(self, critics: EnsembleMLP, s: Tensor, a: Tensor) -> Tensor:
        """Q_{g,e}(s, a): float32[2, E, B]."""
        members = 2 * self.settings.unified_rl.critics
        (q,) = critics(s.expand(members, -1, -1), a.expand(members, -1, -1))
        return q.view(2, members // 2, len(s))

    def step(self) -> Tensor:
        """One gradient step of the critics, then of the actor."""
        settings, own = self.settings, self.settings.unified_rl
        rows, s, a, _, next_s, done = self.batch()
        box = self.half_width[rows, None]

        # y_{g,e} = r_g + γ (1 − done) exp(−decay · distance of π'(s') to the box at s') Q'_{g,e}(s', π'(s'))
        with torch.no_grad():
            next_a = torch.tanh(self.target_policy(next_s))
            distance = beyond(next_a, self.next_means[rows], box).amax(dim=1)
            bootstrap = settings.gamma * (1.0 - done) * torch.exp(-own.decay * distance)
            next_q = self.values(self.target_critics, next_s, next_a)
            y = self.rewards[:, rows][:, None] + bootstrap * next_q

        q = self.values(self.critics, s, a)
        critic_loss = (y - q).square().mean(dim=2).sum()
        self.descend("critics", critic_loss)

        # −Σ_g w_g mean_e Q_{g,e}(s, π(s)) + η · leaving the box + λ Σ_g w_g std_e Q_{g,e}
        chosen = torch.tanh(self.policy(s))
        chosen_q = self.values(self.critics, s, chosen)
        value = self.weights @ chosen_q.mean(dim=1)
        spread = self.weights @ chosen_q.std(dim=1)
        outside = beyond(chosen, self.means[rows], box).square().sum(dim=1).mean()
        unit = value.abs().mean().detach().clamp(min=1e-6)
        actor_loss = (own.spread * spread - value).mean() / unit + own.outside * outside
        self.descend("actor", actor_loss)

        self.step_count += 1
        if self.step_count % settings.target_interval == 0:
            self.track(self.critics, self.target_critics, settings.target_rate)
            self.track(self.policy, self.target_policy, settings.target_rate)
        points = (actor_loss, outside, spread.mean(), critic_loss, value.mean(), y.sum(dim=0).mean())
        return torch.stack(points).detach()

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self.exported({"actor": self.policy})

    @torch.no_grad()
    def act(self, states: Tensor) -> Tensor:
        """π(s): raw states [B, d] to actions [B, k]."""
        return torch.tanh(self.policy(self.standardised(states)))


def beyond(actions: Tensor, means: Tensor, half_width: Tensor | float) -> Tensor:
    """How far each entry lies outside of means ± half_width; 0 within."""
    return ((actions - means).abs() - half_width).clamp(min=0.0)
