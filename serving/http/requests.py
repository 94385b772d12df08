"""What can be asked of the service, whatever form it was sent in, and how is a bad request refused?"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any, NamedTuple

import numpy as np

from training.contract.errors import MtfError
from training.contract.log import Id

JSON = "application/json"
BINARY = "application/x-safetensors"  # not registered: safetensors has no registered type

_random = Random()


class RequestError(MtfError):
    """The request cannot be served as it was sent; ``status`` is the HTTP status to answer with, and
    ``headers`` go with it."""

    def __init__(self, message: str, status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class RankRequest(NamedTuple):
    """``items`` int64[n], or text as object[n], and ``scores`` float64[n, heads]; ``given`` names the heads
    that were sent. At most ``shown`` of the ``k`` items are taken as shown while no feedback says which.

    A head that was not sent is 0 for every candidate: its term of eq. (1) is then the same for all of
    them and cannot change their order.
    """

    user_id: Id
    items: np.ndarray
    scores: np.ndarray
    given: tuple[str, ...]
    k: int
    shown: int
    request_id: str | None
    session_id: str | None
    event_ts: datetime | None
    text_ids: bool = False  # of items: they came as text, and are answered so


@dataclass(frozen=True)
class FeedbackRequest:
    """``events`` hold every signal column (0 or 1), ``item_id``, ``play_time_ms``, ``duration_ms``.

    ``shown`` names what was shown, ``shown_top`` how many from the top of the list; None: not said.
    """

    request_id: str
    events: list[dict[str, Any]]
    user_id: Id | None
    session_id: str | None
    event_ts: datetime | None
    shown: list[Id] | None = None
    shown_top: int | None = None


def new_id() -> str:
    """32 random hex digits; asking the system for them each time would give up the interpreter's lock."""
    return f"{_random.getrandbits(128):032x}"
