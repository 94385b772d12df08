"""A step of BatchRL-MTF as tasks beside each other: what :meth:`BatchRLMTF.step` says, in another order."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from training.policies.fast.lanes import Lanes, Results, Task
from training.policies.fast.parts import DECODER, ENCODER, HALVES, Drawn, Owner, Parts


class Ahead(NamedTuple):
    """What was done for the steps to come, to be done by whichever lane is free.

    All of the first is drawn, and the gradient of its generator is taken.
    """

    now: Drawn
    following: Drawn


class FastStep:
    """The step of one learner, and the state of its Adam.

    The generator's gradient depends on nothing that the rest of a step changes: that of the next step is
    taken beside it.
    """

    def __init__(self, learner: Owner, in_eight: bool) -> None:
        self.learner, self.parts, self.lanes = learner, Parts(learner, in_eight), Lanes()
        self._ahead: Ahead | None = None
        self._pool: Tensor | None = None  # of a frozen generator
        self._tasks = {frozen: self._tasks_of(frozen) for frozen in (False, True)}

    @torch.no_grad()
    def step(self) -> Tensor:
        """One gradient step of each net; float32[6], the curves of the learner."""
        learner = self.learner
        with self.lanes as lanes:
            self._ahead = self._ahead or self._look_ahead()
            now, following = self._ahead
            did = lanes.run(self._tasks[learner.frozen(now.step)])
            self._ahead = Ahead(following, did["drawn"])
            learner.step_count += 1
            if learner.step_count % learner.settings.target_interval == 0:  # every L steps
                self.parts.track()
        reconstruction, kl, perturbation_q, y, first_loss, first_q, second_loss, second_q = (
            now.points.tolist()
        )
        losses, q = first_loss + second_loss, 0.5 * (first_q + second_q)
        return torch.tensor([reconstruction, kl, perturbation_q, losses, q, y])

    def state(self) -> dict[str, Tensor]:
        """Adam's, beside the networks' own."""
        flats = self.parts.flat.items()
        return {f"adam.{name}.{key}": value for name, flat in flats for key, value in flat.state().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, flat in self.parts.flat.items():
            flat.load_state({key: tensors[f"adam.{name}.{key}"] for key in flat.state()})

    def refresh(self) -> None:
        """The learner's weights and standardisation have changed from outside."""
        self.parts.refresh()
        self._ahead = self._pool = None

    def _tasks_of(self, frozen: bool) -> dict[str, Task]:
        """A step's, on what ``_ahead`` holds."""
        parts = self.parts
        halves = {f"decoder {half}": half for half in range(0 if frozen else HALVES)}
        shares = {f"values {share}": share for share in range(parts.shares)}
        bests = {f"best {half}": half for half in range(HALVES)}

        def descend_half(_: Results, half: int) -> None:
            parts.descend_half("generator", DECODER, half)

        def decode(result: Results) -> None:
            for half in halves:
                result(half)
            if not frozen:
                parts.descended("generator", DECODER)

        def draw(_: Results) -> Drawn:
            return parts.draw(self.learner.step_count + 2)

        def draw_latents(_: Results) -> None:
            self._draw_latents(self._done().following)

        def generate(result: Results) -> None:
            result("decoder")
            if not frozen:
                parts.descend("generator", ENCODER)
            self._generate(self._done().following)

        # P, then Q: both gradients are of the weights before
        def perturb(result: Results) -> None:
            result("decoder")
            parts.perturbation(self._done().now)
            parts.descend("perturbation")

        # max_a' min_j Q'_j(s', a'), a' from G and P'_ω, eq. (7)
        def values(result: Results, share: int) -> None:
            result("decoder")
            parts.values(self._done().now, share)

        def best(result: Results, half: int) -> None:
            for share in shares:
                result(share)
            parts.best(self._done().now, half)

        def target(result: Results) -> None:
            for half in bests:
                result(half)
            parts.target(self._done().now)

        def critic(result: Results, j: int) -> None:
            result("y")
            parts.critic(j, self._done().now)
            if j == 0:
                result("perturbation")  # whose gradient is of Q_1 as it was
            parts.descend("critics", j)

        # the longest first, so that both lanes end together; what is drawn needs no decoder
        return {
            **{name: partial(descend_half, half=half) for name, half in halves.items()},
            "decoder": decode,
            "drawn": draw,
            "latents": draw_latents,
            "generator": generate,
            "perturbation": perturb,
            **{name: partial(values, share=share) for name, share in shares.items()},
            **{name: partial(best, half=half) for name, half in bests.items()},
            "y": target,
            "second critic": partial(critic, j=1),
            "first critic": partial(critic, j=0),
        }

    def _done(self) -> Ahead:
        """What was done before the step that is running."""
        assert self._ahead is not None
        return self._ahead

    def _look_ahead(self) -> Ahead:
        step = self.learner.step_count
        now, following = self.parts.draw(step), self.parts.draw(step + 1)
        self._draw_latents(now)
        self._generate(now)
        return Ahead(now, following)

    def _generate(self, drawn: Drawn) -> None:
        """Leaves the generator's gradient in its place, where one is asked for."""
        if not self.learner.frozen(drawn.step):
            self.parts.generator(drawn)

    def _draw_latents(self, drawn: Drawn) -> None:
        frozen = self.learner.frozen(drawn.step)
        if frozen and self._pool is None:
            self._pool = self.learner.pool(torch.bfloat16)
        self.parts.draw_latents(drawn, self._pool if frozen else None)
