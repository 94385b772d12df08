"""What every learner on fixed transitions is: batches, noise, optimisers, and a state that can be resumed."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from training.contract.errors import DataError
from training.contract.fusion import Fusion
from training.contract.settings import LearnerSettings
from training.policies.networks import MLP, STATE_CLIP, StateMLP, standardisation, standardise
from training.policies.several_steps import over_steps
from training.trajectories import Transitions

Module = TypeVar("Module", bound=nn.Module)
_INDEX_BLOCK = 1_000  # steps whose batches are drawn at once


class Batch(NamedTuple):
    """B transitions as a step reads them; states are standardised."""

    rows: Tensor  # int64[B], of the transitions
    s: Tensor  # float32[B, d]
    a: Tensor  # float32[B, k]
    r: Tensor  # float32[B]
    next_s: Tensor  # float32[B, d]
    done: Tensor  # float32[B]


class Learner(ABC):
    """A learner: the same transitions, settings, seed, threads and machine give the same weights.

    A subclass names its ``kind`` (the algorithm, and what a learner file belongs to), the ``actor``
    that serving runs its export with (:func:`training.contract.policy.make_actor`), the ``curves``
    that :meth:`step` returns, what it ``needs`` of the optional tensors of :class:`Transitions`, and
    which settings, beside the shared widths, are ``sizes`` of its networks. :meth:`build` makes the networks,
    seeded, through :meth:`add` and :meth:`add_target`: what is registered there is what a checkpoint
    holds.
    """

    kind: ClassVar[str]
    actor: ClassVar[str] = "deterministic"
    needs: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[tuple[str, ...]] = ()
    curves: ClassVar[tuple[str, ...]]

    def __init__(
        self, settings: LearnerSettings, data: Transitions, seed: int, fusion: Fusion | None = None
    ) -> None:
        """``fusion`` is for learners that rank items. :class:`DataError` names what the data lack."""
        absent = [name for name in self.needs if getattr(data, name) is None]
        if absent:
            raise DataError(f"{self.kind} learns from {absent[0]}, which these transitions do not have")
        self.settings, self.seed, self.step_count = settings, seed, 0
        self._rows: tuple[int, Tensor] | None = None  # a block's number and batches
        self.fusion = fusion
        self.device = device(settings)
        self.data = over_steps(data, settings.target_steps, settings.gamma).to(self.device)
        self.noise = torch.Generator(self.device).manual_seed(seed)
        mean, scale = standardisation(self.data.states)
        self.state_mean, self.state_scale = mean, scale
        self.modules: dict[str, nn.Module] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.build(self.data.states.shape[1], self.data.actions.shape[1])

    @abstractmethod
    def build(self, d: int, k: int) -> None:
        """Networks for states of width ``d`` and actions of width ``k``."""

    @abstractmethod
    def step(self) -> Tensor:
        """One gradient step of every network; returns float32[len(curves)]. Must count ``step_count``."""

    @abstractmethod
    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and options of the actor that serving runs."""

    @classmethod
    def arithmetic(cls, settings: LearnerSettings) -> str:
        """What a step's products are in, for the lineage of a model."""
        return "float32"

    # parts of build

    def add(self, name: str, module: Module, lr: float) -> Module:
        """Register a network, with an Adam of its own."""
        self.modules[name] = module.to(self.device)
        self.optimisers[name] = torch.optim.Adam(module.parameters(), lr, fused=True)
        return module

    def add_target(self, name: str, online: Module) -> Module:
        """Register a copy of a network that no gradient reaches: see :meth:`track`."""
        self.modules[name] = target = copy.deepcopy(online).requires_grad_(False)
        return target

    # parts of a step

    def descend(self, name: str, loss: Tensor) -> None:
        """One step on the parameters of one optimiser and no other (an actor's loss also runs through Q)."""
        optimiser = self.optimisers[name]
        parameters = optimiser.param_groups[0]["params"]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimiser.step()

    @torch.no_grad()
    def track(self, online: nn.Module, target: nn.Module, rate: float) -> None:
        """target ← rate · online + (1 − rate) · target."""
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)

    def rows(self, step: int) -> Tensor:
        """M ~ the replay: int64[batch_size] of the transitions, uniform with replacement.

        They depend on seed and step number alone, so a resumed run draws the same ones.
        """
        block, at = divmod(step, _INDEX_BLOCK)
        if self._rows is None or self._rows[0] != block:
            generator = torch.Generator().manual_seed(self.seed + 7_919 * (block + 1))
            shape = (_INDEX_BLOCK, self.settings.batch_size)
            self._rows = block, torch.randint(len(self.data), shape, generator=generator).to(self.device)
        return self._rows[1][at]

    def batch(self, step: int | None = None) -> Batch:
        """The transitions :meth:`rows` of a step, or of this one."""
        rows, data = self.rows(self.step_count if step is None else step), self.data
        return Batch(
            rows,
            self.standardised(data.states.index_select(0, rows)),
            data.actions.index_select(0, rows),
            data.rewards.index_select(0, rows),
            self.standardised(data.next_states.index_select(0, rows)),
            data.dones.index_select(0, rows),
        )

    def standardised(self, states: Tensor) -> Tensor:
        return standardise(states, self.state_mean, self.state_scale)

    def normal(self, *shape: int) -> Tensor:
        """N(0, I) of the learner's own stream."""
        return torch.randn(*shape, generator=self.noise, device=self.device)

    # what a checkpoint holds, and what serving gets

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, beside transitions and settings."""
        tensors = {"state_mean": self.state_mean, "state_scale": self.state_scale}
        for name, module in self.modules.items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for index, moments in optimiser.state_dict()["state"].items():
                tensors |= {f"adam.{name}.{index}.{key}": value for key, value in moments.items()}
        tensors["noise"] = self.noise.get_state()
        tensors["step_count"] = torch.tensor(self.step_count)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on exactly where :meth:`state` was taken."""
        self.load_weights(tensors)
        for name, optimiser in self.optimisers.items():
            described = optimiser.state_dict()
            for index in range(len(described["param_groups"][0]["params"])):
                prefix = f"adam.{name}.{index}."
                moments = {
                    k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)
                }
                if moments:
                    described["state"][index] = moments
            optimiser.load_state_dict(described)
        self.noise.set_state(tensors["noise"].cpu())
        self.step_count = int(tensors["step_count"])

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Networks, and the standardisation they were trained with, but no optimiser: a warm start."""
        for name, module in self.modules.items():
            prefix = f"{name}."
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        self.state_mean = tensors["state_mean"].clone().to(self.device)
        self.state_scale = tensors["state_scale"].clone().to(self.device)

    def exported(
        self, networks: Mapping[str, MLP | StateMLP], **more: Tensor
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors ``<name>.<layer>.weight`` and ``.bias`` of StateMLPs, the standardisation, and ``more``."""
        tensors = {"state_mean": self.state_mean, "state_scale": self.state_scale, **more}
        for name, network in networks.items():
            tensors |= {f"{name}.{key}": value for key, value in network.layers.state_dict().items()}
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}, {"state_clip": STATE_CLIP}


def device(settings: LearnerSettings) -> torch.device:
    """``learner.device``; auto is CUDA where there is one."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)
