"""What do the requests that were ranked tell Prometheus? A batch at a time, when it is on disk."""

from collections import Counter as Multiset
from collections.abc import Sequence

import numpy as np

from serving.control import metrics
from serving.control.gathered import Gathered
from serving.ranking import arms
from serving.ranking.ranker import Decision
from training.contract.fusion import Fusion

# of a request; "wait" is for its turn to be ranked, "queue" for the thread that writes
STAGES = ("parse", "wait", "state", "policy", "fuse", "queue", "log")
_POLICY_ARMS = (arms.CHAMPION, arms.CHALLENGER)


class Measured:
    """Belongs to the decision log's thread."""

    def __init__(self, fusion: Fusion) -> None:
        self._heads = fusion.names
        self._stages = [metrics.stage_seconds.labels(stage) for stage in STAGES]
        self._actions: dict[str, list[Gathered]] = {}

    def logged(self, decisions: Sequence[Decision], times: Sequence[Sequence[float]]) -> None:
        """A batch; ``times`` of each request are when its stages began, and when the last one ended."""
        counted = Multiset((one.arm, one.fallback or "none") for one in decisions)
        for (arm, fallback), count in counted.items():
            metrics.ranked.labels(arm, fallback).inc(count)
        for arm in _POLICY_ARMS:
            actions = [one.action for one in decisions if one.arm == arm]
            if actions:
                for entry, values in zip(self._action(arm), np.array(actions).T.tolist(), strict=True):
                    entry.observe_all(values)
        for stage, values in zip(self._stages, np.diff(times).T.tolist(), strict=True):
            stage.observe_all(values)

    def _action(self, arm: str) -> list[Gathered]:
        """The histograms of the arm's action entries, made with its first one."""
        if arm not in self._actions:
            self._actions[arm] = [metrics.action.labels(arm, name) for name in self._heads]
        return self._actions[arm]
