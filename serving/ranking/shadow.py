"""How does the challenger rank in the shadow? Beside what is served, after requests were answered.

What it would have done is logged in a folder of its own, one line a request with the request's id. No
request waits for it: when it cannot keep up, requests are left out and counted.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import orjson

from serving.http.ids import logged
from serving.log.day_files import DayFiles, LogError
from serving.running.batches import ThreadBatches
from training.contract.errors import PolicyError
from training.contract.fusion import top
from training.contract.log import LINE_VERSION
from training.contract.policy import Policy

_CAPACITY = 256  # requests that wait: each holds its scores in memory


class Ranked(NamedTuple):
    """A request as it was served: state float32[d], scores float[n, k] of items int64[n]."""

    day: str
    event_ts: str
    request_id: str
    policy: Policy
    state: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    action: np.ndarray
    shown: np.ndarray


class Shadow:
    """``on_outcome`` is called with "ranked", "policy" (no usable action), "log" or "left_out", and for
    "ranked" with the share of the shown items that the challenger would have shown, too."""

    def __init__(self, files: DayFiles, on_outcome: Callable[[str, float | None], None]) -> None:
        self._files, self._on_outcome = files, on_outcome
        self._lane: ThreadBatches[Ranked, None] = ThreadBatches(
            "shadow", self._work, LogError, capacity=_CAPACITY
        )

    def add(self, ranked: Ranked) -> None:
        try:
            self._lane.put(ranked)
        except LogError:
            self._on_outcome("left_out", None)

    def close(self) -> None:
        self._lane.close()
        self._files.close()

    def _work(self, batch: list[Ranked]) -> None:
        lines, overlaps = [], []
        for one in batch:
            try:
                action = one.policy.act(one.state[None, :])[0]
                scores = one.policy.scores(one.scores, one.state, action)
            except PolicyError:
                self._on_outcome("policy", None)
                continue
            items = one.items[top(scores, len(one.shown))]
            line = {
                "v": LINE_VERSION,
                "request_id": one.request_id,
                "event_ts": one.event_ts,
                "policy_version": one.policy.version,
                "action": action,
                "served_action": one.action,
                "items": logged(items),
            }
            lines.append((one.day, orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)))
            overlaps.append(float(np.isin(items, one.shown).mean()))
        try:
            self._files.write(lines)
        except OSError:
            for _ in lines:
                self._on_outcome("log", None)
            raise
        for overlap in overlaps:
            self._on_outcome("ranked", overlap)
