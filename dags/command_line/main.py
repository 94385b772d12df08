"""The console command ``mtf``."""

import atexit
import os
import signal
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dags.command_line import (
    backup,
    beginning,
    check,
    days,
    experiment,
    forget,
    pareto,
    policy,
    quarantine,
    retention,
    reward,
    sample,
    ship,
    stack,
    status,
    upgrade,
    worker,
)
from dags.command_line.console import busy, console, errors
from dags.command_line.days import OptionalDay, chosen_day
from dags.command_line.quiet import quiet
from training.contract.errors import MtfError, ObjectStoreError, SettingsError
from training.contract.settings import load_settings, settings_path

app = typer.Typer(
    name="mtf",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Learn, judge and serve the weights that fuse a ranker's predictions into one score.

A day's way: **logs → trajectories → features → challenger → gate → champion**. `mtf day` walks it by
hand; `mtf up` starts Airflow, which walks it every day. Start with `mtf init`, then `mtf ingest`.
""",
)
app.add_typer(quarantine.app)
app.command()(retention.keep)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(forget.forget)
app.command()(ship.ship)
app.command()(upgrade.upgrade)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mtf {version('mtf')}")
        raise typer.Exit


@app.callback()
def mtf(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    upgrade.refuse_other(context.invoked_subcommand)


class Source(StrEnum):
    """Where `mtf ingest` finds logs."""

    service = "service"
    kuairand = "kuairand"
    files = "files"


def run() -> None:
    """Entry point: expected errors are shown without a stack trace, and end with code 1.

    Ends without the interpreter's teardown, in which DuckDB's binding prints a page of leak notes.
    """
    code: int | str | None = 0
    quiet()
    try:
        app()
    except SystemExit as ending:
        code = ending.code
    except (MtfError, ObjectStoreError) as error:
        errors.print(Text("error:", "bold red"), str(error))
        code = 2 if isinstance(error, SettingsError) else 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if code is None else code if isinstance(code, int) else 1)


app.command()(beginning.init)
app.command()(sample.sample)
app.command()(check.check)


@app.command()
def ingest(
    source: Annotated[
        Source | None,
        typer.Option(help="kind of log; by default files where --from is given, else service"),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--from", help="folder of the logs (kuairand, files)")
    ] = None,
    day: OptionalDay = None,
) -> None:
    """Land logs in the lake: files of your own, KuaiRand's CSVs, or the service's own log.

    For KuaiRand all days of the folder are landed and a multi-task model (PLE), trained on past days
    only, fills in the predictions that the log does not carry. Landing twice changes nothing.
    """

    from dags import stages
    from training import ingest as landing

    settings = load_settings()
    chosen = source or (Source.service if folder is None else Source.files)
    if chosen is Source.service:
        if folder is not None:
            raise SettingsError(
                f"--source service reads the service's own log in {settings.layout.serving_log}, and no "
                "--from: leave one of the two out"
            )
        _show_landing(stages.run_stage(settings, chosen_day(day, settings), "land", force=True))
        return
    if folder is None:
        raise SettingsError(f"--source {chosen} needs --from FOLDER")
    if chosen is Source.kuairand:
        from training.world import upstream

        with busy("landing KuaiRand's days"):
            records = landing.land_kuairand(settings, folder, [day.date()] if day else None)
        for record in records:
            _show_landing(record)
        with busy("training the multi-task model and writing its predictions"):
            upstream.predict_days(settings, folder)
        return
    with busy(f"landing {folder}"):
        record = stages.land_files_from(settings, chosen_day(day, settings), folder)
    _show_landing(record)


def _show_landing(record: dict[str, Any]) -> None:
    for table, landed in record["tables"].items():
        days_ = ", ".join(map(str, landed["days"]))
        console.print(f"{table}: {landed['rows']} rows, days {days_}", soft_wrap=True)
        for entry, what in _NOT_READ.items():
            if landed.get(entry):
                console.print(f"  {what}: {', '.join(landed[entry])}", soft_wrap=True)
        for entry, what in _QUARANTINED.items():
            if landed.get(entry):
                console.print(f"  {landed[entry]} {what}: `mtf quarantine list`", soft_wrap=True)


_NOT_READ = {
    "left_out": "files left out, because their names begin with _ or .",
    "unread_columns": "columns that nobody asked for",
    "absent_columns": "columns that are not there, and null",
}


_QUARANTINED = {
    "later_rows": "rows of a later day are in quarantine",
    "set_aside": "rows that break a check are in quarantine",
}


app.command()(days.day)
app.command()(days.backfill)
app.command()(policy.train)
app.command()(policy.evaluate)
app.command()(policy.promote)
app.command()(policy.rollback)
app.command()(policy.arms)
app.command()(policy.canary)
app.command()(pareto.pareto)


@app.command()
def serve() -> None:
    """Run the ranking service in the foreground (Ctrl-C stops it)."""
    settings = load_settings()
    service = next(s for s in stack.services(settings, settings_path()) if s.name == "service")
    stack.refuse_taken(service)
    (settings.layout.bentos).mkdir(parents=True, exist_ok=True)
    console.print(
        f"serving at {service.address}; the token is in $MTF_TOKEN or in the data folder", soft_wrap=True
    )
    os.execve(service.command[0], service.command, service.environment)  # noqa: S606


@app.command()
def simulate(date_: days.Day) -> None:
    """Send a day of the simulated world's users to the running service (see `mtf up`)."""
    from dags.command_line.world import simulate_day

    settings = load_settings()
    with days.progress_bar(console) as progress:
        bar = progress.add_task(f"{date_.date()} requests", total=settings.world.requests_per_day)
        record = simulate_day(
            settings,
            date_.date(),
            lambda done, total: progress.update(bar, completed=done, total=max(done, total)),
        )
    table = Table("arm", "sessions", "session return", "95 % interval")
    for arm, truth in sorted(record["arms"].items()):
        low, high = truth["session_return_ci"]
        table.add_row(
            arm, str(truth["sessions"]), f"{truth['session_return_mean']:.3f}", f"{low:.3f} to {high:.3f}"
        )
    console.print(table)
    console.print(f"{record['requests']} requests, {record['failures']} failed")


app.command()(status.status)


@app.command()
def report(day: OptionalDay = None) -> None:
    """Make a day's page again, and the index over all days; prints where they are."""

    from dags import stages

    settings = load_settings()
    console.print(str(stages.make_report(settings, chosen_day(day, settings))))


@app.command()
def up() -> None:
    """Start Airflow, the ranking service and the MLflow UI; prints their addresses."""
    settings = load_settings()
    running = stack.services(settings, settings_path())
    for service in running:
        stack.start(settings, service)
    for service in running:
        with busy(f"waiting for {service.name}"):
            told = stack.wait_ready(settings, service)
        console.print(f"{service.name:8s} {service.address}  {told}", soft_wrap=True)
    airflow = stack.Airflow(settings)
    airflow.ensure_pool()
    console.print(f"Airflow's user is admin; its password is in {settings.layout.airflow / 'passwords.json'}")


@app.command()
def down() -> None:
    """Stop what `mtf up` started."""
    settings = load_settings()
    for service in stack.services(settings, settings_path()):
        stopped = stack.stop(settings, service.name)
        console.print(f"{service.name:8s} {'stopped' if stopped else 'was not running'}")


app.command()(worker.worker)
app.command()(reward.reward)
app.command()(experiment.experiment)


@app.command()
def demo(
    days: Annotated[int, typer.Option(min=1, help="simulated days")] = 4,
    keep: Annotated[bool, typer.Option(help="leave the stack running")] = False,
) -> None:
    """Run whole days of the simulated world through the real service and the real DAGs."""
    from dags.command_line.demo import run_demo

    # ended by a supervisor it must take its services down as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_demo(load_settings(), days, keep=keep, console=console)
