"""Small lakes written straight from the contract, and a way to damage one partition of them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contract.columns import Column, decision_columns, impression_columns, user_columns
from training.contract.epochs import epoch_of_day
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.contract.transitions import TRANSITION

ARROW = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "list<float>": pa.list_(pa.float32()),
    "timestamp[us, UTC]": pa.timestamp("us", tz="UTC"),
}
SHOWN = 6  # items a request


def _table(columns: list[Column], values: dict[str, list]) -> pa.Table:
    schema = pa.schema([(column.name, ARROW[column.type]) for column in columns])
    return pa.table({column.name: values[column.name] for column in columns}, schema=schema)


@dataclass
class Lake:
    """A data folder in the making. ``requests`` is the number of requests of an ordinary day."""

    settings: Settings
    requests: int = 300

    def path(self, table: str, day: date) -> Path:
        folder = (
            self.settings.layout.mart("fct_transitions") / f"dt={day.isoformat()}"
            if table == "transitions"
            else self.settings.layout.partition(table, day)
        )
        return folder / "part-0.parquet"

    def write(self, table: str, day: date, content: pa.Table) -> None:
        path = self.path(table, day)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, path)

    def damage(self, table: str, day: date, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace a landed partition by a changed one, as a broken writer would."""
        self.write(table, day, change(pq.read_table(self.path(table, day))))

    def set_value(self, table: str, day: date, column: str, rows: list[int], value: object) -> None:
        def change(content: pa.Table) -> pa.Table:
            index = content.schema.get_field_index(column)
            values = content[column].to_pylist()
            for row in rows:
                values[row] = value
            return content.set_column(
                index, content.schema.field(index), pa.array(values, content[column].type)
            )

        self.damage(table, day, change)

    def add_day(self, day: date, requests: int | None = None, predictions: bool = True) -> None:
        """Impressions, decisions, users and transitions of one ordinary day."""
        settings = self.settings
        rng = np.random.default_rng(day.toordinal())
        n = requests or self.requests
        k = len(settings.heads)
        midnight = settings.day_start(day)
        times = [midnight + timedelta(seconds=float(s)) for s in np.sort(rng.uniform(0, 86_399, n))]
        ids = [f"{day.isoformat()}-{i:06d}" for i in range(n)]
        users = rng.integers(0, 50, n).tolist()
        sessions = [f"s{user}-{day}" for user in users]
        arms = rng.choice(["champion", "static", "random", "noise"], n, p=[0.5, 0.2, 0.15, 0.15]).tolist()
        states = rng.normal(0, 1, (n, settings.state_spec.width)).astype(np.float32).tolist()
        actions = rng.uniform(-1, 1, (n, k)).astype(np.float32).tolist()
        densities = [-1.5 if arm in ("random", "noise") else None for arm in arms]

        def each(values: list) -> list:
            return [value for value in values for _ in range(SHOWN)]

        shown = n * SHOWN
        signals = {s.column: (rng.random(shown) < 0.3).astype(np.int8).tolist() for s in settings.signals}
        scores = {
            f"p_{h.name}": rng.uniform(0, min(h.maximum, 60.0), shown).astype(np.float32).tolist()
            if predictions
            else [None] * shown
            for h in settings.heads
        }
        self.write(
            IMPRESSIONS,
            day,
            _table(
                impression_columns(settings),
                {
                    "request_id": each(ids),
                    "session_id": each(sessions),
                    "user_id": each(users),
                    "item_id": list(range(shown)),
                    "event_ts": each(times),
                    "feedback_ts": each(times),
                    "position": list(range(SHOWN)) * n,
                    "play_time_ms": rng.integers(0, 60_000, shown).tolist(),
                    "duration_ms": rng.integers(0, 60_000, shown).tolist(),
                    **signals,
                    **scores,
                },
            ),
        )
        decided = {
            "request_id": ids,
            "session_id": sessions,
            "user_id": users,
            "event_ts": times,
            "policy_version": ["p1"] * n,
            "arm": arms,
            "state": states,
            "action": actions,
            "action_mean": actions,
            "log_density": densities,
            "exploration_unit": [None if density is None else "session" for density in densities],
            "epoch": [epoch_of_day(day, settings.serving.exploration.epoch_days)] * n,
            "fallback": [None] * n,
            "state_spec": [settings.state_spec.version] * n,
            "features_until": [midnight] * n,
        }
        self.write(DECISIONS, day, _table(decision_columns(), decided))
        everyone = list(range(50))
        profile = {
            f.column: ["full_active" if f.kind == "categorical" else 1] * 50 for f in settings.state.profile
        }
        self.write(
            USERS,
            day,
            _table(
                user_columns(settings),
                {"user_id": everyone, "updated_ts": [midnight] * 50, **profile},
            ),
        )
        done = (rng.random(n) < 0.3).tolist()
        moved = {
            "step": [0] * n,
            "reward": rng.uniform(0, 3, n).tolist(),
            "next_state": [None if end else state for end, state in zip(done, states, strict=True)],
            "next_request_id": [None] * n,
            "impressions": [SHOWN] * n,
            "play_s": rng.uniform(0, 60, n).tolist(),
            "positive_interactions": [1] * n,
            "done": done,
            "truncated": [False] * n,
        }
        # as an older version exported them: without what only some learners read
        columns = [column for column in TRANSITION if column.name in {**decided, **moved}]
        self.write("transitions", day, _table(columns, decided | moved))


DAYS = (date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7))


def _settings(data: Path) -> Settings:
    """Three heads, three signals and two profile columns: enough to tell one from another."""
    return Settings(
        data=data,
        heads=[
            {"name": "click", "static": 1.0},
            {"name": "like", "static": 0.5},
            {"name": "play_time", "static": 0.3, "maximum": 36_000.0},
        ],
        signals=[
            {"name": "click", "column": "is_click", "weight": 0.1},
            {"name": "like", "column": "is_like", "weight": 0.5},
            {"name": "hate", "column": "is_hate", "weight": -2.0},
        ],
        state={
            "profile": [
                {"column": "is_video_author", "kind": "flag"},
                {"column": "fans_user_num", "kind": "log"},
            ]
        },
        validation={"min_transitions": 200, "min_rate_count": 100, "min_drift_rows": 1000},
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(_settings(tmp_path / "data"))


@pytest.fixture(scope="session")
def _ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ordinary") / "data"
    for day in DAYS:
        Lake(_settings(folder)).add_day(day)
    return folder


@pytest.fixture
def days(lake: Lake, _ordinary: Path) -> Lake:
    """Three ordinary days, to be damaged."""
    shutil.copytree(_ordinary, lake.settings.data)
    return lake


@pytest.fixture
def shown(days: Lake) -> Lake:
    """Three ordinary days of impressions alone."""
    for table in (DECISIONS, USERS):
        shutil.rmtree(days.settings.layout.table(table))
    return days
