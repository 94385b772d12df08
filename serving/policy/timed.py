"""A policy with a budget: an action in time, or the reason why there is none."""

import time
from collections.abc import Callable

import numpy as np

from training.contract.errors import PolicyError
from training.contract.policy import Policy

REST_S = 1.0  # a policy that was too slow is not asked for so long


class TooSlow(PolicyError):
    """The policy took longer than its budget, or is resting because it just did."""


class TimedPolicy:
    """Belongs to one thread. A policy's time does not depend on the state, so one that was too slow
    would be so again: it rests, requests are not held up meanwhile, and the next one after the rest
    tries it again. A policy that is always too slow so costs one batch a second its time.

    ``at_once`` states are asked for in one call, each call within the budget."""

    def __init__(
        self,
        policy: Policy,
        budget_s: float,
        clock: Callable[[], float] = time.perf_counter,
        at_once: int = 1,
    ) -> None:
        self.policy = policy
        self._budget_s, self._clock, self._at_once = budget_s, clock, at_once
        self._rests_until = 0.0

    @property
    def version(self) -> str:
        return self.policy.version

    def act(self, states: np.ndarray) -> np.ndarray:
        """:meth:`Policy.act`. Raises :class:`TooSlow`; the actions that came too late are dropped."""
        parts = range(0, len(states), self._at_once)
        return np.concatenate([self._act(states[at : at + self._at_once]) for at in parts])

    def _act(self, states: np.ndarray) -> np.ndarray:
        started = self._clock()
        if started < self._rests_until:
            raise TooSlow(f"policy {self.version} rests: it was too slow")
        actions = self.policy.act(states)
        now = self._clock()
        if now - started > self._budget_s:
            self._rests_until = now + REST_S
            raise TooSlow(
                f"policy {self.version} took {(now - started) * 1000:.0f} ms, more than "
                "serving.policy_budget_ms"
            )
        return actions
