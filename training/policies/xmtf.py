"""xMTF (Cao et al., WWW 2025, arXiv 2504.05669): fusion by learnt monotone cells instead of a formula.

Letters: o_k prediction of head k, x_k = log(o_k + β_k), h_k(x_k, s) the head's cell, Σ_k h_k the score
that orders the list. Two stages, learnt at the same time:

- *outer*, by RL: an action a(s) with few entries says how the present scores are to be changed;
- *inner*, supervised: the cells learn the order that the outer stage gives, from pairs of predictions
  (pairwise BPR loss).

In the first round the log was ranked by the formula, so the outer action is its weight vector and the
teacher is f(o | α(s)) of eq. (1). In later rounds the log was ranked by :class:`Modulation` of the last
round's cells; its actions are no fusion weights, so such a learner is never exported. A round::

    outer = Modulation.of(learner.cells, data)  # what is explored around action 0, the present order
    arm = Arm("noise", zeros, std, rank=lambda requests, s, a: scores(outer, requests.predictions, s, a))
    data = collect(bench, [arm], seed)
    learner = XMTF(settings, data, seed, fusion, outer)  # train it; scores(learner.cells, o, s) ranks

The outer stage is BatchRL-MTF's learner (the paper's is an actor-critic without a constraint). A cell is
monotone by its structure, so the paper's hinge on its slope would be 0 throughout and is left out.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.contract.errors import DataError
from training.contract.fusion import Fusion
from training.contract.settings import LearnerSettings
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.networks import MLP, standardisation, standardise
from training.trajectories import Transitions

_SAMPLE = 4_096  # states, and items of each, from which the range of the cells is taken
_DRAWN = 20  # serving candidates at least: none are chosen, as the cells learn the order of fixed ones


class Cells(nn.Module):
    """h_k(x, s) = ±(c x + Σ_j u_j tanh(v_j x + b_j)) with c, u, v > 0; these and b are functions of s.

    Increasing in o_k, or decreasing for a head whose weight cannot be positive (its interval's high is at
    most 0), whatever the weights. It keeps the standardisation of its inputs, so it can rank without
    the learner that made it.
    """

    beta: Tensor
    x_mean: Tensor
    x_scale: Tensor
    sign: Tensor
    state_mean: Tensor
    state_scale: Tensor

    def __init__(
        self,
        fusion: Fusion,
        items: Tensor,
        states: tuple[Tensor, Tensor],
        hidden: tuple[int, ...],
        units: int,
    ) -> None:
        """``items`` float32[M, k] predictions and ``states`` their mean and scale [d] to standardise by."""
        super().__init__()
        self.units = units
        self.net = MLP(len(states[0]), hidden, len(fusion.heads) * (1 + 3 * units))
        beta = torch.tensor(fusion.beta, dtype=torch.float32, device=items.device)
        x_mean, x_scale = standardisation(torch.log(items + beta))
        falls = torch.tensor(fusion.high <= 0.0, device=items.device)
        self.register_buffer("beta", beta)
        self.register_buffer("x_mean", x_mean)
        self.register_buffer("x_scale", x_scale)
        self.register_buffer("sign", torch.where(falls, -1.0, 1.0))
        self.register_buffer("state_mean", states[0].clone())
        self.register_buffer("state_scale", states[1].clone())

    def parts(self, predictions: Tensor, states: Tensor) -> Tensor:
        """h_k: predictions [B, n, k] and raw states [B, d] to [B, n, k]."""
        x = (torch.log(predictions + self.beta) - self.x_mean) / self.x_scale
        out = self.net(standardise(states, self.state_mean, self.state_scale))
        out = out.view(len(states), 1, x.shape[-1], 1 + 3 * self.units)
        c, u, v, b = out.split([1, self.units, self.units, self.units], dim=-1)
        bends = (F.softplus(u) * torch.tanh(F.softplus(v) * x[..., None] + b)).sum(dim=-1)
        return self.sign * (F.softplus(c[..., 0]) * x + bends)

    def forward(self, predictions: Tensor, states: Tensor) -> Tensor:
        """Scores Σ_k h_k: [B, n]."""
        return self.parts(predictions, states).sum(dim=-1)


class Formula(nn.Module):
    """f(o | α), eq. (1) or the plain weighted sum, of actions in [-1, 1]: the first round's outer stage."""

    low: Tensor
    high: Tensor
    beta: Tensor

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.form = fusion.form
        for name in ("low", "high", "beta"):
            self.register_buffer(name, torch.tensor(getattr(fusion, name), dtype=torch.float32))

    def forward(self, predictions: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Predictions [B, n, k], actions [B, k] to scores [B, n]; the states are not used."""
        weights = self.low + (actions + 1.0) * 0.5 * (self.high - self.low)
        terms = torch.log(predictions + self.beta) if self.form == "log_sum" else predictions
        return torch.einsum("bnk,bk->bn", terms, weights)


class Modulation(nn.Module):
    """Σ_k w_k q_k (1 + a_k q_k): the outer stage on the cells of the round before.

    q_k = (h_k − low_k) / (2 w_k) lies in [0, ½] for what was logged, so that no a_k in [-1, 1] turns a head
    round; w_k, the range of h_k there, makes action 0 the cells' own order.
    """

    low: Tensor
    width: Tensor

    def __init__(self, cells: Cells, low: Tensor, width: Tensor) -> None:
        super().__init__()
        self.cells = cells
        self.register_buffer("low", low)  # [k]
        self.register_buffer("width", width)  # [k]

    @classmethod
    @torch.no_grad()
    def of(cls, cells: Cells, data: Transitions) -> "Modulation":
        """Around the order of ``cells``, on the states and items of a log."""
        device = cells.beta.device
        items = shown_items(data).to(device)
        some = torch.Generator().manual_seed(0)
        rows = torch.randint(len(data), (_SAMPLE, 1), generator=some).to(device)
        which = torch.randint(len(items), (_SAMPLE, 1), generator=some).to(device)
        h = cells.parts(items[which[:, 0]][:, None], data.states.to(device)[rows[:, 0]]).squeeze(1)
        low, high = h.amin(dim=0), h.amax(dim=0)
        return cls(cells, low, (high - low).clamp(min=1e-6))

    def forward(self, predictions: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Predictions [B, n, k], raw states [B, d], actions [B, k] to scores [B, n]."""
        q = (self.cells.parts(predictions, states) - self.low) / (2.0 * self.width)
        return (self.width * q * (1.0 + actions[:, None] * q)).sum(dim=-1)


@torch.no_grad()
def scores(ranker: nn.Module, *inputs: np.ndarray) -> np.ndarray:
    """What :class:`Cells` or a teacher makes of numpy arrays: predictions [B, n, k], states, actions."""
    device = next(ranker.buffers()).device
    tensors = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device) for x in inputs]
    return ranker(*tensors).double().cpu().numpy()


def shown_items(data: Transitions) -> Tensor:
    """float32[M, k]: the predictions of all shown items of a log."""
    assert data.item_scores is not None and data.item_rewards is not None  # the learner needs both
    items = data.item_scores[torch.isfinite(data.item_rewards)]
    if len(items) < 2:
        raise DataError(f"xmtf learns from pairs of shown items; the log has {len(items)} items")
    return items


class XMTF(BatchRLMTF):
    """Outer stage: the learner of the base class. Inner stage: ``cells``, distilled from its order."""

    kind = "xmtf"
    actor = "xmtf"
    needs = ("item_scores", "item_rewards")
    sizes = (*BatchRLMTF.sizes, "xmtf.hidden", "xmtf.units")
    curves = (*BatchRLMTF.curves, "ranking")

    def __init__(
        self,
        settings: LearnerSettings,
        data: Transitions,
        seed: int,
        fusion: Fusion,
        outer: Modulation | None = None,
    ) -> None:
        """``outer`` is what ranked ``data``; None is the fusion formula."""
        self.outer = outer
        super().__init__(settings, data, seed, fusion)

    def build(self, d: int, k: int) -> None:
        super().build(d, k)
        own, fusion = self.settings.xmtf, self.fusion
        assert fusion is not None  # the constructor asks for it
        self.items = shown_items(self.data)
        states = (self.state_mean, self.state_scale)
        cells = Cells(fusion, self.items, states, own.hidden, own.units)
        self.cells = self.add("cells", cells, own.lr)
        if self.outer is not None:
            self.cells.load_state_dict(self.outer.cells.state_dict())
            self.modules["outer"] = self.outer.requires_grad_(False)
        self.teacher = (self.outer or Formula(fusion)).to(self.device)
        self.latents = self.drawn_latents(max(_DRAWN, self.settings.batchrl_mtf.serving_candidates)).to(
            self.device
        )

    def step(self) -> Tensor:
        """One step of the outer stage's networks, then one of the cells."""
        points, own = super().step(), self.settings.xmtf
        rows = self.random_integers(len(self.data), own.states)
        pairs = self.random_integers(len(self.items), own.states, own.pairs, 2)
        states, o = self.data.states[rows], self.items[pairs].flatten(1, 2)
        # BPR: −log σ(f_i − f_j) where the teacher ranks i before j
        with torch.no_grad():
            taught = self.teacher(o, states, self.act(states, self.latents)).view(pairs.shape)
            before = torch.sign(taught[..., 0] - taught[..., 1])
        f = self.cells(o, states).view(pairs.shape)
        ranking = F.softplus(-before * (f[..., 0] - f[..., 1])).mean()
        self.descend("cells", ranking)
        return torch.cat([points, ranking.detach()[None]])

    def serving_latents(self) -> Tensor:
        """Those whose actions' order the cells have learnt."""
        return self.latents.cpu()

    def random_integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.noise, device=self.device)

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and options of :class:`training.contract.policy.XMTFActor`."""
        if self.outer is not None:
            raise ValueError("the outer actions of a later round are no fusion weights: rank with its cells")
        tensors, options = super().export()
        net = {
            f"cells.{name}": value.cpu().numpy() for name, value in self.cells.net.layers.state_dict().items()
        }
        inputs = {
            name: getattr(self.cells, name).cpu().numpy() for name in ("beta", "x_mean", "x_scale", "sign")
        }
        return tensors | net | inputs, options | {"units": self.cells.units}
