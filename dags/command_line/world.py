"""What `mtf simulate`, the demo and the traffic DAG share: the past, and a day against the service."""

import os
import time
from collections.abc import Callable
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from dags.command_line import stack
from training.contract.errors import SettingsError
from training.contract.layout import DECISIONS, USERS
from training.contract.records import write_record
from training.contract.settings import ENV_PREFIX, Settings, load_settings

if TYPE_CHECKING:
    import numpy as np

    from training.world.simulator.past import Decide
    from training.world.simulator.sessions import Requests

Progress = Callable[[int, int], None]
START_DAY = f"{ENV_PREFIX}WORLD__START_DAY"


def service_address(settings: Settings) -> str:
    return f"http://{settings.serving.host}:{settings.serving.port}"


def simulate_day(settings: Settings, day: date, progress: Progress | None = None) -> dict[str, Any]:
    """A day of the world's users over HTTP; lands the day's users and writes the record `traffic`."""
    from training.ingest import land
    from training.world.simulator import drivers

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


def fit_world(settings: Settings, console: Console) -> tuple[Settings, list[date]]:
    """Land the real days of a fitted world: logs from before its own first day.

    Their predictions are by a model trained on the days before each. Returns the settings, whose
    ``world.start_day`` leaves room for ``world.past_days`` after the last real day, and the real days;
    the synthetic world has none.
    """
    if settings.world.build == "synthetic":
        return settings, []
    real = _land_real_days(settings, console)
    first = real[-1] + timedelta(days=settings.world.past_days + 1)
    os.environ[START_DAY] = first.isoformat()  # for the tasks, which load the settings themselves
    return load_settings(), real


def prepare_past(settings: Settings, real: list[date], console: Console) -> None:
    """Simulate the past; validate every logged day, transform them, and bring the store up to date.

    The record `traffic` says of each that it is the past: it is learnt from, and has no policy of its own.
    """

    from dags import stages
    from training.world.simulator.past import land_past

    first = date.fromisoformat(settings.world.start_day)
    past = [first - timedelta(days=n) for n in range(settings.world.past_days, 0, -1)]
    for day in past:
        if not settings.layout.partition(DECISIONS, day).exists():
            with console.status(f"{day} simulating the past"):
                land_past(settings, day, as_the_service(settings))
    days = [*real, *past]
    for day in days:
        for stage in ("land", "validate_landed"):
            with console.status(f"{day} {stage}"):
                stages.run_stage(settings, day, stage)
        write_record(settings.layout, day, "traffic", {"past": True})
        console.print(f"{day} landed and validated")
    for stage in ("transform", "features"):  # dbt builds every day that it has not built yet
        with console.status(f"{stage} up to {days[-1]}"):
            record = stages.run_stage(settings, days[-1], stage)
        if stage == "transform":
            console.print(f"{len(days)} days transformed: {_rows(record)}")


def as_the_service(settings: Settings) -> "Decide":
    """What the running service would decide without a champion, request by request."""
    from serving.ranking import arms, ranker
    from serving.ranking.deviations import Deviations
    from training.contract.epochs import epoch_of_day

    serving, deviations = settings.serving, Deviations(settings, replayed=True)

    def decide(requests: "Requests", states: "np.ndarray") -> list[ranker.Decision]:
        epoch = epoch_of_day(requests.day, serving.exploration.epoch_days)
        return [
            ranker.decide(
                arms.draw(serving.shares, serving.salt, epoch, user_id),
                None,
                None,
                settings.fusion,
                serving,
                deviations.of(epoch, user_id, session_id, request_id),
            )
            for user_id, session_id, request_id in zip(
                requests.user_id.tolist(), requests.session_id, requests.request_id, strict=True
            )
        ]

    return decide


def _land_real_days(settings: Settings, console: Console) -> list[date]:
    from training import ingest
    from training.world import upstream

    folder = settings.world.logs
    if folder is None:
        raise SettingsError("world.build 'kuairand' needs world.logs: the folder of KuaiRand's CSVs")
    with console.status(Text(f"landing {folder}")):
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
