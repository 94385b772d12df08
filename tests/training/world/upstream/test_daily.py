"""Predictions of every day come from its past alone, come true on average, and come out the same again."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.training.world.upstream.conftest import DAYS, ROWS_A_DAY, UPSTREAM, write_release
from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS
from training.contract.settings import Settings
from training.ingest import land_kuairand
from training.world.simulator.constants import WorldConstants
from training.world.simulator.fitted import load_fitted
from training.world.upstream import UpstreamModel, export, export_world, predict_days
from training.world.upstream.data import read_log
from training.world.upstream.model import fit_log


@pytest.fixture(scope="module")
def predicted(landed: Settings, tmp_path_factory: pytest.TempPathFactory, release: Path) -> tuple:
    settings = Settings(
        data=tmp_path_factory.mktemp("predicted"), upstream=UPSTREAM, calendar=landed.calendar
    )
    shutil.copytree(landed.layout.root, settings.data, dirs_exist_ok=True)
    return settings, predict_days(settings, release)


def day_of(settings: Settings, day) -> pd.DataFrame:
    return pq.read_table(settings.layout.partition(IMPRESSIONS, day) / "part-0.parquet").to_pandas()


def test_a_day_without_enough_past_keeps_nulls_and_says_so(predicted: tuple) -> None:
    settings, record = predicted
    for day in DAYS[:2]:
        assert "fewer than 5000" in record["days"][str(day)]["null_because"]
        assert day_of(settings, day).filter(like="p_").isna().all(axis=None)
    for day in DAYS[2:]:
        rows = day_of(settings, day)
        assert len(rows) == ROWS_A_DAY
        probabilities = rows[[f"p_{head.name}" for head in settings.heads if head.maximum == 1.0]]
        assert probabilities.notna().all(axis=None)
        assert ((probabilities > 0) & (probabilities < 1)).all(axis=None)
        assert rows["p_play_time"].between(0.0, 120.0).all()


def test_the_structure_of_the_log_is_found_and_calibrated(predicted: tuple) -> None:
    _, record = predicted
    last = record["days"][str(DAYS[-1])]
    assert last["auc"]["click"]["value"] > 0.70  # the true probabilities give .73
    assert last["auc"]["click"]["lower"] < last["auc"]["click"]["value"] < last["auc"]["click"]["upper"]
    assert last["play_time"]["spearman"] > 0.6
    for head in ("click", "long_view", "play_time"):
        assert last["calibration"][head]["ratio"] == pytest.approx(1.0, abs=0.12)
    assert last["calibration"]["click"]["ece"] < 0.06
    assert last["train_days"] == [str(day) for day in DAYS[:-1]]


def test_again_changes_nothing_and_fits_nothing(predicted: tuple, release: Path) -> None:
    settings, record = predicted
    model = settings.layout.upstream / f"dt={DAYS[-1]}" / "model.safetensors"
    before = model.stat().st_mtime_ns, day_of(settings, DAYS[-1])
    again = predict_days(settings, release)
    assert model.stat().st_mtime_ns == before[0]
    pd.testing.assert_frame_equal(day_of(settings, DAYS[-1]), before[1])
    for day in record["days"]:
        assert again["days"][day] == {
            **record["days"][day],
            **({"changed": False} if "auc" in again["days"][day] else {}),
        }


def test_a_days_own_feedback_does_not_reach_its_predictions(predicted: tuple, tmp_path: Path) -> None:
    """The last day's feedback is turned round, and the model fitted anew: its predictions stay the same."""
    settings, _ = predicted

    def turned(log: pd.DataFrame) -> pd.DataFrame:
        last = log["date"] == int(DAYS[-1].strftime("%Y%m%d"))
        log.loc[last, "is_click"] = 1 - log.loc[last, "is_click"]
        log.loc[last, "play_time_ms"] = 1_000
        return log

    folder = tmp_path / "release"
    write_release(folder, turned)
    other = Settings(data=tmp_path / "data", upstream=UPSTREAM, calendar=settings.calendar)
    land_kuairand(other, folder)
    predict_days(other, folder)
    found, rows = day_of(other, DAYS[-1]), day_of(settings, DAYS[-1])
    both = rows.merge(found, on=["request_id", "item_id"])
    assert len(both) == ROWS_A_DAY
    for head in settings.heads:
        np.testing.assert_array_equal(both[f"p_{head.name}_x"], both[f"p_{head.name}_y"])
    assert not found["is_click"].equals(rows["is_click"])


def test_a_model_is_kept_whole(predicted: tuple, release: Path, tmp_path: Path) -> None:
    settings, _ = predicted
    kept = UpstreamModel.load(settings.layout.upstream / f"dt={DAYS[-1]}")
    assert kept.train_days == tuple(map(str, DAYS[:-1]))
    log, rows = read_log(settings, release), day_of(settings, DAYS[-1])
    index = np.flatnonzero(log.rows["day"] == DAYS[-1])
    found = log.rows.iloc[index][["request_id", "item_id"]]
    found["p_click"] = kept.predict(log, index)[:, log.heads.index("click")].astype(np.float32)
    both = rows.merge(found, on=["request_id", "item_id"])
    assert len(both) == ROWS_A_DAY
    np.testing.assert_array_equal(both["p_click_x"], both["p_click_y"])
    broken = tmp_path / "model"
    shutil.copytree(settings.layout.upstream / f"dt={DAYS[-1]}", broken)
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match="holds no upstream model"):
        UpstreamModel.load(broken)


def test_too_little_past_is_refused(landed: Settings, release: Path) -> None:
    with pytest.raises(DataError, match="expected at least 5000"):
        fit_log(landed, read_log(landed, release), DAYS[:1])


def test_the_world_is_the_model_in_few_numbers(
    predicted: tuple, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = predicted
    monkeypatch.setattr(export, "PAIRS", 50_000)
    monkeypatch.setattr(export, "HELD_OUT", 5_000)
    record = export_world(settings, release)
    folder = settings.layout.upstream / "world"
    users, videos = (pd.read_parquet(folder / f"{name}.parquet") for name in ("users", "videos"))
    population = load_fitted(settings, WorldConstants(), seed=1)  # what reads the files
    assert len(population.user) == len(users)
    assert record["r2"]["click"] > 0.85
    assert record["r2"]["play_time"] > 0.85
    assert users["rows"].sum() == videos["rows"].sum() == ROWS_A_DAY * len(DAYS)
    assert set(users["user_active_degree"]) == {"full_active", "low_active"}
    assert (videos["duration_ms"] > 0).all()
    for frame, prefix in ((users, "u_"), (videos, "v_")):
        latents = frame.filter(like=prefix).to_numpy()
        np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=1e-6)

    head = pd.read_json(folder / "heads.json", typ="series")["click"]
    assert head["link"] == "logit"
    u, v = users.filter(like="u_").to_numpy(), videos.filter(like="v_").to_numpy()
    logit = (
        head["intercept"]
        + (u @ np.array(head["user_weight"]))[:, None]
        + (v @ np.array(head["item_weight"]))[None, :]
        + (u * np.array(head["interaction"])) @ v.T
    )
    keen = (users["user_active_degree"] == "full_active").to_numpy()
    web = (pd.read_csv(release / "video_features_basic_pure.csv")["upload_type"] == "Web").to_numpy()
    met = keen[:, None] == web[None, videos["item_id"]]
    assert logit[met].mean() - logit[~met].mean() > 0.5  # 1.6 in the world that wrote the log, by 7,800 rows
    first = (folder / "heads.json").read_bytes()
    assert export_world(settings, release) == record
    assert (folder / "heads.json").read_bytes() == first
