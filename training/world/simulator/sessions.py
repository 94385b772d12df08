"""Sessions of one day, many at once: requests out, feedback in, satisfaction, fatigue, leaving.

A step of b requests costs a few array operations over [b, candidates, heads]; nothing loops over users.
"""

from dataclasses import dataclass, fields
from datetime import date
from functools import cached_property

import numpy as np
from scipy.special import expit

from training.contract.errors import DataError
from training.contract.session import DECAY
from training.world.simulator import randomness, response
from training.world.simulator.scene import Scene

_LEAVE, _THINK = 5, 6  # purposes of draws (see randomness); those of scene are 1 to 4

# why a session ended; ABSENT: it never began, because the one before it lasted until the night
LEFT, LIMIT, MIDNIGHT, FAILED, ABSENT, ALIVE = "left", "limit", "midnight", "failed", "absent", ""
TRUNCATED = (LIMIT, MIDNIGHT, FAILED)


@dataclass(frozen=True)
class Requests:
    """A batch of pending requests; [b] unless said otherwise. From item_rows on it is hidden truth."""

    day: date
    session: np.ndarray  # index into the batch's Sessions
    user_row: np.ndarray
    user_id: np.ndarray
    number: np.ndarray  # of the session among the user's of the day
    step: np.ndarray
    event_ts: np.ndarray  # datetime64[us], UTC
    item_ids: np.ndarray  # int64[b, candidates]
    predictions: np.ndarray  # float32[b, candidates, k], heads in the settings' order
    item_rows: np.ndarray
    logits: np.ndarray  # float32[b, candidates, len(HEADS)] of a rested user
    fatigue: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.session)

    def part(self, rows: np.ndarray) -> "Requests":
        """The given rows (a mask or places) alone."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "day"}
        return Requests(day=self.day, **{name: values[rows] for name, values in arrays.items()})

    @cached_property
    def session_id(self) -> list[str]:
        prefix = f"{self.day:%Y%m%d}"
        return [f"{prefix}-{u}-{n}" for u, n in zip(self.user_id, self.number, strict=True)]

    @cached_property
    def request_id(self) -> list[str]:
        return [f"{name}-{step}" for name, step in zip(self.session_id, self.step, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """Feedback of a batch of requests, rows as in the requests; [b, page] unless said otherwise."""

    item_id: np.ndarray
    events: np.ndarray  # int8[b, page, len(EVENTS)], in the order of EVENTS
    play_time_ms: np.ndarray
    duration_ms: np.ndarray
    feedback_ts: np.ndarray  # datetime64[us][b]
    reward: np.ndarray  # [b]
    ended: np.ndarray  # [b] strings: "", or why the session is over
    rates: np.ndarray  # [b, h] true probabilities, mean over the page, attention included
    worth: np.ndarray  # [b] mean worth of the page, repetition included, before expectation


class Sessions:
    """State of n sessions of one day. Sessions of one user must be run one after another."""

    def __init__(
        self,
        scene: Scene,
        user_row: np.ndarray,
        number: np.ndarray,
        start_us: np.ndarray,
        long_term: np.ndarray,
    ) -> None:
        n = len(user_row)
        self.scene = scene
        self.user_row, self.number = user_row.copy(), number.copy()
        self.key = randomness.key(
            scene.seed, scene.day.toordinal(), scene.population.user_id[user_row], number
        )
        self.start_us, self.clock_us = start_us.copy(), start_us.copy()
        self.end_us = start_us.copy()
        self.satisfaction = scene.constants.carry * long_term
        self.fatigue = np.zeros(n)
        self.topics = np.zeros((n, scene.population.topics))
        self.step = np.zeros(n, dtype=np.int64)
        self.ended = np.full(n, ALIVE, dtype=object)
        self.reward, self.discounted, self.play_s = np.zeros(n), np.zeros(n), np.zeros(n)
        felt = 2 + len(scene.signals)  # impressions, signals, play_s
        self.sums = np.zeros((n, 1 + felt))  # of the session, after its requests
        # of its last request and decayed by requests: felt, then each head's predictions
        self.last, self.decayed = (np.zeros((n, felt + len(scene.settings.heads))) for _ in range(2))

    def requests(self, session: np.ndarray) -> Requests:
        """The next request of each given session."""
        scene = self.scene
        rows = self.user_row[session]
        keys = randomness.key(self.key[session].view(np.int64), self.step[session])
        items = scene.candidates(keys, rows)
        logits = scene.logits(rows, items)
        return Requests(
            day=scene.day,
            session=session,
            user_row=rows,
            user_id=scene.population.user_id[rows],
            number=self.number[session],
            step=self.step[session],
            event_ts=self.clock_us[session].astype("datetime64[us]"),
            item_ids=scene.population.item_id[items],
            predictions=scene.predict(keys, logits, items),
            item_rows=items,
            logits=logits,
            fatigue=self.fatigue[session],
            keys=keys,
        )

    def respond(self, requests: Requests, shown: np.ndarray) -> Outcome:
        """Users react to ``shown``, item ids int64[b, page] in order; their sessions move on.

        Raises :class:`DataError` for an item that was no candidate of its request.
        """
        match = requests.item_ids[:, None, :] == np.asarray(shown)[:, :, None]
        if not match.any(axis=2).all():
            row, place = np.argwhere(~match.any(axis=2))[0]
            raise DataError(f"item {shown[row][place]} was no candidate of {requests.request_id[row]}")
        return self.respond_places(requests, match.argmax(axis=2))

    def respond_places(self, requests: Requests, places: np.ndarray) -> Outcome:
        """As :meth:`respond`, for places int64[b, page] among the candidates."""
        scene, c, s = self.scene, self.scene.constants, requests.session
        settings, page = scene.settings, places.shape[1]
        items = np.take_along_axis(requests.item_rows, places, axis=1)
        rested = np.take_along_axis(requests.logits, places[..., None], axis=1)
        logits = scene.tire(rested, items, requests.fatigue)
        duration_s = scene.duration_s[items]
        events, play_ms = response.sample(requests.keys, logits, duration_s, scene.play_cap_s, c)
        play_s = play_ms / 1000.0
        duration_ms = np.where(scene.population.duration_known[items], scene.population.duration_ms[items], 0)
        truth = response.probabilities(logits, duration_s, c)
        rates = np.einsum("bph,p->bh", truth, response.attention(page, c)) / page
        reward = scene.reward(events, play_ms, duration_ms)

        # satisfaction, eq. (W8)
        topic = scene.population.topic[items]
        repetition = np.take_along_axis(self.topics[s], topic, axis=1).mean(axis=1)
        kind = scene.population.kind[requests.user_row]
        seen = response.attention(page, c)
        expected = (scene.expected_worth(requests.user_row, truth, duration_s) * seen).mean(axis=1)
        happened = scene.worth(requests.user_row, events, play_s, duration_s).mean(axis=1)
        worth = c.felt_share * expected + (1.0 - c.felt_share) * happened
        worth = worth + np.array(c.worth_repetition)[kind] * repetition
        gained = c.satisfaction_gain * (worth - scene.expectation[requests.user_row])
        bound = c.satisfaction_range
        self.satisfaction[s] = np.clip(c.satisfaction_memory * self.satisfaction[s] + gained, -bound, bound)
        shares = np.zeros((len(s), self.topics.shape[1]))
        np.add.at(shares, (np.arange(len(s))[:, None], topic), 1.0 / page)
        self.topics[s] = c.topic_memory * self.topics[s] + (1.0 - c.topic_memory) * shares

        # fatigue, eq. (W9), and leaving, eq. (W10)
        viewed = play_s.sum(axis=1)
        self.fatigue[s] += c.fatigue_request + c.fatigue_second * np.array(c.kind_fatigue)[kind] * viewed
        leave = expit(
            c.leave_base + c.leave_fatigue * self.fatigue[s] - c.leave_satisfaction * self.satisfaction[s]
        )
        gone = randomness.uniform(requests.keys, _LEAVE, 1)[:, 0] < leave

        self.reward[s] += reward
        self.discounted[s] += settings.learner.gamma ** self.step[s] * reward
        self.play_s[s] += viewed
        counts = events[..., scene.signals].sum(axis=1)
        felt = np.column_stack([np.full(len(s), page), counts, viewed])
        predicted = np.take_along_axis(requests.predictions, places[..., None], axis=1).sum(
            axis=1, dtype=np.float64
        )
        self.last[s] = np.column_stack([felt, predicted])
        self.decayed[s] = self.last[s] + DECAY * self.decayed[s]
        self.sums[s] += np.column_stack([np.ones(len(s)), felt])
        self.step[s] += 1

        feedback_us = self.clock_us[s] + np.ceil(viewed * 1e6).astype(np.int64) + 200_000
        low, high = c.think_s
        think = low + (high - low) * randomness.uniform(requests.keys, _THINK, 1)[:, 0]
        self.end_us[s] = feedback_us
        self.clock_us[s] = feedback_us + (think * 1e6).astype(np.int64)
        ended = np.full(len(s), ALIVE, dtype=object)
        ended[self.clock_us[s] >= scene.day_end_us] = MIDNIGHT
        ended[self.step[s] >= settings.world.max_requests] = LIMIT
        ended[gone] = LEFT
        self.ended[s] = ended
        return Outcome(
            item_id=scene.population.item_id[items],
            events=events,
            play_time_ms=play_ms,
            duration_ms=duration_ms,
            feedback_ts=feedback_us.astype("datetime64[us]"),
            reward=reward,
            ended=ended,
            rates=rates,
            worth=worth,
        )

    def delay(self, session: np.ndarray, earliest_us: np.ndarray) -> None:
        """Let sessions that have not begun begin no earlier than given."""
        self.start_us[session] = np.maximum(self.start_us[session], earliest_us)
        self.clock_us[session] = self.end_us[session] = self.start_us[session]
