"""The world day by day: who comes, in how many sessions, what it does to them, and what is kept.

A day starts from a snapshot and ends by writing the next day's, so a day can be run in a process of its
own, and run again from the same start.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import expit, logit
from scipy.stats import poisson

from training.contract.columns import user_columns
from training.contract.errors import DataError
from training.contract.files import json_sha256, replaced_folder
from training.contract.session import beyond_gap
from training.contract.settings import Settings
from training.world.simulator import randomness, response
from training.world.simulator.calibration import calibrate
from training.world.simulator.constants import CONSTANTS, HOUR_SHARE, WorldConstants
from training.world.simulator.features import History, States, history_chunk, profile_columns
from training.world.simulator.fitted import load_fitted
from training.world.simulator.population import Population, synthetic
from training.world.simulator.scene import Calibration, Scene
from training.world.simulator.sessions import ABSENT, ALIVE, FAILED, TRUNCATED, Outcome, Requests, Sessions

FORMAT = 2
_COME, _SESSIONS, _HOUR, _SUB_HOUR, _PANEL = 101, 102, 103, 104, 105

_ARROW = {"double": pa.float64(), "int8": pa.int8(), "string": pa.string(), "int64": pa.int64()}


class World:
    """Users, videos and their long-term state. ``seed`` defaults to the settings' seed.

    A day is: :meth:`start_day`, then :meth:`requests` and :meth:`respond` until no request is left, then
    :meth:`end_day`. Raises :class:`SettingsError` for heads or signals that the world does not know.
    """

    def __init__(
        self,
        settings: Settings,
        seed: int | None = None,
        *,
        constants: WorldConstants = CONSTANTS,
        calibration: Calibration | None = None,
    ) -> None:
        self.settings, self.constants = settings, constants
        self.seed = settings.seed if seed is None else seed
        self.population = population_of(settings, constants, self.seed)
        first = date.fromisoformat(settings.world.start_day)
        self.calibration = calibration or calibrate(settings, constants, self.population, first, self.seed)
        n = len(self.population.user_id)
        self.first_day: date | None = None
        self.long_term = np.zeros(n)
        self.last_day = np.full(n, -1, dtype=np.int64)  # ordinal; -1: never came
        self.follows = np.zeros(n)  # made since the profile was last told
        self.sessions_before = 0
        self.history = History()
        self.scene: Scene | None = None

    # ---------------------------------------------------------------- a day

    def start_day(self, day: date) -> None:
        """Decide who comes on ``day``, when, and how often; features are those of the evening before."""
        if self.first_day is None:
            self.first_day = day
        self.day = day
        p, settings = self.population, self.settings
        self.scene = self.scene_of(day)
        rows, number, start = self._plan(day)
        self.sessions = Sessions(self.scene, rows, number, start, self.long_term[rows])
        self.states = self.states_on(day)
        self.arms = np.full(len(rows), "", dtype=object)
        self.chunks: list[History] = []
        self.day_follows = np.zeros(len(p.user_id))
        # sessions lie by user, then number: the first of each user is due, the others wait for it
        self.following = np.append(rows[1:] == rows[:-1], False)
        self.live = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])) if len(rows) else np.zeros(0, int)
        self.gap_us = beyond_gap(settings.session.gap) // timedelta(microseconds=1)

    def scene_of(self, day: date) -> Scene:
        return Scene(self.settings, self.constants, self.population, self.calibration, day, self.seed)

    def requests(self) -> Requests:
        """Pending requests, one of each user in a session; empty when the day is over."""
        return self.sessions.requests(self.live)

    def states_of(self, requests: Requests) -> np.ndarray:
        """States float32[b, d] at these requests."""
        return self.states.assemble(self.sessions, requests)

    def respond(
        self,
        requests: Requests,
        shown: np.ndarray,
        arms: Sequence[str],
        failed: np.ndarray | None = None,
    ) -> Outcome:
        """Users react to ``shown``, item ids int64[b, page]; sessions go on, end, or make way.

        Rows with ``failed`` were not served: their ``shown`` is not looked at, their session ends as
        truncated, and they are absent from the outcome. Raises :class:`DataError` for an item that was
        no candidate.
        """
        served = np.ones(len(requests), dtype=bool) if failed is None else ~np.asarray(failed)
        self.sessions.ended[requests.session[~served]] = FAILED
        part = requests.part(served)
        outcome = self.sessions.respond(part, np.asarray(shown)[served])
        self.arms[part.session] = np.asarray(arms, dtype=object)[served]
        assert self.scene is not None
        self.chunks.append(history_chunk(self.scene, part, outcome, self.sessions_before))
        np.add.at(
            self.day_follows, part.user_row, outcome.events[..., response.FOLLOW].sum(axis=1).astype(float)
        )
        self._advance(requests.session)
        return outcome

    def fail(self, requests: Requests) -> None:
        """End the sessions of answered requests whose feedback could not be delivered: truncated."""
        going_on = requests.session[self.sessions.ended[requests.session] == ALIVE]
        self.sessions.ended[requests.session] = FAILED
        self._advance(going_on)  # who had left already made way for their next session

    def _advance(self, done: np.ndarray) -> None:
        ended = done[self.sessions.ended[done] != ALIVE]
        following = ended[self.following[ended]] + 1
        self.sessions.delay(following, self.sessions.end_us[following - 1] + self.gap_us)
        # carried into the next session of the day: how the last one went
        self.sessions.satisfaction[following] += (
            self.constants.carry * self.sessions.satisfaction[following - 1]
        )
        assert self.scene is not None
        while len(following) and (late := self.sessions.clock_us[following] >= self._last_start_us).any():
            self.sessions.ended[following[late]] = ABSENT
            chain = following[late]
            chain = chain[self.following[chain]] + 1
            self.sessions.delay(chain, np.full(len(chain), self.scene.day_end_us))
            following = np.concatenate([following[~late], chain])
        staying = self.live[self.sessions.ended[self.live] == ALIVE]
        self.live = np.sort(np.concatenate([staying, following]))

    def end_day(self) -> pa.Table:
        """Long-term satisfaction, histories and tomorrow's visits; returns the day's truth ledger."""
        c, s = self.constants, self.sessions
        ran = s.step > 0
        rows = s.user_row[ran]
        n = len(self.population.user_id)
        count = np.bincount(rows, minlength=n)
        ended_at = np.bincount(rows, weights=s.satisfaction[ran], minlength=n)
        came = count > 0
        mean = ended_at[came] / count[came]
        self.long_term[came] = c.long_term_memory * self.long_term[came] + (1.0 - c.long_term_memory) * mean
        self.last_day[came] = self.day.toordinal()
        self.follows = self.day_follows
        profile = self.population.profile
        profile["follow_user_num"] = np.asarray(profile["follow_user_num"], dtype=float) + self.follows
        self.history = self.history.extended(self.chunks, self.settings.state.history_length)
        self.sessions_before += len(s.user_row)
        tomorrow = self._comes(self.day + timedelta(days=1))
        return pa.table(
            {
                "day": pa.array([self.day] * int(ran.sum()), pa.date32()),
                "session_id": [
                    f"{self.day:%Y%m%d}-{u}-{k}"
                    for u, k in zip(self.population.user_id[rows], s.number[ran], strict=True)
                ],
                "user_id": self.population.user_id[rows],
                "kind": pa.array(self.population.kind[rows]),
                "arm": pa.array(self.arms[ran].tolist(), pa.string()),
                "requests": s.step[ran],
                "session_return": s.reward[ran],
                "discounted_return": s.discounted[ran],
                "play_s": s.play_s[ran],
                "adtime_s": (s.end_us[ran] - s.start_us[ran]) / 1e6,
                "satisfaction": s.satisfaction[ran],
                "long_term": self.long_term[rows],
                "ended": pa.array(s.ended[ran].tolist(), pa.string()),
                "truncated": np.isin(s.ended[ran].astype(str), TRUNCATED),
                "returned_next_day": tomorrow[rows],
            }
        )

    # ---------------------------------------------------------------- who comes

    def _comes(self, day: date) -> np.ndarray:
        """bool[n]: who comes on ``day``, eq. (W11)."""
        keys = randomness.key(self.seed, day.toordinal(), self.population.user_id)
        chance = expit(logit(self.population.activity) + self.constants.return_satisfaction * self.long_term)
        return (randomness.uniform(keys, _COME, 1)[:, 0] < chance) & self._panel

    @property
    def _panel(self) -> np.ndarray:
        """bool[n]: users that take part at all, so that the day's traffic is near the settings' wish."""
        share = min(self._wished_sessions / 1.15, 1.0)
        keys = randomness.key(self.seed, self.population.user_id)
        return randomness.uniform(keys, _PANEL, 1)[:, 0] < share

    @property
    def _wished_sessions(self) -> float:
        """Sessions that each visit must have for the day to reach ``world.requests_per_day``."""
        visits = self.population.activity.sum()
        return self.settings.world.requests_per_day / (visits * self.constants.session_requests)

    @property
    def _last_start_us(self) -> int:
        assert self.scene is not None
        return self.scene.day_start_us + int(self.constants.last_start_h * self.scene.hour_us)

    def _plan(self, day: date) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sessions by user, then number: user rows, numbers, and wished starts in microseconds."""
        c = self.constants
        users = np.flatnonzero(self._comes(day))
        keys = randomness.key(self.seed, day.toordinal(), self.population.user_id[users])
        extra = max(self._wished_sessions, 1.15) - 1.0
        u = randomness.uniform(keys, _SESSIONS, 1)[:, 0]
        counts = 1 + np.minimum(poisson.ppf(u, extra), c.maximum_sessions - 1).astype(int)
        cdf = np.cumsum(HOUR_SHARE) / np.sum(HOUR_SHARE)
        hour = np.searchsorted(cdf, randomness.uniform(keys, _HOUR, c.maximum_sessions)).clip(max=23)
        within = randomness.uniform(keys, _SUB_HOUR, c.maximum_sessions)
        starts = hour + within * np.where(hour == 23, c.last_start_h - 23.0, 1.0)
        wanted = np.arange(c.maximum_sessions) < counts[:, None]
        starts = np.sort(np.where(wanted, starts, np.inf), axis=1)[wanted]
        rows, number = np.repeat(users, counts), np.nonzero(wanted)[1]
        assert self.scene is not None
        return rows, number, self.scene.day_start_us + (starts * self.scene.hour_us).astype(np.int64)

    # ---------------------------------------------------------------- what is told to others

    def states_on(self, day: date) -> States:
        """Assembler of the states of ``day``, with the profiles and histories of the evening before."""
        n = len(self.population.user_id)
        # whole days before the local midnight that starts this day: 0 for who was here yesterday
        since = np.maximum(day.toordinal() - self.last_day - 1, 0)
        raw = profile_columns(self.settings, self.population.profile, n)
        raw |= self.history.columns(self.settings, n, since)
        return States(self.settings, raw)

    def users_table(self, day: date) -> pa.Table:
        """Users new or changed on ``day``: all on the first, later those who followed somebody.

        Columns of ``training.contract.columns.user_columns``, sorted by user; ``updated_ts`` is the local
        midnight that starts the day.
        """
        first = self.first_day is None or day <= self.first_day
        rows = np.flatnonzero(np.ones(len(self.follows), dtype=bool) if first else self.follows > 0)
        profile = profile_columns(self.settings, self.population.profile, len(self.follows))
        midnight = self.settings.day_start(day)
        arrays, fields = [], []
        for column in user_columns(self.settings):
            if column.name == "user_id":
                array = pa.array(self.population.user_id[rows], pa.int64())
            elif column.name == "updated_ts":
                array = pa.array([midnight] * len(rows), pa.timestamp("us", tz="UTC"))
            else:
                values = profile[column.name][rows].tolist()
                array = pa.array([None if v != v else v for v in values], _ARROW[column.type])
            arrays.append(array)
            fields.append(pa.field(column.name, array.type))
        return pa.table(arrays, schema=pa.schema(fields))

    # ---------------------------------------------------------------- snapshots

    def save(self, folder: Path) -> None:
        """Write what persists between days, atomically: ``world.json`` and ``state.npz``."""
        with replaced_folder(folder) as fresh:
            facts = {
                "format": FORMAT,
                "seed": self.seed,
                "fingerprint": fingerprint(self.settings, self.constants),
                "first_day": None if self.first_day is None else self.first_day.isoformat(),
                "sessions_before": self.sessions_before,
                "intercept": self.calibration.intercept.tolist(),
            }
            (fresh / "world.json").write_text(json.dumps(facts, sort_keys=True, indent=2) + "\n")
            followed = self.population.profile["follow_user_num"]
            arrays: dict[str, Any] = {
                "expectation": self.calibration.expectation,
                "long_term": self.long_term,
                "last_day": self.last_day,
                "follows": self.follows,
                "follow_user_num": np.asarray(followed, dtype=np.float64),
                **self.history.arrays(),
            }
            np.savez(fresh / "state.npz", **arrays)

    @classmethod
    def load(cls, settings: Settings, folder: Path, constants: WorldConstants = CONSTANTS) -> "World":
        """The world as :meth:`save` left it.

        Raises :class:`DataError` when the files are unreadable, or were written under other settings
        (users, items, heads, signals, build): such a world is another one and must be started anew.
        """
        try:
            facts = json.loads((folder / "world.json").read_text())
            with np.load(folder / "state.npz", allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']}, this code reads {FORMAT}")
            calibration = Calibration(np.array(facts["intercept"]), arrays["expectation"])
            first = facts["first_day"]
            expected = facts["fingerprint"]
            seed, sessions_before = facts["seed"], facts["sessions_before"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read the world's snapshot {folder}: {error}") from error
        if expected != fingerprint(settings, constants):
            raise DataError(
                f"{folder} was written by a world with other settings (world, heads, signals, seed); "
                f"remove {folder.parent} to start a new world"
            )
        world = cls(settings, seed, constants=constants, calibration=calibration)
        world.first_day = None if first is None else date.fromisoformat(first)
        world.sessions_before = sessions_before
        world.long_term, world.last_day = arrays["long_term"], arrays["last_day"]
        world.follows = arrays["follows"]
        world.population.profile["follow_user_num"] = arrays["follow_user_num"]
        world.history = History.of_arrays(arrays)
        return world


def population_of(settings: Settings, constants: WorldConstants, seed: int) -> Population:
    """The population of the build that the settings name."""
    if settings.world.build == "kuairand":
        return load_fitted(settings, constants, seed)
    return synthetic(settings, constants, seed)


def fingerprint(settings: Settings, constants: WorldConstants) -> str:
    """Hash of all that decides what a saved world means."""
    world = settings.world.model_dump(
        mode="json", exclude={"concurrency", "requests_per_day", "logs", "start_day", "past_days"}
    )
    parts = {
        "world": world,
        "heads": [head.model_dump() for head in settings.heads],
        "signals": [signal.model_dump() for signal in settings.signals],
        "seed": settings.seed,
        "constants": asdict(replace(constants, interaction_odds=dict(constants.interaction_odds))),
    }
    return json_sha256(parts)
