"""K seeds of one learner as one policy: what a single seed learns of noise, the others do not.

The members learn from the same transitions, each with networks, batches and noise of its own seed. The served
action is the mean of what the members do (:class:`training.contract.policy.EnsembleActor`).
"""

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from training.contract.fusion import Fusion
from training.contract.settings import LearnerSettings
from training.policies.bandit import Bandit
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.learner import Learner
from training.trajectories import Transitions

_SHARED = "state_mean", "state_scale"  # of the transitions, so every member's


class Ensemble(Learner):
    """``learner.batchrl_mtf.members`` seeds of ``member``. One of them is that learner itself, bit for bit.

    A subclass names its ``member``; the rest of what a learner names is the member's.
    """

    member: ClassVar[type[BatchRLMTF]]
    actor = BatchRLMTF.actor
    sizes = (*BatchRLMTF.sizes, "batchrl_mtf.members")
    curves = BatchRLMTF.curves

    def build(self, d: int, k: int) -> None:
        count = self.settings.batchrl_mtf.members
        # the transitions are of several steps by now, and shared by all
        settings = self.settings.model_copy(update={"target_steps": 1})
        seeds = [self.seed, *(seed_of(self.seed, place) for place in range(1, count))]
        self.members = [self.member(settings, self.data, seed, self.fusion) for seed in seeds]
        fast = [member.fast for member in self.members if member.fast is not None]
        for (
            step
        ) in fast:  # a lane that waits looks for work: those of one member would hold the others' cores
            step.lanes = fast[0].lanes

    def step(self) -> Tensor:
        """One step of every member; the means of their curves."""
        points = []
        for member in self.members:
            member.step_count = self.step_count
            points.append(member.step())
        self.step_count += 1
        return torch.stack(points).mean(dim=0) if len(points) > 1 else points[0]

    def state(self) -> dict[str, Tensor]:
        if len(self.members) == 1:
            return self.members[0].state()
        own = super().state()
        return own | {
            f"{place}.{name}": tensor
            for place, member in enumerate(self.members)
            for name, tensor in member.state().items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        for member, own in zip(self.members, self._parts(tensors), strict=True):
            member.load_state(own)
        self.state_mean, self.state_scale = self.members[0].state_mean, self.members[0].state_scale
        self.step_count = int(tensors["step_count"])

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for member, own in zip(self.members, self._parts(tensors), strict=True):
            member.load_weights(own)
        self.state_mean, self.state_scale = self.members[0].state_mean, self.members[0].state_scale

    def _parts(self, tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """What :meth:`state` put together, a member each."""
        if len(self.members) == 1:
            return [tensors]
        return [
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for prefix in (f"{place}." for place in range(len(self.members)))
        ]

    @classmethod
    def arithmetic(cls, settings: LearnerSettings) -> str:
        return cls.member.arithmetic(settings)

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and options of :class:`training.contract.policy.EnsembleActor`."""
        tensors, options = self.members[0].export()
        if len(self.members) == 1:
            return tensors, options
        shared = {name: tensors[name] for name in _SHARED}
        for place, member in enumerate(self.members):
            own = member.export()[0]
            shared |= {f"{place}.{name}": tensor for name, tensor in own.items() if name not in _SHARED}
        return shared, options | {"members": len(self.members)}


class BatchRLMTFEnsemble(Ensemble):
    """What ``batchrl_mtf`` of ``learner.algorithms`` trains."""

    kind = BatchRLMTF.kind
    member = BatchRLMTF


class BanditEnsemble(Ensemble):
    """What ``bandit`` of ``learner.algorithms`` trains."""

    kind = Bandit.kind
    member = Bandit

    def __init__(
        self, settings: LearnerSettings, data: Transitions, seed: int, fusion: Fusion | None = None
    ) -> None:
        super().__init__(settings.model_copy(update={"gamma": 0.0}), data, seed, fusion)


def seed_of(seed: int, place: int) -> int:
    """The seed of a member after the first, whose seed is the ensemble's."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:6], "big")
