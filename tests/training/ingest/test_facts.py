"""What a lake holds is counted as one would by hand."""

import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.training.ingest.conftest import DAY, MIDNIGHT, SHANGHAI, impressions
from training.contract.layout import IMPRESSIONS
from training.contract.settings import ServingSettings, Settings
from training.ingest import facts, land


def minutes(count: float) -> datetime:
    return MIDNIGHT + timedelta(minutes=count)


def test_sessions_and_their_returns(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, calendar=SHANGHAI)
    rows = [
        {"request_id": "a", "user_id": 1, "event_ts": minutes(0), "is_like": 1},
        {"request_id": "b", "user_id": 1, "event_ts": minutes(29), "play_time_ms": 10_000},
        {"request_id": "c", "user_id": 1, "event_ts": minutes(60), "is_click": 1},  # 31 later: another
        {
            "request_id": "d",
            "user_id": 2,
            "event_ts": minutes(1),
            "play_time_ms": 500_000,
            "duration_ms": 1000,
        },
    ]
    land(settings, IMPRESSIONS, DAY, impressions(rows, settings), "test")
    found = facts.sessions(settings, [DAY])
    assert found is not None
    returns = [0.5 + 10 * 0.02, 0.1, 120 * 0.02 + 0.3]
    assert (found.count, found.a_day, found.requests) == (3, 3.0, pytest.approx(4 / 3))
    assert found.mean == pytest.approx(np.mean(returns))
    assert found.deviation == pytest.approx(np.std(returns, ddof=1))
    shown = facts.shown(settings, [DAY])
    assert (shown.rows, shown.requests, shown.users) == (4, 4, 2)
    assert shown.heaviest[0] == ("1", 3, 3)
    assert facts.explored(settings, [DAY]).decisions == 0


def test_days_needed_fall_with_traffic_shares_and_effect() -> None:
    found = facts.Sessions(1000, 1000.0, 5.0, mean=2.0, deviation=1.0)
    need = facts.needed(found, 0.02)
    assert need is not None
    # a slope of .04 is 2.8 standard errors 1/sqrt(need)
    assert 0.04 * math.sqrt(need) == pytest.approx(2.80, abs=0.01)
    random = ServingSettings(shares={"random": 0.1, "noise": 0.0})
    draws = np.random.default_rng(0).normal(size=400_000)
    variance = draws[np.abs(draws) <= 1].var()
    assert facts.information_of_a_session(random) == pytest.approx(0.1 * variance, rel=0.01)
    days = facts.days_for(need, 1000.0, random)
    assert facts.days_for(need, 2000.0, random) == pytest.approx(days / 2)
    none = ServingSettings(shares={"random": 0.0, "noise": 0.0})
    assert math.isinf(facts.days_for(need, 1000.0, none))
    assert facts.needed(facts.Sessions(2, 1.0, 1.0, 0.0, 1.0), 0.02) is None
