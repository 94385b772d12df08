"""Supervised fusion: weights α(s) that put the items of a page in the order of their realised rewards.

No session, no discount: the pairwise logistic loss of BPR (Rendle et al. 2009) on the fusion score of
eq. (1). What BatchRL-MTF gains over it is what the whole page and the session's future add to the items.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.policies.learner import Learner
from training.policies.networks import MLP


class Supervised(Learner):
    """Learns from the shown items alone: their predictions, and the terms of the reward that they gave."""

    kind = "supervised"
    needs = ("item_scores", "item_rewards")
    curves = ("loss", "right_order")

    def build(self, d: int, k: int) -> None:
        if self.fusion is None:
            raise ValueError("the supervised learner ranks items: it needs the fusion formula")
        low, high, beta = (
            torch.tensor(values, dtype=torch.float32, device=self.device)
            for values in (self.fusion.low, self.fusion.high, self.fusion.beta)
        )
        self.low, self.width, self.beta = low, high - low, beta
        self.form = self.fusion.form
        self.policy = self.add("actor", MLP(d, self.settings.actor_hidden, k), self.settings.actor_lr)

    def step(self) -> Tensor:
        """One step on every pair of items of a page whose rewards differ."""
        batch = self.batch()
        assert self.data.item_scores is not None and self.data.item_rewards is not None  # it needs both
        scores, rewards = self.data.item_scores[batch.rows], self.data.item_rewards[batch.rows]
        # f(o | α(s)) = Σ_i α_i(s) · log(o_i + β_i), eq. (1); α from its action as Fusion.to_weights does
        alpha = self.low + 0.5 * (torch.tanh(self.policy(batch.s)) + 1.0) * self.width
        terms = torch.log(scores + self.beta) if self.form == "log_sum" else scores
        f = torch.einsum("bnk,bk->bn", terms, alpha)

        # mean over pairs r_i > r_j of −log σ(f_i − f_j); where there is no item, r is NaN and no pair
        pairs = rewards[:, :, None] > rewards[:, None, :]
        margin = f[:, :, None] - f[:, None, :]
        count = pairs.sum().clamp(min=1)
        loss = torch.where(pairs, F.softplus(-margin), 0.0).sum() / count
        self.descend("actor", loss)
        self.step_count += 1
        right = (pairs & (margin > 0.0)).sum() / count
        return torch.stack([loss, right]).detach()

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self.exported({"actor": self.policy})
