"""What the model is told: rows as landed, and counts of days before the row's own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.training.world.upstream.conftest import DAYS, ROWS_A_DAY
from training.contract.errors import DataError
from training.contract.settings import Settings
from training.world.upstream.data import MINIMUM_COUNT, SMOOTHING, Encoder, read_log


def test_rows_are_those_landed_with_page_hour_and_targets(landed: Settings, release: Path) -> None:
    log = read_log(landed, release)
    raw = pd.read_csv(next(release.glob("log_*.csv")))
    assert log.days == DAYS
    assert len(log.rows) == len(raw) == ROWS_A_DAY * len(DAYS)
    raw = raw.assign(event_ts=pd.to_datetime(raw["time_ms"], unit="ms", utc=True))
    both = log.rows.merge(
        raw, left_on=["user_id", "item_id", "event_ts"], right_on=["user_id", "video_id", "event_ts"]
    )
    assert len(both) == len(raw)
    assert (both["tab_x"] == both["tab_y"].astype(str)).all()
    assert (both["y_click"] == both["is_click"]).all()
    np.testing.assert_allclose(both["y_play_time"], (both["play_time_ms"] / 1000).clip(upper=120.0))
    local = both["event_ts"] + pd.Timedelta(hours=8)
    assert (both["hour"] == local.dt.hour.astype(str)).all()
    assert (both["day"] == local.dt.date).all()
    assert both.loc[both["duration_ms"] == 0, "log_duration"].isna().all()
    assert (log.users["user_id"].iloc[log.user_row].to_numpy() == log.rows["user_id"]).all()


def test_counts_are_of_the_days_before(landed: Settings, release: Path) -> None:
    log = read_log(landed, release)
    rows = log.rows
    for day in DAYS:
        past, today = rows[rows["day"] < day], rows[rows["day"] == day]
        for entity, key in (("user", "user_id"), ("item", "item_id")):
            n = past.groupby(key).size().reindex(today[key]).fillna(0).to_numpy()
            np.testing.assert_allclose(today[f"{entity}_n"], np.log1p(n))
            mean = past["y_click"].mean() if len(past) else 0.0
            clicks = past.groupby(key)["y_click"].sum().reindex(today[key]).fillna(0).to_numpy()
            wanted = (clicks - n * mean) / (n + SMOOTHING)
            np.testing.assert_allclose(today[f"{entity}_click"], wanted, atol=1e-12)
    n = rows.groupby("item_id").size()
    latest = log.latest["item"].set_index("key")["item_n"]
    np.testing.assert_allclose(latest.loc[n.index], np.log1p(n))


def test_an_encoder_knows_the_unknown() -> None:
    frame = pd.DataFrame(
        {
            "page": ["a"] * MINIMUM_COUNT + ["b"] * MINIMUM_COUNT + ["rare"],
            "x": [0.0, 2.0] * MINIMUM_COUNT + [1.0],
            "still": 0.0,
        }
    )
    encoder = Encoder.learn(frame, ["page"], ["x", "still"])
    assert encoder.cardinalities == [3]
    block = encoder.encode(
        pd.DataFrame({"page": ["b", "rare", None, "new"], "x": [1.0, np.nan, 1e9, 0.0], "still": 3.0})
    )
    assert block.categories[:, 0].tolist() == [2, 0, 0, 0]
    assert block.numbers[:3, 0].tolist() == [0.0, 0.0, 5.0]
    assert block.numbers[3, 0] < 0
    assert (block.numbers[:, 1] == 0.0).all()  # it never varied: what it would mean was not learnt


def test_what_lacks_is_named(landed: Settings, release: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file user_features\*"):
        read_log(landed, tmp_path)
    with pytest.raises(DataError, match="no landed impressions"):
        read_log(Settings(data=tmp_path), release)
    heads = [{"name": "swipe", "static": 0.5}]
    with pytest.raises(DataError, match="no head"):
        read_log(Settings(data=landed.data, heads=heads), release)
