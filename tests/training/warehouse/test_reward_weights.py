"""Planted weights are found again, from past days only, and too little data are refused."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from dags.command_line.main import app
from training.contract.errors import DataError
from training.contract.files import read_json
from training.contract.settings import Settings
from training.warehouse.reward_weights import (
    MART,
    estimate,
    leaning,
    sections,
    snippet,
    terms,
    with_interaction,
    with_weights,
)

LAST = date(2026, 1, 20)
PLANTED = {"play_time": 0.4, "integrity": 30.0, "click": 0.0, "long_view": 12.0, "like": 60.0, "hate": -90.0}
RATES = {"click": 5.0, "long_view": 4.0, "like": 1.0, "hate": 0.4}


def plant(settings: Settings, days: int = 14, users: int = 400, seed: int = 1) -> None:
    """User-days whose totals decide the dwell time of the day after, and of no other."""
    rng = np.random.default_rng(seed)
    wish = np.full(users, 300.0)
    for back in range(days - 1, -1, -1):
        day = LAST - timedelta(days=back)
        here = rng.random(users) < 0.9
        counts = {name: rng.poisson(RATES.get(name, 0.0), users) for name in settings.signal_names}
        played = np.where(here, np.maximum(wish + rng.normal(0.0, 30.0, users), 1.0), 0.0)
        capped = played * rng.uniform(0.3, 1.0, users)
        integrity = rng.uniform(0.0, 6.0, users)
        totals = {"play_time": capped, "integrity": integrity, **counts}
        carried = sum(PLANTED.get(name, 0.0) * values for name, values in totals.items())
        wish = 100.0 + np.where(here, np.maximum(carried, 0.0), 0.0)
        columns = {
            "user_id": np.arange(users),
            **{f"{name}_count": values for name, values in counts.items()},
            "play_s": played,
            "capped_play_s": capped,
            "integrity": integrity,
        }
        path = settings.layout.mart(MART) / f"dt={day.isoformat()}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({name: values[here] for name, values in columns.items()}), path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data")


def test_planted_weights_lie_within_their_intervals(settings: Settings) -> None:
    plant(settings)
    record = estimate(settings, LAST, horizon=1)
    for name, planted in PLANTED.items():
        found = record["weights"][name]
        # nine in ten come again; a weight of 0 lies at the end of what may be found
        assert found["lower"] <= 0.9 * planted <= found["upper"], name
        assert found["lower"] <= found["per_unit"] <= found["upper"]
    assert record["weights"]["hate"]["per_unit"] < 0.0 and record["weights"]["hate"]["sign"] == -1
    assert all(found["per_unit"] * found["sign"] >= 0.0 for found in record["weights"].values())
    # what never occurred keeps its weight, and has no interval
    assert record["weights"]["follow"]["proposed"] == 1.0 and record["weights"]["follow"]["lower"] is None
    # the mean reward of a user's day stays
    means = np.array([found["mean"] for found in record["weights"].values()])
    before, after = (
        np.array([found[key] for found in record["weights"].values()]) for key in ("in_force", "proposed")
    )
    assert means @ after == pytest.approx(means @ before)


def test_only_days_up_to_the_asked_one_are_read(settings: Settings) -> None:
    plant(settings)
    asked = LAST - timedelta(days=4)
    before = estimate(settings, asked, horizon=1)
    for back in range(4):
        day = LAST - timedelta(days=back)
        (settings.layout.mart(MART) / f"dt={day.isoformat()}" / "part-0.parquet").unlink()
    assert estimate(settings, asked, horizon=1) == before
    assert max(before["days"]) == (asked - timedelta(days=1)).isoformat()


def test_days_beside_a_gap_do_not_count(settings: Settings) -> None:
    plant(settings)
    gap = LAST - timedelta(days=6)
    (settings.layout.mart(MART) / f"dt={gap.isoformat()}" / "part-0.parquet").unlink()
    days = estimate(settings, LAST, horizon=2)["days"]
    missing = {(gap + timedelta(days=step)).isoformat() for step in range(-2, 3)}
    assert missing.isdisjoint(days) and len(days) == 14 - 4 - 5


@pytest.mark.parametrize(
    ("days", "users", "message"), [(4, 400, "2 are needed"), (14, 50, "only 50 users"), (0, 1, "0 days of")]
)
def test_too_little_data_are_refused(settings: Settings, days: int, users: int, message: str) -> None:
    plant(settings, days, users)
    with pytest.raises(DataError, match=message):
        estimate(settings, LAST, horizon=2)


def test_leaning_weighs_one_kind_more_and_leaves_the_others(settings: Settings) -> None:
    names, before = terms(settings)
    for to, changed in (
        ("time", {"play_time"}),
        ("integrity", {"integrity"}),
        ("interaction", {"like", "follow", "comment", "forward"}),
    ):
        after = terms(leaning(settings, to, 2.0))[1]
        np.testing.assert_allclose(
            after, [w * (2.0 if n in changed else 1.0) for n, w in zip(names, before, strict=True)]
        )


def test_the_interaction_part_is_all_that_is_not_play_time_or_integrity(settings: Settings) -> None:
    names, before = terms(settings)
    leant = with_interaction(settings, 2.0)
    wanted = [
        w * (1.0 if n in ("play_time", "integrity") else 2.0) for n, w in zip(names, before, strict=True)
    ]
    np.testing.assert_allclose(terms(leant)[1], wanted)
    assert Settings(**yaml.safe_load(sections(leant)), data=settings.data) == leant


def test_the_snippet_is_settings_with_these_weights(settings: Settings) -> None:
    changed = with_weights(settings, dict.fromkeys(terms(settings)[0], 0.125))
    loaded = Settings(**yaml.safe_load(snippet(changed)), data=settings.data)
    assert loaded == changed
    assert snippet(changed).count("# leaning to") == 3


def test_the_command_writes_a_record_and_changes_no_settings(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(settings)
    path = tmp_path / "mtf.yaml"
    path.write_text("data: data\n")
    monkeypatch.setenv("MTF_SETTINGS", str(path))
    result = CliRunner().invoke(app, ["reward", "--date", LAST.isoformat(), "--horizon", "1", "--write"])
    assert result.exit_code == 0, result.output
    assert "leaning to interaction" in result.output and "play_time_weight:" in result.output
    record = read_json(settings.layout.run(LAST) / "reward.json")
    assert record["users"] == 400 and record["day"] == LAST.isoformat()
    assert path.read_text() == "data: data\n"
