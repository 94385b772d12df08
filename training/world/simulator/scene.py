"""The world as it stands on one day: what it offers, what users feel, what a page is worth."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from scipy.special import expit

from training.contract.errors import SettingsError
from training.contract.settings import Settings
from training.world.simulator import randomness, response
from training.world.simulator.constants import EVENT_COLUMNS, HEADS, WorldConstants
from training.world.simulator.population import Population

# purposes of draws (see randomness); those of sessions are 5 and 6
_CANDIDATE_TOPIC, _CANDIDATE_ITEM, _REPEAT, _PREDICTION = 1, 2, 3, 4


@dataclass(frozen=True)
class Calibration:
    """What is fitted to static weights: intercepts [h], and the worth of a page that users expect [n]."""

    intercept: np.ndarray
    expectation: np.ndarray


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
        self.day_end_us = int(settings.day_start(day + timedelta(days=1)).timestamp()) * 1_000_000
        self.hour_us = (self.day_end_us - self.day_start_us) / 24  # of a wall clock that is never changed
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

    def worth(
        self, user_row: np.ndarray, events: np.ndarray, play_s: np.ndarray, d: np.ndarray
    ) -> np.ndarray:
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
