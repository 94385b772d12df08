"""`mtf day` and `mtf backfill`: days by hand, through the stages that Airflow's tasks call."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dags.command_line.console import console
from training.contract.errors import MtfError, SettingsError
from training.contract.records import read_record, recorded_days
from training.contract.settings import Settings, load_settings

if TYPE_CHECKING:
    from dags.stages import Record

Day = Annotated[datetime, typer.Option("--date", "-d", formats=["%Y-%m-%d"], help="the local day")]
Force = Annotated[bool, typer.Option(help="run every stage, also those whose inputs have not changed")]
OptionalDay = Annotated[
    datetime | None,
    typer.Option("--date", "-d", formats=["%Y-%m-%d"], help="the local day; the newest by default"),
]


def day(date_: Day, force: Force = False) -> None:
    """Run the whole daily loop for one day: land, validate, transform, features, train, judge, promote.

    A stage whose rows, settings and code have not changed since its last run is not run again, so a day
    that failed or was killed goes on at the stage where it ended, and a good day costs nothing. It stops
    at the first stage that fails; the champion then serves on, and the day's page says why.
    """
    from dags import stages

    settings, chosen = load_settings(), date_.date()
    _tell_missing(settings, chosen)
    with progress_bar(console) as progress:
        bar = progress.add_task(str(chosen), total=len(stages.DAY_STAGES))
        ran = _run_day(settings, chosen, force, progress, lambda: progress.advance(bar))
    if ran:
        console.print(f"report: {settings.layout.reports / f'dt={chosen}' / 'index.html'}")
    else:
        console.print(f"{chosen} is as it was: nothing had to run; --force runs it all the same")


def backfill(
    from_: Annotated[
        datetime | None,
        typer.Option(
            "--from", formats=["%Y-%m-%d"], help="first local day; by default the first in logs.folder"
        ),
    ] = None,
    to: Annotated[
        datetime | None,
        typer.Option(
            "--to", formats=["%Y-%m-%d"], help="last local day, included; by default the last there"
        ),
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="the days up to yesterday that did not run, or not to their end")
    ] = False,
    force: Force = False,
    go_on: Annotated[
        bool, typer.Option("--continue", help="go on with the next day after one that failed")
    ] = False,
) -> None:
    """Run the daily loop over days in order, oldest first: a span, or with `--missing` the missing ones.

    Missing are days that nobody has run, from the first that ran up to yesterday, because the scheduler was
    down, and those that were landed and taken no further.
    Days, and stages of a day, whose rows, settings and code have not changed are left alone. It stops at
    the first day that fails and says what to do; given again, it goes on at the stage that failed. An older
    day's policy never takes the place of a newer champion.
    """
    from dags import stages

    settings = load_settings()
    days = _missing(settings, from_, to) if missing else _span(settings, from_, to)
    if not days:
        console.print("no day is missing: --from and --to run days again")
        return
    failed: list[date] = []
    with progress_bar(console) as progress:
        bar = progress.add_task("", total=len(days) * len(stages.DAY_STAGES))
        for number, chosen in enumerate(days, start=1):
            progress.update(bar, description=str(chosen))
            try:
                ran = _run_day(settings, chosen, force, progress, lambda: progress.advance(bar))
            except MtfError:
                failed.append(chosen)
                if not go_on:
                    break
                ran = ["?"]
            progress.update(bar, completed=number * len(stages.DAY_STAGES))
            if not ran:
                progress.console.print(f"{chosen} unchanged")
    if failed:
        again = f"mtf backfill --from {failed[0]} --to {days[-1]}"
        raise MtfError(
            f"{len(failed)} of {len(days)} days failed: {', '.join(map(str, failed))}. Do what is said "
            f"above; then `{again}` goes on at the stage that failed"
        )


def _missing(settings: Settings, first: datetime | None, last: datetime | None) -> list[date]:
    if first is not None or last is not None:
        raise SettingsError("give --from and --to, or --missing, not both")
    from training.operations.missed import days_to_run

    return days_to_run(settings, datetime.now(settings.calendar.zone).date())


def _tell_missing(settings: Settings, chosen: date) -> None:
    from training.operations.missed import missing_days, spans

    missing = missing_days(settings, chosen)
    if missing:
        console.print(
            f"before it, {len(missing)} days did not run: {spans(missing)}. `mtf backfill --missing` runs "
            "them, oldest first, and this day's tables are then made again",
            soft_wrap=True,
        )


def _span(settings: Settings, first: datetime | None, last: datetime | None) -> list[date]:
    """The days from ``first`` to ``last``; what is not named is what ``logs.folder`` has deliveries of."""
    if first is None or last is None:
        if settings.logs.folder is None:
            raise SettingsError(
                "give --from and --to, or --missing: without logs.folder no other days are known"
            )
        from training.ingest import dry

        known = dry.days(settings.logs.folder)
    begin, end = (known[0] if first is None else first.date()), (known[-1] if last is None else last.date())
    if begin > end:
        raise SettingsError(f"--from {begin} is after --to {end}")
    return [begin + timedelta(days=number) for number in range((end - begin).days + 1)]


def chosen_day(chosen: datetime | None, settings: Settings) -> date:
    """The day asked for, else the newest that left a record, else yesterday."""
    if chosen is not None:
        return chosen.date()
    known = [one for one in recorded_days(settings.layout) if read_record(settings.layout, one, "land")]
    if known:
        return known[-1]
    return datetime.now(settings.calendar.zone).date() - timedelta(days=1)


def progress_bar(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def _run_day(
    settings: Settings, chosen: date, force: bool, progress: Progress, advance: Callable[[], None]
) -> list[str]:
    """The day's stages with a line each; a failure is also an alert. Returns the stages that ran."""
    from dags import alerts, stages

    stage, skipped = "", ""

    def begin(name: str) -> None:
        nonlocal stage
        stage = name

    def done(name: str, record: "Record") -> None:
        nonlocal skipped
        advance()
        if "kept" in record or record.get("skipped", "-") == skipped:
            return  # why one stage is skipped holds for those after it
        skipped = record.get("skipped", "")
        note = f"skipped: {record['skipped']}" if "skipped" in record else record["why"]
        progress.console.print(f"{chosen} {name:22s} {record['seconds']:7.1f} s  {note}", soft_wrap=True)

    try:
        return stages.run_day(settings, chosen, force=force, begin=begin, done=done)
    except Exception as error:
        alert = alerts.failed_stage(chosen, stage, error)
        alerts.send(settings, alert)
        progress.console.print(f"{chosen} {stage}: {alert.what}", style="red", soft_wrap=True)
        progress.console.print(alert.todo, soft_wrap=True)
        raise
