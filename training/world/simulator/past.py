"""A past for the simulated world: days served in this process, landed as the service's would be.

Learning starts from a log that explored. Serving its many days through HTTP would take longer than
all that is to be shown, so they are ranked here, by the service's own code that the caller brings.
"""

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from training.contract.epochs import epoch_of_day
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.log import decision
from training.contract.settings import Settings
from training.ingest import land
from training.ingest.schema import TIMESTAMP
from training.world.simulator.constants import EVENT_COLUMNS
from training.world.simulator.drivers import run_day_inprocess, users_of
from training.world.simulator.sessions import Outcome, Requests

SOURCE = "world"


class Decided(Protocol):
    """What was decided for one request: see ``serving.ranking.ranker.Decision``."""

    @property
    def arm(self) -> str: ...
    @property
    def policy_version(self) -> str: ...
    @property
    def action(self) -> np.ndarray: ...
    @property
    def mean(self) -> np.ndarray: ...
    @property
    def log_density(self) -> float | None: ...
    @property
    def fallback(self) -> str | None: ...
    @property
    def exploration_unit(self) -> str | None: ...


Decide = Callable[[Requests, np.ndarray], Sequence[Decided]]


def land_past(settings: Settings, day: date, decide: Decide) -> dict[str, Any]:
    """Simulate ``day`` with the actions of ``decide(requests, states float32[b, d])``, one a request.

    Lands its impressions, decisions and users; returns their notes.
    """
    impressions: list[pa.Table] = []
    decisions: list[pa.Table] = []
    latest: Sequence[Decided] = ()

    def choose(states: np.ndarray, requests: Requests) -> np.ndarray:
        nonlocal latest
        latest = decide(requests, states)
        return np.stack([decided.action for decided in latest])

    def observe(requests: Requests, states: np.ndarray, actions: np.ndarray, outcome: Outcome) -> None:
        impressions.append(_impressions(settings, requests, outcome))
        decisions.append(_decisions(settings, requests, states, latest))

    run_day_inprocess(
        settings, day, choose, arms=lambda requests: [decided.arm for decided in latest], observe=observe
    )
    return {
        IMPRESSIONS: land(settings, IMPRESSIONS, day, pa.concat_tables(impressions), SOURCE),
        DECISIONS: land(settings, DECISIONS, day, pa.concat_tables(decisions), SOURCE),
        USERS: land(settings, USERS, day, users_of(settings, day), SOURCE),
    }


def _decisions(
    settings: Settings, requests: Requests, states: np.ndarray, decided: Sequence[Decided]
) -> pa.Table:
    """Rows of the decisions contract of one batch."""

    def vectors(values: np.ndarray) -> pa.Array:
        rows, width = values.shape
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
        return pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32).ravel()))

    def texts(values: list[str | None]) -> pa.Array:
        return pa.array(values, pa.string())

    count, epoch_days = len(decided), settings.serving.exploration.epoch_days
    return pa.table(
        decision(
            request_id=requests.request_id,
            session_id=requests.session_id,
            user_id=requests.user_id,
            event_ts=_times(requests.event_ts),
            policy_version=[d.policy_version for d in decided],
            arm=[d.arm for d in decided],
            state=vectors(states),
            action=vectors(np.stack([d.action for d in decided])),
            action_mean=vectors(np.stack([d.mean for d in decided])),
            log_density=pa.array([d.log_density for d in decided], pa.float64()),
            exploration_unit=texts([d.exploration_unit for d in decided]),
            epoch=np.full(count, epoch_of_day(requests.day, epoch_days)),
            fallback=texts([d.fallback for d in decided]),
            state_spec=[settings.state_spec.version] * count,
            features_until=pa.nulls(count, TIMESTAMP),  # the world's states are made in place
        )
    )


def _times(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype("datetime64[us]")).cast(pa.timestamp("us")).cast(TIMESTAMP)


def _impressions(settings: Settings, requests: Requests, outcome: Outcome) -> pa.Table:
    """Rows of the impressions contract of one batch of answered requests."""
    shown = outcome.item_id
    page = shown.shape[1]
    place = (requests.item_ids[:, None, :] == shown[:, :, None]).argmax(axis=2)
    predictions = np.take_along_axis(requests.predictions, place[:, :, None], axis=1)

    columns: dict[str, Any] = {
        "request_id": np.repeat(requests.request_id, page),
        "session_id": np.repeat(requests.session_id, page),
        "user_id": np.repeat(requests.user_id, page),
        "item_id": shown.ravel(),
        "event_ts": _times(np.repeat(requests.event_ts, page)),
        "feedback_ts": _times(np.repeat(outcome.feedback_ts, page)),
        "position": np.tile(np.arange(page, dtype=np.int32), len(requests)),
    }
    for number, head in enumerate(settings.heads):
        columns[f"p_{head.name}"] = predictions[:, :, number].ravel().astype(np.float32)
    for signal in settings.signals:
        columns[signal.column] = outcome.events[:, :, EVENT_COLUMNS.index(signal.column)].ravel()
    columns["play_time_ms"] = outcome.play_time_ms.ravel().astype(np.int64)
    columns["duration_ms"] = outcome.duration_ms.ravel().astype(np.int64)
    return pa.table(columns)
