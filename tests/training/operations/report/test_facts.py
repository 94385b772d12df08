"""A day in numbers: means with intervals by users, off a lake that is small enough to count by hand."""

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contract.settings import Settings
from training.operations.report import facts

DAY = date(2026, 1, 5)
AT = datetime(2026, 1, 5, 4, tzinfo=UTC)
USERS = 12


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two requests a user and two items a request; user u plays u seconds of each, and likes if u is even."""
    settings = Settings(data=tmp_path)
    heads = len(settings.heads)
    decisions, shown, steps = [], [], []
    for user in range(USERS):
        arm = "champion" if user < USERS / 2 else "random"
        for n in range(2):
            request = f"{user}-{n}"
            decisions.append(
                {
                    "request_id": request,
                    "user_id": user,
                    "arm": arm,
                    "policy_version": "p1",
                    "action": [0.5 if arm == "champion" else -1.0] * heads,
                    "log_density": None if arm == "champion" else -1.0,
                    "fallback": "store" if user == 0 else "no_policy" if user == 1 else None,
                }
            )
            for item in range(2):
                signals = {signal.column: 0 for signal in settings.signals} | {"is_like": int(user % 2 == 0)}
                shown.append(
                    {
                        "request_id": request,
                        "user_id": user,
                        "item_id": item,
                        "feedback_ts": None if user == 2 else AT,
                        "play_time_ms": 1000 * user,
                        **signals,
                    }
                )
            steps.append(
                {
                    "user_id": user,
                    "session_id": f"s{user}",
                    "step": n,
                    "arm": arm,
                    "policy_version": "p1",
                    "reward": float(user),
                }
            )
    layout = settings.layout
    write(layout.partition("decisions", DAY), decisions)
    write(layout.partition("impressions", DAY), shown)
    write(layout.mart("fct_transitions") / f"dt={DAY}", steps)
    return settings


def write(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")


def test_each_mean_has_the_interval_of_its_users(settings: Settings) -> None:
    found = facts.of_day(settings, DAY)
    mine, random = found["arms"]
    users = np.arange(USERS / 2)
    assert (mine["arm"], mine["requests"], mine["sessions"], mine["users"]) == ("champion", 12, 6, 6)
    assert mine["session_return"]["value"] == pytest.approx(2 * users.mean())
    assert mine["adtime_s"]["value"] == pytest.approx(4 * users.mean())
    half = 1.959964 * 2 * users.std(ddof=1) / np.sqrt(len(users))
    assert mine["session_return"]["upper"] - mine["session_return"]["value"] == pytest.approx(half, rel=1e-5)
    # of the plays: user 0 plays nothing
    assert mine["upirate"]["value"] == pytest.approx(2 / 5)
    like = found["signals"][next(s.name for s in settings.signals if s.column == "is_like")]
    assert like["value"] == pytest.approx(0.5) and like["lower"] < 0.5 < like["upper"]
    head = settings.heads[0]
    weight = mine["weights"][head.name]
    assert weight["value"] == pytest.approx(head.low + 0.75 * (head.high - head.low))
    assert random["weights"][head.name]["value"] == pytest.approx(head.low)


def test_fallbacks_feedback_and_exploration_are_counted(settings: Settings) -> None:
    found = facts.of_day(settings, DAY)
    assert (found["requests"], found["fallbacks"], found["explored"]) == (24, 2, 12)  # no_policy is none
    assert found["without_feedback"] == pytest.approx(1 / 12)


def test_a_day_is_counted_again_when_its_files_change(settings: Settings) -> None:
    first = facts.of_day(settings, DAY)
    kept = settings.layout.reports / f"dt={DAY}" / facts.FILE
    written = kept.stat().st_mtime_ns
    assert facts.of_day(settings, DAY) == first and kept.stat().st_mtime_ns == written
    path = settings.layout.partition("decisions", DAY) / "part-0.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).slice(4), path)
    assert facts.of_day(settings, DAY)["requests"] == 20
    path.write_bytes(b"PAR1")
    assert facts.of_day(settings, DAY) is None
    assert facts.of_day(settings, date(2026, 1, 6)) is None


def test_one_user_has_no_interval() -> None:
    alone = facts.mean(np.array([3.0]), np.array([2.0]))
    assert alone == {"value": 1.5, "lower": None, "upper": None}
    assert facts.mean(np.array([]), np.array([])) is None
    assert facts.difference(alone, {"value": 1.0, "lower": 0.0, "upper": 2.0})["lower"] is None
