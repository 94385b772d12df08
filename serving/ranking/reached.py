"""What is known of a request, by how far it has come? A type is named for the stage, and holds what is known
from there on."""

from datetime import datetime
from typing import NamedTuple

import numpy as np

from serving.http.requests import RankRequest
from serving.log.index.request_index import ServedRequest
from serving.policy.follower import ServedPolicy
from serving.ranking.ranker import Decision, PolicyAnswer
from serving.ranking.shadow import Ranked


class Parsed(NamedTuple):
    """The body is read. ``times``: ``perf_counter`` as each of serving.ranking.measured.STAGES began."""

    request: RankRequest
    request_id: str
    event_ts: datetime
    accept: str
    times: list[float]


class WithState(NamedTuple):
    """Session and state are read. The session began in ``epoch``; ``held`` is its arm so far, None for a new
    one; ``state`` float32[d], None when the store gave none, with features up to ``features_until``."""

    parsed: Parsed
    session_id: str
    epoch: int
    held: str | None
    state: np.ndarray | None
    features_until: datetime | None


class Assigned(NamedTuple):
    """The arm is drawn, and its policy was asked. ``serving`` is what the arm serves by: the challenger for
    its own, the champion for the others, None where there is none. ``missing`` says why there is no state to
    act by. ``answer`` is the policy's, None without a policy; of an arm that asks none it has no action."""

    read: WithState
    arm: str
    serving: ServedPolicy | None
    challenger: ServedPolicy | None
    missing: str | None
    answer: PolicyAnswer | None


class Chosen(NamedTuple):
    """The action, and so the weights, are chosen."""

    assigned: Assigned
    decision: Decision


class Ordered(NamedTuple):
    """The candidates are in order: ``items`` int64[k] and ``scores`` float64[k] are shown, best first, whose
    ``predictions`` are float64[k, heads]; ``weights`` float64[heads] made the scores. ``decision`` is what
    is served, which is not what was chosen when a policy that ranks by itself could not."""

    assigned: Assigned
    decision: Decision
    weights: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    predictions: np.ndarray


class Encoded(NamedTuple):
    """The line for the log and the answer are written out. Nothing holds the candidates any more, but for a
    request that the challenger is to rank, too. ``named``: the caller made the request's id."""

    day: str
    line: bytes
    served: ServedRequest
    decision: Decision
    shadowed: Ranked | None
    answer: bytes
    times: list[float]
    named: bool
