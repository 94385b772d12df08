"""`mtf sample`: a week of a made-up video app's logs, as its own tools would write them."""

import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dags.command_line.console import console
from dags.command_line.days import progress_bar
from training.contract.errors import SettingsError
from training.contract.files import write_atomic
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

# the app's names, which are not ours; what else the world has, the app does not log
COLUMNS = {
    IMPRESSIONS: {
        "request_id": "req_id",
        "session_id": "session_id",
        "user_id": "viewer_id",
        "item_id": "video_id",
        "event_ts": "served_at",
        "position": "slot",
        "p_click": "pred_click",
        "p_long_view": "pred_long_view",
        "p_like": "pred_like",
        "p_follow": "pred_follow",
        "p_play_time": "pred_play_time",
        "is_click": "clicked",
        "long_view": "long_view",
        "is_like": "liked",
        "is_follow": "followed",
        "play_time_ms": "watch_ms",
        "duration_ms": "video_ms",
    },
    USERS: {
        "user_id": "viewer_id",
        "updated_ts": "updated_at",
        "user_active_degree": "activity",
        "is_video_author": "is_author",
        "follow_user_num": "following",
        "fans_user_num": "fans",
        "register_days": "register_days",
    },
}


def sample(
    folder: Annotated[Path, typer.Argument(help="folder to write, which must not be there")],
    days: Annotated[int, typer.Option(min=1, max=60, help="days, up to and with yesterday")] = 7,
    requests: Annotated[int, typer.Option(min=100, help="requests a day, about")] = 2_000,
) -> None:
    """Write logs to try the loop on: a video app's, simulated, with names of its own and no exploration.

    Impressions are Parquet, profiles CSV, a folder a day; see docs/quickstart.md.
    """
    if folder.exists():
        raise SettingsError(f"{folder} exists: name a folder that is not there")
    last = datetime.now(UTC).date() - timedelta(days=1)
    dates = [last - timedelta(days=back) for back in reversed(range(days))]
    with tempfile.TemporaryDirectory(prefix="mtf-sample-") as data, progress_bar(console) as progress:
        settings = _world(Path(data), dates[0], requests)
        bar = progress.add_task("simulating", total=days)
        for day in dates:
            _write_day(settings, folder, day)
            progress.advance(bar)
    console.print(f"wrote {days} days of logs, {dates[0]} to {dates[-1]}, to {folder}", soft_wrap=True)


def _world(data: Path, first: date, requests: int) -> Settings:
    """A world whose users all get static weights."""
    return Settings(
        data=data,
        serving={"shares": {"static": 1.0, "random": 0.0, "noise": 0.0}},
        gate={"evidence": "offline"},
        world={
            "users": max(200, requests // 4),
            "items": 2_000,
            "requests_per_day": requests,
            "start_day": first.isoformat(),
        },
    )


def _write_day(settings: Settings, folder: Path, day: date) -> None:
    import pyarrow.csv as pc_csv
    import pyarrow.parquet as pq

    from dags.command_line.world import as_the_service
    from training.ingest.landing import read_partition
    from training.world.simulator.past import land_past

    land_past(settings, day, as_the_service(settings))
    shown = _renamed(IMPRESSIONS, read_partition(settings.layout.partition(IMPRESSIONS, day)))
    write_atomic(
        folder / IMPRESSIONS / f"dt={day}" / "part-0.parquet", lambda path: pq.write_table(shown, path)
    )
    users = _renamed(USERS, read_partition(settings.layout.partition(USERS, day)))
    if users.num_rows:
        write_atomic(folder / USERS / f"dt={day}" / "viewers.csv", lambda path: pc_csv.write_csv(users, path))


def _renamed(table: str, rows: "pa.Table") -> "pa.Table":
    names = COLUMNS[table]
    return rows.select(list(names)).rename_columns(list(names.values()))
