"""The KuaiRand slice: trained on 25 to 29 April, judged on 30 April."""

import math
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from training.contract.layout import IMPRESSIONS
from training.contract.settings import CalendarSettings, Settings
from training.ingest import land_kuairand
from training.world.upstream import export_world, predict_days

SLICE = Path(__file__).parents[5] / "shared" / "data" / "kuairand_pure"
TEST_DAY = date(2022, 4, 30)

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict]:
    calendar = CalendarSettings(timezone="Asia/Shanghai")  # where its days are cut
    settings = Settings(data=tmp_path_factory.mktemp("real"), calendar=calendar)
    land_kuairand(settings, SLICE)
    return settings, predict_days(settings, SLICE)


def test_auc_of_30_april(real: tuple[Settings, dict]) -> None:
    _, record = real
    last = record["days"][str(TEST_DAY)]
    assert last["train_days"] == [f"2022-04-{day}" for day in range(25, 30)]
    for head, bar in {"click": 0.70, "long_view": 0.70, "like": 0.74}.items():
        assert last["auc"][head]["value"] >= bar, head
    for head in ("follow", "comment", "forward", "hate"):
        auc = last["auc"][head]
        assert 10 <= auc["positives"] <= 50, head
        assert auc["lower"] < auc["value"] < auc["upper"], head


def test_calibration_of_30_april(real: tuple[Settings, dict]) -> None:
    """The day's own rates are 5 to 20 % above the past's, which no model of the past can know."""
    _, record = real
    calibration = record["days"][str(TEST_DAY)]["calibration"]
    for head in ("click", "long_view", "play_time"):
        assert calibration[head]["ratio"] == pytest.approx(1.0, abs=0.08), head
        assert calibration[head]["ece"] < 0.08 * calibration[head]["observed"], head
    assert calibration["like"]["ratio"] == pytest.approx(1.0, abs=0.25)


def test_every_day_with_a_past_has_predictions(real: tuple[Settings, dict]) -> None:
    settings, record = real
    columns = [f"p_{head.name}" for head in settings.heads]
    for day in settings.layout.days(IMPRESSIONS):
        rows = pd.read_parquet(settings.layout.partition(IMPRESSIONS, day) / "part-0.parquet")
        filled = "null_because" not in record["days"][str(day)]
        assert filled == (day > date(2022, 4, 25))
        assert rows[columns].notna().all(axis=None) if filled else rows[columns].isna().all(axis=None)


def test_the_world_keeps_what_the_model_says(real: tuple[Settings, dict]) -> None:
    settings, _ = real
    record = export_world(settings, SLICE)
    assert record["users"] > 20_000
    assert record["videos"] > 5_000
    assert all(r2 > 0.8 for r2 in record["r2"].values() if not math.isnan(r2)), record["r2"]
