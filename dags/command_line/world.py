"""What `mtf simulate`, the demo and the traffic DAG share: the past, and a day against the service."""

import os
import time
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

from rich.console import Console

from dags import stages
from dags.command_line import stack
from training.contract.errors import SettingsError
from training.contract.layout import IMPRESSIONS, USERS
from training.contract.records import write_record
from training.contract.settings import ENV_PREFIX, Settings, load_settings

Progress = Callable[[int, int], None]
START_DAY = f"{ENV_PREFIX}WORLD__START_DAY"


def service_address(settings: Settings) -> str:
    return f"http://{settings.serving.host}:{settings.serving.port}"


def simulate_day(settings: Settings, day: date, progress: Progress | None = None) -> dict[str, Any]:
    """A day of the world's users over HTTP; lands the day's users and writes the record `traffic`."""
    from training.ingest import land
    from training.simulator import drivers

    started = time.monotonic()
    record = drivers.run_day_http(
        settings, day, service_address(settings), stack.token(settings), progress=progress
    )
    users = drivers.users_of(settings, day)
    if users.num_rows:
        land(settings, USERS, day, users, "world")
    record = {**record, "seconds": round(time.monotonic() - started, 2)}
    write_record(settings.layout, day, "traffic", record)
    return record


def prepare_history(settings: Settings, console: Console) -> tuple[Settings, date]:
    """Logs from before the first simulated day, so that its requests find profiles and histories.

    The synthetic world gets one day under static weights; the world fitted to KuaiRand gets the real
    days, with predictions by a model trained on the days before each. Returns the settings, whose
    ``world.start_day`` follows the last logged day, and that first day.
    """
    if settings.world.build == "synthetic":
        first = date.fromisoformat(settings.world.start_day)
        days = [first - timedelta(days=1)]
        if not settings.layout.partition(IMPRESSIONS, days[0]).exists():
            from training.simulator.past import land_past

            with console.status("simulating a past under static weights"):
                land_past(settings, days[0])
    else:
        days = _land_real_days(settings, console)
        first = days[-1] + timedelta(days=1)
        os.environ[START_DAY] = first.isoformat()  # for the tasks, which load the settings themselves
        settings = load_settings()
    for day in days:
        for stage in ("land", "validate_landed", "transform"):
            with console.status(f"{day} {stage}"):
                record = stages.run_stage(settings, day, stage)
        console.print(f"{day} landed, validated and transformed: {_rows(record)}")
    with console.status("materialising features"):
        stages.run_stage(settings, days[-1], "features")
    return settings, first


def _land_real_days(settings: Settings, console: Console) -> list[date]:
    from training import ingest, upstream

    folder = settings.world.logs
    if folder is None:
        raise SettingsError("world.build 'kuairand' needs world.logs: the folder of KuaiRand's CSVs")
    with console.status(f"landing {folder}"):
        records = ingest.land_kuairand(settings, folder)
    days = sorted(date.fromisoformat(record["day"]) for record in records)
    with console.status("training the multi-task model (PLE) on past days, writing its predictions"):
        predicted = upstream.predict_days(settings, folder)
    _show_upstream(predicted, days[-1], console)
    with console.status("fitting the world to the real users, videos and responses"):
        upstream.export_world(settings, folder)
    return days


def _show_upstream(predicted: dict[str, Any], day: date, console: Console) -> None:
    facts = predicted["days"][day.isoformat()]
    for head, auc in facts.get("auc", {}).items():
        if auc["value"] is None:
            continue
        console.print(
            f"AUC on {day} {head:10s} {auc['value']:.3f} ({auc['lower']:.3f} to {auc['upper']:.3f}), "
            f"{auc['positives']} positives"
        )


def _rows(record: dict[str, Any]) -> str:
    exported = record.get("exported", {})
    return ", ".join(f"{name} {mart['rows']}" for name, mart in sorted(exported.items()))
