"""States of simulated users, by the same definitions as dbt and Feast give for the real log.

The history is what the user did up to the end of the day before; the session sums are those of the
feedback so far. So a policy trained on logged states can be run in the world, and the other way round.
"""

from dataclasses import dataclass, field
from datetime import UTC

import numpy as np
import pandas as pd

from training.contract.settings import Settings
from training.contract.state import StateSpec, history_columns, session_columns
from training.world.simulator.scene import Scene
from training.world.simulator.sessions import Outcome, Requests, Sessions

_FIELDS = ("user_row", "session", "day", "events", "play_s", "completion")


@dataclass
class History:
    """The last impressions of every user, oldest first; ``session`` counts sessions of the whole world,
    ``day`` is an ordinal.

    ``completion`` is min(play / duration, 1), NaN where the duration is unknown; ``events`` is a bit a
    signal, the settings' first one lowest.
    """

    user_row: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    session: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    day: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    events: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    play_s: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    completion: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        return {f"history_{name}": getattr(self, name) for name in _FIELDS}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> "History":
        return cls(**{name: arrays[f"history_{name}"] for name in _FIELDS})

    def extended(self, chunks: list["History"], length: int) -> "History":
        """With later chunks, in order of time within each user; only the last ``length`` are kept."""
        joined = {name: np.concatenate([getattr(h, name) for h in (self, *chunks)]) for name in _FIELDS}
        order = np.argsort(joined["user_row"], kind="stable")
        user = joined["user_row"][order]
        ends = np.searchsorted(user, user, side="right")
        kept = order[ends - np.arange(len(user)) <= length]
        return History(**{name: values[kept] for name, values in joined.items()})

    def columns(self, settings: Settings, users: int, days_since_last: np.ndarray) -> dict[str, np.ndarray]:
        """Raw columns of ``state.history_columns``, [users] each; zeros for who was never seen."""
        signals = settings.signal_names

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(self.user_row, weights=values, minlength=users)

        count = total(np.ones(len(self.user_row)))
        known = ~np.isnan(self.completion)

        def distinct(values: np.ndarray) -> np.ndarray:
            pairs = np.unique(np.stack([self.user_row.astype(np.int64), values]), axis=1)
            return np.bincount(pairs[0], minlength=users).astype(np.float64)

        sessions = distinct(self.session)

        def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
            return np.divide(numerator, denominator, out=np.zeros(users), where=denominator > 0)

        rates = [
            ratio(total((self.events >> np.uint64(bit)) & np.uint64(1)), count) for bit in range(len(signals))
        ]
        values = [
            count,
            *rates,
            ratio(total(self.play_s), count),
            ratio(total(np.nan_to_num(self.completion)), total(known)),
            ratio(sessions, distinct(self.day)),
            ratio(count, sessions),
            np.where(count > 0, days_since_last, 0),
        ]
        return dict(zip(history_columns(signals), values, strict=True))


def history_chunk(scene: Scene, requests: Requests, outcome: Outcome, first_session: int) -> History:
    """The impressions of one batch as a chunk of history."""
    page = outcome.item_id.shape[1]
    bits = np.uint64(1) << np.arange(len(scene.signals), dtype=np.uint64)
    completion = np.divide(
        outcome.play_time_ms,
        outcome.duration_ms,
        out=np.full(outcome.play_time_ms.shape, np.nan),
        where=outcome.duration_ms > 0,
    )
    return History(
        user_row=np.repeat(requests.user_row, page).astype(np.int32),
        session=np.repeat(requests.session + first_session, page).astype(np.int64),
        day=np.full(len(requests) * page, scene.day.toordinal(), dtype=np.int32),
        events=(outcome.events[..., scene.signals].astype(np.uint64) @ bits).ravel(),
        play_s=(outcome.play_time_ms / 1000.0).astype(np.float32).ravel(),
        completion=np.minimum(completion, 1.0).astype(np.float32).ravel(),
    )


class States:
    """Assembles states of a day; profile and history, which do not move within it, are encoded once."""

    def __init__(self, settings: Settings, raw: dict[str, np.ndarray]) -> None:
        self.settings, self.spec = settings, settings.state_spec
        self.session_names = session_columns(settings.signal_names, settings.head_names)
        moving = np.array([f.source in ("session", "context") for f in self.spec.features])
        widths = [f.width for f in self.spec.features]
        self.moving_entries = np.repeat(moving, widths)
        self.moving = StateSpec(tuple(f for f in self.spec.features if f.source in ("session", "context")))
        fixed = StateSpec(tuple(f for f in self.spec.features if f.source not in ("session", "context")))
        self.fixed = fixed.assemble(raw)

    def assemble(self, sessions: Sessions, requests: Requests) -> np.ndarray:
        """States float32[b, d] at the requests: what :meth:`StateSpec.assemble` gives for them."""
        s = requests.session
        values = np.column_stack([sessions.sums[s], sessions.last[s], sessions.decayed[s]])
        raw = dict(zip(self.session_names, values.T, strict=True))
        instants = pd.DatetimeIndex(requests.event_ts, tz=UTC)
        raw["hour"] = instants.tz_convert(self.settings.calendar.zone).hour.to_numpy()

        state = np.empty((len(s), self.spec.width), dtype=np.float32)
        state[:, ~self.moving_entries] = self.fixed[requests.user_row]
        state[:, self.moving_entries] = self.moving.assemble(raw)
        return state


def profile_columns(settings: Settings, profile: dict[str, np.ndarray], users: int) -> dict[str, np.ndarray]:
    """The settings' profile columns; one the world does not know is null for everybody."""
    return {
        feature.column: profile.get(feature.column, np.full(users, None, dtype=object))
        for feature in settings.state.profile
    }
