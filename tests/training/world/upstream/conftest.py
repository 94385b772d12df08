"""A tiny KuaiRand that the tests write themselves, with a structure that a model can find."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training.contract.settings import Settings, UpstreamSettings
from training.contract.settings.days import CalendarSettings
from training.ingest import land_kuairand

FIRST = date(2022, 4, 25)
DAYS = [FIRST + timedelta(days=i) for i in range(4)]
ROWS_A_DAY = 2_600
UPSTREAM = UpstreamSettings(epochs=6, batch_size=128, lr=4e-3, hidden=16, embedding=4)

Change = Callable[[pd.DataFrame], pd.DataFrame]


def write_release(folder: Path, change: Change = lambda log: log) -> None:
    """Users of two degrees and videos of two kinds: a click is likely where they meet, and on tab 1."""
    rng = np.random.default_rng(3)
    users, videos = 500, 150
    keen = rng.random(users) < 0.5
    sticky = rng.random(videos) < 0.5  # nothing but past counts tells of it
    kind = rng.random(videos) < 0.5
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(
        {
            "user_id": range(users),
            "user_active_degree": np.where(keen, "full_active", "low_active"),
            "is_lowactive_period": 0,
            "is_live_streamer": -124,
            "is_video_author": 1,
            "follow_user_num": rng.integers(0, 500, users),
            "follow_user_num_range": "0",
            "fans_user_num": rng.integers(0, 500, users),
            "friend_user_num": rng.integers(0, 50, users),
            "register_days": rng.integers(1, 2000, users),
            "onehot_feat4": np.where(rng.random(users) < 0.1, np.nan, 3.0),
        }
    ).to_csv(folder / "user_features_pure.csv", index=False)
    pd.DataFrame(
        {
            "video_id": range(videos),
            "author_id": rng.integers(0, 90, videos),
            "video_type": "NORMAL",
            "upload_dt": "2022-04-10",
            "upload_type": np.where(kind, "Web", "Kmovie"),
            "visible_status": 0.0,
            "video_duration": np.nan,
            "server_width": 720.0,
            "server_height": 1280.0,
            "music_id": 3.0,
            "music_type": 9.0,
            "tag": np.where(kind, "39", "1,2"),
        }
    ).to_csv(folder / "video_features_basic_pure.csv", index=False)

    n = ROWS_A_DAY * len(DAYS)
    user, video, tab = rng.integers(users, size=n), rng.integers(videos, size=n), rng.integers(0, 2, size=n)
    day = np.repeat(np.arange(len(DAYS)), ROWS_A_DAY)
    midnight = datetime(2022, 4, 24, 16, tzinfo=UTC).timestamp()  # of the first day, in UTC+8
    seconds = midnight + 86_400 * day + rng.choice(86_400, size=n)
    logit = -1.6 + 1.6 * (keen[user] == kind[video]) + 1.2 * sticky[video] + 0.8 * tab

    def drawn(shift: float) -> np.ndarray:
        return (rng.random(n) < 1.0 / (1.0 + np.exp(-(logit + shift)))).astype(int)

    click = drawn(0.0)
    play_s = np.exp(1.0 + 0.8 * logit + rng.normal(0.0, 0.6, n))
    log = pd.DataFrame(
        {
            "user_id": user,
            "video_id": video,
            "date": [int((DAYS[0] + timedelta(days=int(d))).strftime("%Y%m%d")) for d in day],
            "hourmin": 1200,
            "time_ms": (seconds * 1000).astype(np.int64),
            "is_click": click,
            "is_like": click * drawn(-3.0),
            "is_follow": drawn(-6.0),
            "is_comment": drawn(-5.5),
            "is_forward": drawn(-7.0),
            "is_hate": drawn(-7.0),
            "long_view": click * drawn(1.0),
            "play_time_ms": (play_s * 1000).astype(np.int64),
            "duration_ms": np.where(rng.random(n) < 0.02, 0, 20_000 + 100 * video),
            "profile_stay_time": 0,
            "comment_stay_time": 0,
            "is_profile_enter": 0,
            "is_rand": 0,
            "tab": tab,
        }
    )
    change(log).to_csv(folder / "log_standard_4_25_to_4_28_pure.csv", index=False)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    write_release(folder)
    return folder


@pytest.fixture(scope="session")
def landed(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Settings:
    """Landed and without predictions; tests that write use :func:`fresh`."""
    settings = Settings(
        data=tmp_path_factory.mktemp("landed"),
        upstream=UPSTREAM,
        calendar=CalendarSettings(timezone="Asia/Shanghai"),
    )
    land_kuairand(settings, release)
    return settings
