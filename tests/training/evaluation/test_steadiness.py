"""A champion replayed on the states of its day and of today: it moves where its state does."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contract.layout import DECISIONS
from training.contract.policy import Policy, PolicyHeader, constant_policy, load_policy, save_policy
from training.contract.settings import ProfileFeature, Settings, StateSettings
from training.evaluation import steadiness

DAY = date(2026, 1, 20)
WEEK_AGO = DAY - timedelta(days=7)
USERS = 400


def settings_of(data: Path, kind: str, half: float | None = None) -> Settings:
    visits = ProfileFeature(column="visits", kind=kind, half=half)
    return Settings(data=data, state=StateSettings(profile=(visits,)))


def serve(
    settings: Settings, day: date, more_visits: int, users: int = USERS, spec: str | None = None
) -> None:
    """The decisions of a day on which users have 20 to 60 visits, and so many more since."""
    rng = np.random.default_rng(day.toordinal())
    columns = {name: rng.random(users) for name in settings.state_spec.numbers}
    columns["visits"] = rng.integers(20, 60, users) + float(more_visits)
    states = settings.state_spec.assemble(columns)
    path = settings.layout.partition(DECISIONS, day) / "part-0.parquet"
    path.parent.mkdir(parents=True)
    rows = {
        "request_id": [f"{day}-{user}" for user in range(users)],
        "state": pa.array(states.tolist(), pa.list_(pa.float32())),
        "state_spec": [spec or settings.state_spec.version] * users,
    }
    pq.write_table(pa.table(rows), path)


def policy_of(settings: Settings, middle: float = 3.7) -> Policy:
    """A policy whose first head follows the entry ``visits`` around the middle of its first day."""
    d, k = settings.state_spec.width, len(settings.heads)
    weight = np.zeros((k, d), dtype=np.float32)
    weight[0, settings.state_spec.entry_names.index("visits")] = 0.5
    tensors = {
        "state_mean": np.zeros(d, dtype=np.float32),
        "state_scale": np.ones(d, dtype=np.float32),
        "actor.0.weight": weight,
        "actor.0.bias": np.full(k, -0.5 * middle, dtype=np.float32),
    }
    path = settings.data / "policy.safetensors"
    save_policy(path, PolicyHeader("deterministic", "p1", settings.state_spec, settings.fusion), tensors)
    return load_policy(path)


def test_a_counter_that_grew_moves_the_policy_and_is_warned_of(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "log")
    serve(settings, WEEK_AGO, more_visits=0)
    serve(settings, DAY, more_visits=60)
    record = steadiness(settings, DAY, {WEEK_AGO: policy_of(settings)})
    (told,) = record["policies"]
    assert told["states"] == [USERS, USERS] and told["largest"] > record["bound"] == 0.1
    assert told["moved"]["click"] == pytest.approx(told["largest"])
    others = [moved for head, moved in told["moved"].items() if head != "click"]
    assert others == pytest.approx([0.0] * 7, abs=1e-6)
    then, now = told["weights"]["click"]
    assert now - then == pytest.approx(told["largest"], abs=1e-6)  # an interval of 0 to 2: a unit is a unit
    (warning,) = record["warnings"]
    assert "p1 of 2026-01-13" in warning and "mean weight of click" in warning


@pytest.mark.parametrize(
    ("kind", "half", "middle", "more"), [("log", None, 3.7, 0), ("saturating", 5.0, 0.88, 60)]
)
def test_a_state_that_stands_still_is_not_warned_of(
    tmp_path: Path, kind: str, half: float | None, middle: float, more: int
) -> None:
    """The same traffic a week later; and the same growth where the counter saturates."""
    settings = settings_of(tmp_path, kind, half)
    serve(settings, WEEK_AGO, more_visits=0)
    serve(settings, DAY, more_visits=more)
    record = steadiness(settings, DAY, {WEEK_AGO: policy_of(settings, middle)})
    assert record["warnings"] == [] and 0.0 < record["policies"][0]["largest"] < 0.05


def test_the_bound_is_the_exploration_and_what_does_not_read_the_state_cannot_move(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "log")
    serve(settings, WEEK_AGO, more_visits=0)
    serve(settings, DAY, more_visits=60)
    wide = settings.model_copy(update={"serving": settings.serving.model_copy(update={"noise_std": 0.9})})
    assert steadiness(wide, DAY, {WEEK_AGO: policy_of(settings)})["warnings"] == []
    static = constant_policy(settings.state_spec, settings.fusion, settings.fusion.static_action, "static")
    record = steadiness(settings, DAY, {WEEK_AGO: static})
    assert record["warnings"] == [] and record["policies"][0]["largest"] == pytest.approx(0.0, abs=1e-9)


def test_a_day_with_too_few_states_of_the_specification_is_said_so(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "log")
    serve(settings, WEEK_AGO, more_visits=0, spec="another")
    serve(settings, DAY, more_visits=60)
    record = steadiness(
        settings, DAY, {WEEK_AGO: policy_of(settings), DAY - timedelta(days=1): policy_of(settings)}
    )
    assert record["warnings"] == [] and [told["states"] for told in record["policies"]] == [[0, USERS]] * 2
    assert record["policies"][0]["skipped"] == "2026-01-13 has 0 states and 2026-01-20 400; 100 are needed"
