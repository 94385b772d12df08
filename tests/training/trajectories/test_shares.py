"""A window that is read a share at a time is the window in memory, wherever sessions cross its parts."""

from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.conftest import DAY, TYPES, toy_settings
from training import trajectories
from training.contract.errors import DataError, MtfError
from training.contract.settings import IdSettings, Settings
from training.returns import Features, Parts, Statistics, learn, learn_parts, of_parts
from training.returns.statistics import entries_of_log
from training.trajectories import shares
from training.trajectories.requests import InitialStates, InMemory, Spread, Targets
from training.trajectories.shares import WindowLog
from training.warehouse.sums import InProcess

DAYS = 3


def made(root: Path, seed: int, *, sessions: int = 40, text: bool = False, mixed: bool = False) -> Settings:
    """A window of sessions that take hours and so cross days, with rows of every kind that is left out, in
    row groups of a few rows."""
    rng = np.random.default_rng(seed)
    limits = {"window_days": DAYS, "max_user_requests": 6, "max_session_requests": 7}
    made = toy_settings(
        root,
        learner=limits | {"mixed_exploration": False},
        ids=IdSettings(users="string" if text else "int64"),
    )
    begin = made.day_start(DAY - timedelta(days=DAYS - 1))
    rows = []
    for session in range(sessions):
        length, at = int(rng.integers(1, 10)), int(rng.integers(0, DAYS * 24 * 60 - 60))
        user, unit = session % 9, str(rng.choice(["session", "request", ""]))
        cut, held = rng.random() < 0.3, rng.uniform(-1, 1, 2)
        for step in range(length):
            name = f"{session:03d}-{step}"
            rows.append(
                {
                    "request_id": name,
                    "session_id": f"s{session // 9}",  # other users have one of that name
                    "user_id": f"u{user}" if text else user,
                    "event_ts": begin + timedelta(minutes=at),
                    "step": step,
                    "arm": "random",
                    "policy_version": "toy",
                    "state": rng.normal(3.0, 1.0, made.state_spec.width).astype(np.float32),
                    "action": (held if unit == "session" else rng.uniform(-1, 1, 2)).astype(np.float32),
                    "action_mean": np.zeros(2, dtype=np.float32),
                    "log_density": -1.0 if unit else None,
                    "exploration_unit": unit or None,
                    "reward": float(rng.normal()),
                    "watch_reward": float(rng.normal()),
                    "done": step == length - 1 and not cut,
                    "truncated": bool(step == length - 1 and cut),
                    "next_request_id": None if step == length - 1 else f"{session:03d}-{step + 1}",
                    "state_spec": "other" if mixed and rng.random() < 0.1 else made.state_spec.version,
                }
            )
            at += int(rng.integers(0, 400))  # minutes; two requests at the same time, too
    rows = [row for row in rows if row["event_ts"] < begin + timedelta(days=DAYS)]
    by_name = {row["request_id"]: row for row in rows}
    for row in rows:
        following = by_name.get(row["next_request_id"])
        row["truncated"] |= following is None and not row["done"]
        row["next_state"] = None if following is None else following["state"]
    rows.sort(key=lambda row: (row["event_ts"], row["request_id"]))
    for number in range(DAYS):
        day = DAY - timedelta(days=DAYS - 1 - number)
        low, high = made.day_start(day), made.day_start(day + timedelta(days=1))
        write(made, day, [row for row in rows if low <= row["event_ts"] < high])
    return made


def write(settings: Settings, day, rows, group: int = 7) -> Path:
    path = settings.layout.mart("fct_transitions") / f"dt={day.isoformat()}" / "part-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    types = TYPES | {"user_id": pa.string() if settings.ids.users == "string" else pa.int64()}
    types |= {"log_density": pa.float64(), "exploration_unit": pa.string(), "step": pa.int32()}
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def same(one: Parts, other: Parts) -> None:
    for a, b in ((one.whole, other.whole), (one.time, other.time)):
        for f in fields(Statistics):
            np.testing.assert_allclose(getattr(a, f.name), getattr(b, f.name), rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(one.cross, other.cross, rtol=1e-10, atol=1e-9)


def by_number(initial: InitialStates) -> np.ndarray:
    return initial.states[np.argsort(initial.numbers)]


def compared(settings: Settings, least: int) -> tuple[InMemory, WindowLog]:
    """Hold the two to each other."""
    log = InMemory(trajectories.load(settings, DAY, ("watch_rewards",), every=True).every)
    window = WindowLog(settings, DAY, InProcess(2), least)
    for gamma in (1.0, 0.8):
        of = Targets(gamma, parts=True)
        assert window.counts(of) == log.counts(of) and log.counts(of).requests > 50
        features = Features(settings.fusion, settings.state_spec.width)
        same(of_parts(features, window, gamma), of_parts(features, log, gamma))
        some = np.arange(0, log.counts(of).sessions, 2)
        ours, theirs = (entries_of_log(features, one, of, some) for one in (window, log))
        same(ours.sums.parts, theirs.sums.parts)
        np.testing.assert_allclose(ours.spread.deviation, theirs.spread.deviation, rtol=1e-10)
        np.testing.assert_array_equal(by_number(ours.initial), by_number(theirs.initial))
    return log, window


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.sampled_from([1, 60, 10_000]))
def test_a_window_by_shares_is_the_window_in_memory(tmp_path_factory, seed, text, mixed, least) -> None:
    compared(made(tmp_path_factory.mktemp("window"), seed, text=text, mixed=mixed), least)


def test_some_sessions_cross_days_and_some_rows_are_left_out_for_every_reason(tmp_path: Path) -> None:
    """Else the test above would say little."""
    settings = made(tmp_path, 1, mixed=True)
    left_out = trajectories.load(settings, DAY).left_out
    assert min(left_out[name] for name in ("other_state_spec", "truncated", "next_of_other_state_spec")) > 0
    assert min(left_out[f"over_max_{whose}_requests"] for whose in ("user", "session")) > 0
    window = WindowLog(made(tmp_path / "one", 1), DAY, InProcess(1), least=1)
    window.counts(Targets(1.0))
    assert [len(share.ahead.keys) > 0 for share in window._shares] == [True, True, False]


def test_the_model_is_the_one_of_the_log_in_memory_whatever_the_threads(tmp_path: Path) -> None:
    settings = made(tmp_path, 2, sessions=300)
    log, _ = compared(settings, 1)
    model, _ = learn_parts(settings.fusion, log, 1.0, 2)
    thetas = [
        learn_parts(settings.fusion, WindowLog(settings, DAY, InProcess(threads), 1), 1.0, 2)[0].theta
        for threads in (1, 3)
    ]
    np.testing.assert_allclose(thetas[0], model.theta, atol=1e-7)
    assert thetas[0].tolist() == thetas[1].tolist()


def test_a_file_in_another_order_is_read_all_the_same(tmp_path: Path) -> None:
    settings = made(tmp_path, 3)
    for path in settings.layout.mart("fct_transitions").glob("dt=*/part-0.parquet"):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.take(np.arange(len(table))[::-1]), path, row_group_size=7)
    compared(settings, 1)


def test_a_file_that_is_replaced_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    settings = made(tmp_path, 4)
    window = WindowLog(settings, DAY, InProcess(1), least=1)
    path = shares.window_paths(settings, DAY)[DAY]
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table, path)
    with pytest.raises(MtfError, match="was written again while it was read: run this again"):
        window.counts(Targets(1.0))
    short = [row[:-1] for row in table["state"].to_pylist()]
    column = table.schema.get_field_index("state")
    pq.write_table(table.set_column(column, "state", pa.array(short, pa.list_(pa.float32()))), path)
    with pytest.raises(DataError, match=rf"state is not {settings.state_spec.width} numbers in every row"):
        learn(settings.fusion, WindowLog(settings, DAY, InProcess(1), least=1), 1.0, 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40), st.integers(1, 39))
def test_a_deviation_is_that_of_all_values_however_they_are_parted(values, cut) -> None:
    states = np.array(values, dtype=np.float32)[:, None] + np.float32(1e4)
    parted = Spread.of(states[: cut % len(states)]) + Spread.of(states[cut % len(states) :])
    np.testing.assert_allclose(
        parted.deviation, states.astype(np.float64).std(axis=0, ddof=1), rtol=1e-9, atol=1e-9
    )
