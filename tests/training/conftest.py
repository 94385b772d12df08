"""A small log with a known answer, for the tests of trajectories, learner and judge."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contract.settings import (
    EvaluationSettings,
    HeadSettings,
    LearnerSettings,
    Settings,
    SignalSettings,
    StateSettings,
)
from training.contract.transitions import TRANSITION
from training.ingest.schema import TIMESTAMP
from training.promotion import registry

DAY = date(2026, 1, 7)
ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "list<float>": pa.list_(pa.float32()),
    "timestamp[us, UTC]": TIMESTAMP,
    "double": pa.float64(),
}
TYPES = {column.name: ARROW.get(column.type) for column in TRANSITION}  # None: as pyarrow takes it

Behaviour = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def uniform(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1.0, 1.0, (len(states), 2)).astype(np.float32)


@dataclass
class ToyWorld:
    """Sessions of users whose satisfaction x wears off when a request grabs clicks (a_0 > 0).

    State: (x, taste, 0, …). Reward r = 4 x − 1.5 + 0.5 a_0 − (a_1 − taste)², x' = 0.7 x + 0.15 (1 − a_0): the
    best single step has a_0 = 1, and the best session a_0 = −1 throughout (a unit of a_0 gains 0.5 now
    and loses 0.6 γ' / (1 − 0.7 γ') = 1.11 later, for γ' = 0.95 (1 − stop)). A session ends after a
    request with probability ``stop``. The part of x is the watch reward; the two to four shown items,
    whose rewards lean on their second score, have no part in it.
    """

    settings: Settings
    stop: float = 0.15
    days: list[date] = field(default_factory=lambda: [DAY - timedelta(days=1), DAY])

    def start(self, count: int, rng: np.random.Generator) -> np.ndarray:
        states = np.zeros((count, self.settings.state_spec.width), dtype=np.float32)
        states[:, 0] = 0.5
        states[:, 1] = rng.uniform(-0.8, 0.8, count)
        return states

    def reward(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return 4.0 * states[:, 0] - 1.5 + 0.5 * actions[:, 0] - (actions[:, 1] - states[:, 1]) ** 2

    def move(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        after = states.copy()
        after[:, 0] = 0.7 * states[:, 0] + 0.15 * (1.0 - actions[:, 0])
        return after

    def value(self, act: Behaviour, gamma: float, sessions: int = 4_000, seed: int = 1) -> float:
        """True mean discounted return of a session (the stopping is averaged exactly)."""
        rng = np.random.default_rng(seed)
        states, total = self.start(sessions, rng), np.zeros(sessions)
        for step in range(80):  # γ (1 − stop) to this power is nothing
            actions = act(states, rng)
            total += (gamma * (1.0 - self.stop)) ** step * self.reward(states, actions)
            states = self.move(states, actions)
        return float(total.mean())

    def rows(
        self, day: date, sessions: int, behaviours: dict[str, Behaviour], seed: int = 0
    ) -> list[dict[str, object]]:
        """Rows of ``fct_transitions``; session i belongs to the i-th arm, in turn."""
        rng = np.random.default_rng([seed, day.toordinal()])
        items = np.random.default_rng([seed, day.toordinal(), 1])
        arms, version = list(behaviours), self.settings.state_spec.version
        begin = self.settings.day_start(day)
        states, alive = self.start(sessions, rng), np.arange(sessions)
        out: list[dict[str, object]] = []
        for step in itertools.count():
            arm_of = alive % len(arms)
            actions = np.zeros((len(alive), 2), dtype=np.float32)
            for index, arm in enumerate(arms):
                actions[arm_of == index] = behaviours[arm](states[arm_of == index], rng)
            rewards, after = self.reward(states, actions), self.move(states, actions)
            scores = items.random((len(alive), 4, 2), dtype=np.float32)
            shown = items.integers(2, 5, len(alive))  # of 4 at most
            done = rng.random(len(alive)) < self.stop
            for i, number in enumerate(alive.tolist()):
                name = f"{day.isoformat()}-{number:05d}"
                out.append(
                    {
                        "request_id": f"{name}-{step:03d}",
                        "session_id": name,
                        "user_id": number,
                        "event_ts": begin + timedelta(seconds=10 * number, milliseconds=100 * step),
                        "step": step,
                        "arm": arms[arm_of[i]],
                        "policy_version": "toy",
                        "fallback": None,
                        "state": states[i],
                        "action": actions[i],
                        "action_mean": actions[i],
                        "log_density": None,
                        "exploration_unit": None,
                        "epoch": 0,
                        "reward": float(rewards[i]),
                        "watch_reward": 4.0 * float(states[i, 0]) - 1.5,
                        "item_scores": scores[i, : shown[i]].ravel(),
                        "item_rewards": scores[i, : shown[i]] @ np.array([0.2, 0.8], dtype=np.float32),
                        "next_state": None if done[i] else after[i],
                        "done": bool(done[i]),
                        "truncated": False,
                        "next_request_id": None if done[i] else f"{name}-{step + 1:03d}",
                        "state_spec": version,
                        "dt": day.isoformat(),
                    }
                )
            states, alive = after[~done], alive[~done]
            if len(alive) == 0:
                return sorted(out, key=lambda row: (row["event_ts"], row["request_id"]))

    def write(self, day: date, rows: list[dict[str, object]]) -> Path:
        path = self.settings.layout.mart("fct_transitions") / f"dt={day.isoformat()}" / "part-0.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = list(rows[0])
        columns = {n: pa.array([row[n] for row in rows], TYPES.get(n)) for n in names}
        pq.write_table(pa.table(columns), path)
        return path

    def log(self, sessions: int, behaviours: dict[str, Behaviour] | None = None, seed: int = 0) -> None:
        """Write every day's export."""
        for day in self.days:
            self.write(
                day, self.rows(day, sessions, behaviours or {"random": uniform, "noise": uniform}, seed)
            )


def toy_settings(data: Path, **sections: object) -> Settings:
    """Two heads, one signal, small networks."""
    learner = {
        "steps": 60,
        "batch_size": 64,
        "critic_hidden": (32, 32),
        "checkpoint_every": 25,
        "threads": 1,
    } | sections.pop("learner", {})
    learner["batchrl_mtf"] = {
        "members": 2,
        "candidates": 5,
        "serving_candidates": 20,
        "generator_hidden": (32, 32),
        "perturbation_hidden": (32, 32),
    } | learner.get("batchrl_mtf", {})
    evaluation = {"hidden": (32, 32), "steps": 200, "batch_size": 128, "replicates": 3} | sections.pop(
        "evaluation", {}
    )
    return Settings(
        data=data,
        heads=(
            HeadSettings(name="click", static=1.0, high=2.0),
            HeadSettings(name="like", static=0.5),
        ),
        signals=(SignalSettings(name="click", column="is_click", weight=1.0),),
        state=StateSettings(profile=()),
        learner=LearnerSettings(**learner),
        evaluation=EvaluationSettings(**evaluation),
        **sections,
    )


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., ToyWorld]:
    """A function of a data folder and settings sections that gives a :class:`ToyWorld`."""
    return lambda folder, **sections: ToyWorld(toy_settings(folder, **sections))


@pytest.fixture
def toy(tmp_path: Path, make_toy: Callable[..., ToyWorld]) -> Callable[..., ToyWorld]:
    """The same in the test's own folder, named by ``folder``."""
    return lambda folder="data", **sections: make_toy(tmp_path / folder, **sections)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making one takes seconds, so it is made once."""
    settings = Settings(data=tmp_path_factory.mktemp("registry"))
    assert registry.alias_version(settings, registry.CHAMPION) is None
    return settings.layout.mlflow / "mlflow.db"
