"""The state specification: its version, its order, and how raw values become entries."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.contract.errors import PolicyError
from training.contract.settings import ProfileFeature, Settings, StateSettings
from training.contract.state import (
    StateFeature,
    StateSpec,
    context_values,
    days_since,
    history_columns,
    session_columns,
)

SPEC = Settings().state_spec


def raw(spec: StateSpec, count: int, value: object = None) -> dict[str, list]:
    sources = ("profile", "history", "session", "context")
    return {name: [value] * count for source in sources for name in spec.inputs(source)}


def entry(feature: StateFeature, **columns: list) -> list[float]:
    return StateSpec((feature,)).assemble(columns)[:, 0].tolist()


def test_the_state_is_profile_history_session_context_in_order() -> None:
    names = SPEC.entry_names
    assert len(names) == SPEC.width == len(set(names))
    signals = Settings().signal_names
    assert SPEC.inputs("history") == history_columns(signals)
    assert set(SPEC.inputs("session")) == set(session_columns(signals, Settings().head_names))
    assert SPEC.inputs("context") == ["hour"]
    assert names[-2:] == ["hour_sin", "hour_cos"]


def test_the_version_tells_specifications_apart_and_nothing_else() -> None:
    assert Settings().state_spec.version == SPEC.version
    assert StateSpec.from_json(SPEC.to_json()) == SPEC
    first, second, *rest = SPEC.features
    assert StateSpec((second, first, *rest)).version != SPEC.version
    assert StateSpec((replace(first, categories=("x",)), second, *rest)).version != SPEC.version
    profile = StateSettings(profile=(ProfileFeature(column="age"),))
    assert Settings(state=profile).state_spec.version != SPEC.version


def test_a_user_never_seen_has_a_finite_state() -> None:
    state = SPEC.assemble(raw(SPEC, 2))
    assert state.shape == (2, SPEC.width) and state.dtype == np.float32
    hour = {"hour_sin": 0.0, "hour_cos": 1.0}
    assert dict(zip(SPEC.entry_names, state[0], strict=True)) == dict.fromkeys(SPEC.entry_names, 0.0) | hour


@given(values=st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=5))
def test_no_value_makes_a_state_that_is_not_a_number(values: list[float | None]) -> None:
    columns = {name: values for name in raw(SPEC, 1)}
    state = SPEC.assemble(columns)
    assert np.isfinite(state).all()
    rows = [SPEC.assemble({name: [value] for name in columns})[0] for value in values]
    np.testing.assert_array_equal(state, rows)  # one row is the same alone and in a batch


def test_each_transform() -> None:
    assert entry(StateFeature("x", "history", "identity", ("x",)), x=[2, None]) == [2.0, 0.0]
    log = entry(StateFeature("x", "history", "log1p", ("x",)), x=[math.e - 1, -(math.e - 1)])
    assert log == pytest.approx([1.0, -1.0])
    ratio = StateFeature("x", "session", "ratio", ("a", "b"))
    assert entry(ratio, a=[1, 5, 1], b=[4, 0, None]) == [0.25, 0.0, 0.0]
    saturating = StateFeature("x", "history", "saturating", ("x",), half=5.0)
    assert entry(saturating, x=[5, 0, None, -15, 1e300]) == [0.5, 0.0, 0.0, -0.75, 0.0]
    assert entry(saturating, x=[3e38]) == [1.0]
    log_ratio = StateFeature("x", "session", "log1p_ratio", ("a", "b"))
    assert entry(log_ratio, a=[4 * (math.e - 1)], b=[4]) == pytest.approx([1.0])
    hot = StateFeature("x", "profile", "onehot", ("x",), ("a", "1"))
    encoded = StateSpec((hot,)).assemble({"x": ["a", 1, "other", None]})
    assert encoded.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]
    assert entry(StateFeature("x", "context", "hour_sin", ("x",)), x=[6]) == pytest.approx([1.0])
    assert entry(StateFeature("x", "context", "hour_cos", ("x",)), x=[12]) == pytest.approx([-1.0])


def test_a_missing_column_is_named() -> None:
    columns = raw(SPEC, 1)
    del columns["hist_count"]
    with pytest.raises(KeyError, match="hist_count"):
        SPEC.assemble(columns)


def test_a_specification_without_saturating_entries_reads_and_counts_as_ever() -> None:
    text = '[{"categories": [], "inputs": ["x"], "name": "x", "source": "history", "transform": "log1p"}]'
    assert StateSpec.from_json(text).to_json() == text


@given(st.lists(st.integers(0, 10**6), min_size=40, max_size=40))
def test_what_happened_twice_as_often_moves_no_entry_far(counts: list[int]) -> None:
    """A log and an account twice as old, a session twice as long: a logarithm would move by ln 2."""
    means = {name for name in history_columns(Settings().signal_names) if name.startswith("hist_")}
    means -= {"hist_count", "hist_days_since_last"}
    means |= {"hour", "is_lowactive_period", "is_video_author"}
    columns = {name: [counts[at % 40]] for at, name in enumerate(SPEC.numbers)}
    twice = {name: [value if name in means else 2 * value] for name, (value,) in columns.items()}
    nobody = {name: [None] for name in SPEC.categorical}
    moved = np.abs(SPEC.assemble(twice | nobody) - SPEC.assemble(columns | nobody)).max()
    assert moved <= (math.sqrt(2) - 1) / (math.sqrt(2) + 1) + 1e-6  # of x / (x + half) at half / sqrt(2)


@pytest.mark.parametrize("text", ["", "{}", "[{}]", "null", '[{"name": "x"}]'])
def test_an_unreadable_specification_is_refused(text: str) -> None:
    if text == "{}":  # no features: readable, and nothing's specification
        assert StateSpec.from_json(text).width == 0
        return
    with pytest.raises(PolicyError, match="unreadable state specification"):
        StateSpec.from_json(text)


def test_hours_and_days_are_the_calendars() -> None:
    evening = datetime(2026, 1, 4, 16, 30, tzinfo=UTC)  # 00:30 of the 5th at UTC+8
    zone = ZoneInfo("Asia/Shanghai")
    assert context_values(evening, zone) == {"hour": 0.0}
    assert context_values(evening, UTC) == {"hour": 16.0}
    assert days_since(None, evening, zone) == 0.0
    yesterday = datetime(2026, 1, 4, 15, 59, tzinfo=UTC)  # a minute before midnight
    assert days_since(yesterday, evening, zone) == 0.0
    assert days_since(datetime(2026, 1, 2, 15, 59, tzinfo=UTC), evening, zone) == 2.0
    assert days_since(evening, evening, zone) == 0.0  # today


def test_hours_are_those_of_the_wall_over_a_change_of_clocks_and_in_half_hour_zones() -> None:
    berlin, kolkata = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")
    hours = [context_values(datetime(2026, 10, 25, h, tzinfo=UTC), berlin)["hour"] for h in range(3)]
    assert hours == [2.0, 2.0, 3.0]  # the hour that comes twice
    assert context_values(datetime(2026, 1, 4, 18, 29, tzinfo=UTC), kolkata) == {"hour": 23.0}
    assert context_values(datetime(2026, 1, 4, 18, 30, tzinfo=UTC), kolkata) == {"hour": 0.0}
    # 25 hours after a midnight, and still the same day
    late = datetime(2026, 10, 25, 22, 59, tzinfo=UTC)
    assert days_since(datetime(2026, 10, 24, 21, 59, tzinfo=UTC), late, berlin) == 0.0
    assert days_since(datetime(2026, 10, 23, 21, 59, tzinfo=UTC), late, berlin) == 1.0
