"""Sessions of one day, many at once: requests out, feedback in, satisfaction, fatigue, leaving.

A step of b requests costs a few array operations over [b, candidates, heads]; nothing loops over users.
"""

from dataclasses import dataclass, fields
from datetime import date
from functools import cached_property

import numpy as np
from scipy.special import expit

from training.contract.errors import DataError, SettingsError
from training.contract.settings import Settings
from training.world.simulator import randomness, response
from training.world.simulator.constants import EVENT_COLUMNS, HEADS, WorldConstants
from training.world.simulator.population import Population

_CANDIDATE_TOPIC, _CANDIDATE_ITEM, _REPEAT, _PREDICTION, _LEAVE, _THINK = 1, 2, 3, 4, 5, 6

# why a session ended; ABSENT: it never began, because the one before it lasted until the night
LEFT, LIMIT, MIDNIGHT, FAILED, ABSENT, ALIVE = "left", "limit", "midnight", "failed", "absent", ""
TRUNCATED = (LIMIT, MIDNIGHT, FAILED)


@dataclass(frozen=True)
class Calibration:
    """What is fitted to static weights: intercepts [h], and the worth of a page that users expect [n]."""

    intercept: np.ndarray
    expectation: np.ndarray


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


class Scene:
    """The world as it stands on one day: latents, popularity and prediction bias after drift, eq. (W4)."""

    def __init__(
        self,
        settings: Settings,
        constants: WorldConstants,
        population: Population,
        calibration: Calibration,
        day: date,
        seed: int,
    ) -> None:
        self.settings, self.constants, self.population, self.day = settings, constants, population, day
        self.seed = seed
        self.heads = head_places(settings)
        self.signals = signal_places(settings)
        self.signal_weights = np.array([signal.weight for signal in settings.signals])
        c, p, t = constants, population, day.toordinal()
        rng = np.random.default_rng([seed, 2])  # phases: the same on every day
        phase = rng.random((3, max(p.topics, len(p.user_id)), len(HEADS))) * 2.0 * np.pi
        turn = np.sin(2.0 * np.pi * t / c.taste_days + phase[0, : len(p.user_id), :1])
        self.user = (p.user + c.taste_drift * turn * p.user_drift).astype(np.float32)
        self.bias = c.prediction_bias * np.sin(
            2.0 * np.pi * t / c.prediction_bias_days + phase[1, : p.topics]
        ).astype(np.float32)  # [topics, h]
        self.length = p.length.astype(np.float32)
        self.duration_s = (p.duration_ms / 1000.0).astype(np.float32)
        self.interaction = p.response.interaction.astype(np.float32)
        self.user_level = self.user @ p.response.user_weight.T + calibration.intercept
        self.user_level = self.user_level.astype(np.float32)
        self.item_level = p.item @ p.response.item_weight.T + self.length[:, None] * np.array(c.length)
        self.expectation = calibration.expectation
        self.item_level = self.item_level.astype(np.float32)
        self.item_latents = np.column_stack([p.item, self.length]).astype(np.float32)
        self.kind_shift = np.array(c.kind_shift, dtype=np.float32)
        self.kind_length = np.array(c.kind_length, dtype=np.float32)

        trend = np.sin(2.0 * np.pi * t / c.popularity_days + phase[2, : p.topics, 0])
        popularity = p.popularity * np.exp(c.popularity_drift * trend)[p.topic]
        self.by_topic = np.argsort(p.topic, kind="stable")
        self.cumulative = np.concatenate([[0.0], np.cumsum(popularity[self.by_topic])])
        edges = np.searchsorted(p.topic[self.by_topic], np.arange(p.topics + 1))
        self.topic_start, self.topic_end = self.cumulative[edges[:-1]], self.cumulative[edges[1:]]
        self.topic_cdf = self._topic_cdf()

        self.day_start_us = int(settings.day_start(day).timestamp()) * 1_000_000
        self.day_end_us = self.day_start_us + 86_400_000_000
        gap_s = settings.session.gap_minutes * 60.0
        self.play_cap_s = 0.8 * gap_s / settings.world.page
        if self.play_cap_s < 20.0:
            raise SettingsError(
                f"session.gap_minutes {settings.session.gap_minutes:g} is too short for pages of "
                f"{settings.world.page} videos (world.page): watching one page would end the session"
            )

    def _topic_cdf(self) -> np.ndarray:
        """[n, topics]: upstream retrieval follows popularity and, softly, the user's taste."""
        p, c = self.population, self.constants
        centre = np.zeros((p.topics, p.item.shape[1]))
        np.add.at(centre, p.topic, p.item)
        centre /= np.maximum(np.bincount(p.topic, minlength=p.topics), 1)[:, None]
        affinity = (self.user * p.response.interaction[response.LONG_VIEW]) @ (centre - centre.mean(0)).T
        spread = affinity.std(axis=1, keepdims=True)
        share = (self.topic_end - self.topic_start) * np.exp(
            c.retrieval_sharpness * affinity / np.maximum(spread, 1e-9)
        )
        cdf = share.cumsum(axis=1)
        return cdf / cdf[:, -1:]

    def candidates(self, keys: np.ndarray, user_row: np.ndarray) -> np.ndarray:
        """Item rows int64[b, candidates], distinct within a request."""
        count, items = self.settings.world.candidates, len(self.by_topic)
        if items <= 4 * count:  # too few items to draw and repair: take the largest of Gumbel keys
            weights = np.diff(self.cumulative)
            gumbel = -np.log(-np.log(randomness.uniform(keys, _CANDIDATE_ITEM, items)))
            return self.by_topic[np.argsort(-(np.log(weights) + gumbel), axis=1)[:, :count]]
        u = randomness.uniform(keys, _CANDIDATE_TOPIC, count)
        cdf = self.topic_cdf[user_row]
        topic = np.zeros(u.shape, dtype=np.int64)
        for column in range(cdf.shape[1] - 1):
            topic += u > cdf[:, column, None]
        start, end = self.topic_start[topic], self.topic_end[topic]
        point = start + randomness.uniform(keys, _CANDIDATE_ITEM, count) * (end - start)
        rows = self.by_topic[np.minimum(np.searchsorted(self.cumulative, point, "right") - 1, items - 1)]
        todo, attempt = np.arange(len(rows)), 0
        while len(todo):
            order = np.argsort(rows[todo], axis=1, kind="stable")
            ordered = np.take_along_axis(rows[todo], order, axis=1)
            again = np.zeros(ordered.shape, dtype=bool)
            again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
            repeated = np.zeros_like(again)
            np.put_along_axis(repeated, order, again, axis=1)
            bad = repeated.any(axis=1)
            todo, repeated = todo[bad], repeated[bad]
            if len(todo):
                fresh = randomness.uniform(keys[todo], _REPEAT + 1000 + attempt, count)
                rows[todo] = np.where(repeated, (fresh * items).astype(np.int64), rows[todo])
            attempt += 1
        return rows

    def logits(self, user_row: np.ndarray, items: np.ndarray) -> np.ndarray:
        """True logits float32[b, c, h] of rested users, eq. (W1) with the terms of the kind."""
        p = self.population
        kind = p.kind[user_row]
        loading = np.concatenate(
            [self.user[user_row][:, None, :] * self.interaction, self.kind_length[kind][:, :, None]], axis=2
        )
        logits = np.matmul(self.item_latents[items], loading.transpose(0, 2, 1))
        logits += self.item_level[items]
        logits += (self.user_level[user_row] + self.kind_shift[kind])[:, None, :]
        return logits

    def tire(self, logits: np.ndarray, items: np.ndarray, fatigue: np.ndarray) -> np.ndarray:
        """Logits [b, c, h] of users as tired as they are, eq. (W9): long videos suffer most."""
        c = self.constants
        weight = np.array(c.fatigue_shift, dtype=np.float32) + self.length[items][..., None] * np.array(
            c.fatigue_length, dtype=np.float32
        )
        return logits + fatigue.astype(np.float32)[:, None, None] * weight

    def predict(self, keys: np.ndarray, logits: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Upstream predictions float32[b, c, k], eq. (W3): noisy, biased, and blind to fatigue."""
        noise = randomness.normal(keys, _PREDICTION, *items.shape[1:], len(HEADS))
        spread = np.array(self.constants.prediction_noise, dtype=np.float32)
        noise *= spread
        noise += self.bias[self.population.topic[items]]
        duration_s = self.duration_s[items]
        p = response.probabilities(logits, duration_s, self.constants)
        noise -= 0.5 * spread**2 * (1.0 - 2.0 * expit(logits))  # so that the mean of a prediction stays
        out = np.clip(expit(logits + noise), 1e-6, 1.0 - 1e-6)
        play = p[..., response.PLAY] * np.exp(noise[..., response.PLAY])
        out[..., response.PLAY] = np.clip(play, 0.01, self.play_maximum)
        return out[..., self.heads]

    @property
    def play_maximum(self) -> float:
        return next((h.maximum for h in self.settings.heads if h.name == "play_time"), 36_000.0)

    def worth(self, user_row: np.ndarray, events: np.ndarray, play_s: np.ndarray, d: np.ndarray):
        """Worth of each shown item to its user, float64[b, page], eq. (W8) without repetition."""
        c, kind = self.constants, self.population.kind[user_row][:, None]

        def per_kind(values: tuple[float, ...]) -> np.ndarray:
            return np.array(values)[kind]

        click, long = events[..., response.CLICK], events[..., response.LONG_VIEW]
        finish = (play_s >= d) & (d <= c.short_s)
        interactions = events[..., response.LIKE : response.HATE].sum(axis=-1)
        return (
            per_kind(c.worth_long_view) * long
            + per_kind(c.worth_deep_play) * np.minimum(play_s / c.deep_play_s, 1.0)
            + per_kind(c.worth_click_only) * np.maximum(click - long, 0)
            + per_kind(c.worth_short_finish) * finish
            + per_kind(c.worth_interaction) * interactions
            + per_kind(c.worth_hate) * events[..., response.HATE]
        )

    def expected_worth(self, user_row: np.ndarray, p: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
        """Expected worth float64[b, c] of items with true probabilities p [b, c, h], but for repetition."""
        c = self.constants
        play = p[..., response.PLAY] / np.maximum(p[..., response.LONG_VIEW], 1e-4)
        events = p[..., : response.PLAY].copy()
        # plays that are long views count nearly all of a deep play; a short video seen long is finished
        deep = events[..., response.LONG_VIEW] * np.minimum(play, c.deep_play_s)
        mark = np.where(duration_s <= 18.0, duration_s, 0.0)
        certain = self.worth(user_row, events, deep, np.full_like(duration_s, np.inf))
        finished = np.array(c.worth_short_finish)[self.population.kind[user_row]][:, None]
        return certain + finished * events[..., response.LONG_VIEW] * (mark > 0)

    def reward_factors(self, events: np.ndarray, play_ms: np.ndarray, duration_ms: np.ndarray) -> np.ndarray:
        """v_i of eq. (2) of each shown item, float64[b, page, 2 + signals]: seconds that count, integrity,
        and every signal. Eq. (2) is their product with :attr:`reward_weights`."""
        play_s = play_ms / 1000.0
        integrity = np.minimum(
            np.divide(play_ms, duration_ms, out=np.zeros_like(play_s), where=duration_ms > 0), 1.0
        )
        watching = np.stack([np.minimum(play_s, self.settings.reward.play_time_cap_s), integrity], axis=-1)
        return np.concatenate([watching, events[..., self.signals]], axis=-1)

    @property
    def reward_weights(self) -> np.ndarray:
        """w_i of eq. (2), float64[2 + signals], in the order of :meth:`reward_factors`."""
        reward = self.settings.reward
        return np.array([reward.play_time_weight, reward.integrity_weight, *self.signal_weights])

    def reward(self, events: np.ndarray, play_ms: np.ndarray, duration_ms: np.ndarray) -> np.ndarray:
        """Reward of a request, float64[b]: eq. (2) with the settings' weights."""
        return (self.reward_factors(events, play_ms, duration_ms) @ self.reward_weights).sum(axis=1)


def head_places(settings: Settings) -> np.ndarray:
    """Places in :data:`HEADS` of the settings' heads; :class:`SettingsError` for an unknown one."""
    unknown = [head.name for head in settings.heads if head.name not in HEADS]
    if unknown:
        raise SettingsError(f"the simulated world predicts {', '.join(HEADS)}, not {unknown[0]!r} (heads)")
    return np.array([HEADS.index(head.name) for head in settings.heads])


def signal_places(settings: Settings) -> np.ndarray:
    """Places in :data:`EVENTS` of the settings' signals; :class:`SettingsError` for an unknown one."""
    unknown = [signal.column for signal in settings.signals if signal.column not in EVENT_COLUMNS]
    if unknown:
        raise SettingsError(
            f"the simulated world logs {', '.join(EVENT_COLUMNS)}, not {unknown[0]!r} (signals)"
        )
    return np.array([EVENT_COLUMNS.index(signal.column) for signal in settings.signals])


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
        signals = len(scene.signals)
        # requests, impressions, signals, play_s — of the session, then of its last request
        self.sums = np.zeros((n, 3 + signals))
        self.last = np.zeros((n, 2 + signals))

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
        latest = np.column_stack([np.full(len(s), page), counts, viewed])
        self.last[s] = latest
        self.sums[s] += np.column_stack([np.ones(len(s)), latest])
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

    def adopt(self, session: np.ndarray, fresh: "Sessions") -> None:
        """Put fresh sessions of the same scene in the place of the given ones."""
        for name, values in vars(self).items():
            if isinstance(values, np.ndarray):
                values[session] = getattr(fresh, name)


def top(scores: np.ndarray, page: int) -> np.ndarray:
    """Places [b, page] of the largest scores, best first; ties keep the candidates' order."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :page]
