"""A past for the simulated world: a day under static weights, landed as impressions alone.

A real installation starts from logs that hold no decisions; so does the simulated one, and the first
day of traffic finds profiles and histories in the online store.
"""

from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.ingest import land
from training.simulator.constants import EVENT_COLUMNS
from training.simulator.drivers import run_day_inprocess, users_of
from training.simulator.sessions import Outcome, Requests

SOURCE = "world"


def land_past(settings: Settings, day: date) -> dict[str, Any]:
    """Simulate ``day`` under static weights; land its impressions and its users. Returns both notes."""
    batches: list[pa.Table] = []

    def observe(requests: Requests, states: np.ndarray, actions: np.ndarray, outcome: Outcome) -> None:
        batches.append(_impressions(settings, requests, outcome))

    def static(states: np.ndarray, requests: Requests) -> np.ndarray:
        return np.tile(settings.fusion.static_action, (len(requests), 1))

    run_day_inprocess(settings, day, static, arm="static", observe=observe)
    return {
        IMPRESSIONS: land(settings, IMPRESSIONS, day, pa.concat_tables(batches), SOURCE),
        USERS: land(settings, USERS, day, users_of(settings, day), SOURCE),
    }


def _impressions(settings: Settings, requests: Requests, outcome: Outcome) -> pa.Table:
    """Rows of the impressions contract of one batch of answered requests."""
    shown = outcome.item_id
    page = shown.shape[1]
    place = (requests.item_ids[:, None, :] == shown[:, :, None]).argmax(axis=2)
    predictions = np.take_along_axis(requests.predictions, place[:, :, None], axis=1)

    def times(values: np.ndarray) -> pa.Array:
        stamps = np.repeat(values.astype("datetime64[us]"), page)
        return pa.array(stamps).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))

    columns: dict[str, Any] = {
        "request_id": np.repeat(requests.request_id, page),
        "session_id": np.repeat(requests.session_id, page),
        "user_id": np.repeat(requests.user_id, page),
        "item_id": shown.ravel(),
        "event_ts": times(requests.event_ts),
        "feedback_ts": times(outcome.feedback_ts),
        "position": np.tile(np.arange(page, dtype=np.int32), len(requests)),
    }
    for number, head in enumerate(settings.heads):
        columns[f"p_{head.name}"] = predictions[:, :, number].ravel().astype(np.float32)
    for signal in settings.signals:
        columns[signal.column] = outcome.events[:, :, EVENT_COLUMNS.index(signal.column)].ravel()
    columns["play_time_ms"] = outcome.play_time_ms.ravel().astype(np.int64)
    columns["duration_ms"] = outcome.duration_ms.ravel().astype(np.int64)
    return pa.table(columns)
