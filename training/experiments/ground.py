"""What the methods of a seed share: the world day by day, the fixed logs, and the judge's sessions.

A world lives on under static weights; its snapshots are kept. The log of a day is made of sessions of its
own on that day's snapshot, and the judge's sessions lie on the day after the log. Sessions of different
purposes, seeds and rounds never share their luck.
"""

from collections.abc import Sequence
from dataclasses import fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.contract.errors import DataError
from training.contract.files import write_atomic
from training.contract.fusion import top
from training.experiments.table import ExplorationLog, Table, slug
from training.trajectories import Transitions
from training.world.simulator.collect import Arm, collect, random_arm
from training.world.simulator.references import Bench, Choose
from training.world.simulator.world import World

JUDGE, CURVE, LOG, SEARCH = range(1, 5)  # purposes of sessions
_PURPOSES, _SEEDS, _PARTS = 10, 1_000, 100


class Ground:
    """The ground of one world and seed. ``folder`` holds the snapshots and logs; :meth:`prepare` first."""

    def __init__(self, table: Table, world: str, seed: int, folder: Path) -> None:
        self.table, self.name, self.seed, self.folder = table, world, seed, folder / slug(world)
        self.settings = table.ranking_settings(world)
        start = date.fromisoformat(self.settings.world.start_day)
        first = start + timedelta(days=table.past_days)
        self.log_days = [first + timedelta(days=place) for place in range(table.log_days)]
        self.judge_day = first + timedelta(days=table.log_days)
        self._worlds: dict[date, World] = {}

    # the world

    def prepare(self) -> None:
        """Live the days before the judge's, once: a snapshot each of the log's days and the judge's."""
        if self._snapshot(self.judge_day).is_dir():
            return
        settings = self.table.world_settings(self.name)
        world = World(settings)
        fusion, page = settings.fusion, settings.world.page
        weights = fusion.to_weights(fusion.static_action)
        day = date.fromisoformat(settings.world.start_day)
        while True:
            if day >= self.log_days[0]:
                world.save(self._snapshot(day))
            if day == self.judge_day:
                return
            world.start_day(day)
            while len(world.live):
                requests = world.requests()
                places = top(fusion.score(requests.predictions, weights), page)
                shown = np.take_along_axis(requests.item_ids, places, axis=1)
                world.respond(requests, shown, ["static"] * len(requests))
            world.end_day()
            day += timedelta(days=1)

    def bench(self, purpose: int, day: date, sessions: int, part: int = 0) -> Bench:
        """Sessions of their own for a purpose, a seed and a part."""
        if day not in self._worlds:
            world = World.load(self.table.world_settings(self.name), self._snapshot(day))
            world.settings = self.settings  # the ranking's heads and form; the world stays as it was built
            self._worlds[day] = world  # a bench changes nothing of it
        if purpose >= _PURPOSES or part >= _PARTS or not 0 <= self.seed < _SEEDS:
            raise ValueError("too many parts, or a seed above 999")
        number = (purpose * _SEEDS + self.seed) * _PARTS + part
        return Bench(
            self._worlds[day], day, sessions, seed=number * 100
        )  # 100: of up to a million sessions each

    def judge(self) -> Bench:
        return self.bench(JUDGE, self.judge_day, self.table.judge.sessions)

    def curve(self) -> Bench:
        return self.bench(CURVE, self.judge_day, self.table.judge.curve_sessions)

    def search(self, sessions: int, part: int = 0) -> Bench:
        """What searches may play: sessions of the last day of the log."""
        return self.bench(SEARCH, self.log_days[-1], sessions, part)

    # the logs

    def prepare_log(self, name: str) -> None:
        """Collect a fixed log, once."""
        path = self._log(name)
        if not path.is_file():
            log = self.table.logs[name]
            write_transitions(path, self.collect(self.mixed(log, self.static), log.sessions, part=0))

    def log(self, name: str) -> Transitions:
        return read_transitions(self._log(name))

    def static(self, states: np.ndarray, requests: object) -> np.ndarray:
        return np.repeat(self.settings.fusion.static_action[None], len(states), axis=0)

    def mixed(self, log: ExplorationLog, mean: Choose) -> list[Arm]:
        """The random group, and noise around ``mean``."""
        heads, how = len(self.settings.heads), self.settings.serving
        unit = how.exploration.unit
        return [
            random_arm(heads, how.random_std, log.random, unit),
            Arm("noise", mean, how.noise_std, share=log.noise, unit=unit),
        ]

    def collect(self, arms: Sequence[Arm], sessions: int, part: int) -> Transitions:
        """Sessions spread over the log's days."""
        days = []
        for place, day in enumerate(self.log_days):
            count = sessions * (place + 1) // len(self.log_days) - sessions * place // len(self.log_days)
            bench = self.bench(LOG, day, count, part * len(self.log_days) + place)
            days.append(collect(bench, [arm for arm in arms if arm.share > 0.0], self.seed))
        return concatenated(days)

    def split(self, data: Transitions) -> tuple[Transitions, Transitions]:
        """Training and test split: the last sessions are the test's, as the daily retrain cuts them."""
        sessions = data.sessions.numpy()
        _, rows = np.unique(sessions, return_counts=True)
        kept = np.cumsum(rows) <= (1.0 - self.settings.evaluation.test_share) * len(data)
        last = int(np.unique(sessions)[kept][-1])
        train = torch.from_numpy(sessions <= last)
        return data.take(train), data.take(~train)

    def _snapshot(self, day: date) -> Path:
        return self.folder / f"dt={day.isoformat()}"

    def _log(self, name: str) -> Path:
        return self.folder / f"seed={self.seed}" / f"{name}.npz"


def concatenated(parts: list[Transitions]) -> Transitions:
    """Logs of one world one after another, with session numbers of their own.

    All must have the same arms and columns; the users are the world's.
    """
    columns: dict[str, Any] = {}
    for field in fields(Transitions):
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = torch.cat(values) if isinstance(values[0], torch.Tensor) else values[0]
    sizes = [0, *(int(part.sessions.max()) + 1 for part in parts[:-1])]
    numbered = [part.sessions + start for part, start in zip(parts, np.cumsum(sizes), strict=True)]
    return Transitions(**columns | {"sessions": torch.cat(numbered)})


def write_transitions(path: Path, data: Transitions) -> None:
    """A column an array, without pickle."""
    columns = {field.name: getattr(data, field.name) for field in fields(data)}
    arrays: dict[str, Any] = {
        name: np.asarray(value, dtype=str) if isinstance(value, tuple) else np.asarray(value)
        for name, value in columns.items()
        if value is not None
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_atomic(path, write)


def read_transitions(path: Path) -> Transitions:
    """What :func:`write_transitions` wrote. Raises :class:`DataError` for a file of an older version."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if "version_names" not in arrays:
        raise DataError(f"{path} was written by an older version; remove it and run this again")
    columns: dict[str, Any] = {
        name: tuple(map(str, values)) if name.endswith("_names") else torch.from_numpy(values)
        for name, values in arrays.items()
    }
    return Transitions(**columns)
