"""The console command ``mtf``."""

import atexit
import os
import signal
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dags import stages
from dags.command_line import backup, days, quarantine, retention, stack
from training.contract.errors import MtfError, SettingsError
from training.contract.files import read_json, write_text_atomic
from training.contract.records import read_record, read_records, recorded_days
from training.contract.settings import Settings, load_settings, settings_path

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
console = Console()

OptionalDay = Annotated[
    datetime | None,
    typer.Option("--date", "-d", formats=["%Y-%m-%d"], help="the local day; the newest by default"),
]


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
    try:
        app()
    except SystemExit as ending:
        code = ending.code
    except MtfError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        code = 2 if isinstance(error, SettingsError) else 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if code is None else code if isinstance(code, int) else 1)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="file to write")] = Path("mtf.yaml"),
    heads: Annotated[
        str, typer.Option(help="your model's heads, comma-separated; the log names them p_<head>")
    ] = "",
    force: Annotated[bool, typer.Option(help="replace an existing file")] = False,
) -> None:
    """Write a commented settings file with every setting and where its default comes from.

    Example: `mtf init --heads click,like,share,watch_time`, then edit bounds and static weights.
    """
    from dags.command_line.settings_file import render
    from training.contract.settings import DEFAULT_HEADS, HeadSettings

    if path.exists() and not force:
        raise SettingsError(f"{path} exists; pass --force to replace it")
    known = {head.name: head for head in DEFAULT_HEADS}
    names = [name.strip() for name in heads.split(",") if name.strip()]
    chosen = tuple(known.get(name) or HeadSettings(name=name, static=0.5) for name in names)
    settings = Settings(heads=chosen) if chosen else Settings()
    write_text_atomic(path, render(settings))
    console.print(f"wrote {path}: edit the heads, then land logs with `mtf ingest --help`")


@app.command()
def ingest(
    source: Annotated[Source, typer.Option(help="kind of log")] = Source.service,
    folder: Annotated[
        Path | None, typer.Option("--from", help="folder of the logs (kuairand, files)")
    ] = None,
    day: OptionalDay = None,
) -> None:
    """Land logs in the lake: the service's own, KuaiRand's CSVs, or files of your own.

    For KuaiRand all days of the folder are landed and a multi-task model (PLE), trained on past days
    only, fills in the predictions that the log does not carry. Landing twice changes nothing.
    """
    from training import ingest as landing

    settings = load_settings()
    if source is not Source.service and folder is None:
        raise SettingsError(f"--source {source} needs --from FOLDER")
    if source is Source.kuairand:
        from training.world import upstream

        with console.status("landing KuaiRand's days"):
            records = landing.land_kuairand(settings, folder, [day.date()] if day else None)
        for record in records:
            _show_landing(record)
        with console.status("training the multi-task model and writing its predictions"):
            upstream.predict_days(settings, folder)
        return
    chosen = _day(day, settings)
    if source is Source.files:
        _show_landing(stages.land_files_from(settings, chosen, folder))
    else:
        _show_landing(stages.run_stage(settings, chosen, "land", force=True))


def _show_landing(record: dict) -> None:
    for table, landed in record["tables"].items():
        console.print(f"{table}: {landed['rows']} rows, days {', '.join(map(str, landed['days']))}")


app.command()(days.day)
app.command()(days.backfill)


def _run(stage: str, chosen: datetime | None) -> dict:
    settings = load_settings()
    target = _day(chosen, settings)
    with console.status(f"{stage} {target}"):
        record = stages.run_stage(settings, target, stage, force=True)
    if "skipped" in record:
        console.print(f"{stage} of {target} skipped: {record['skipped']}")
    return record


@app.command()
def train(day: OptionalDay = None) -> None:
    """Train a challenger on the last days' trajectories, up to the given day."""
    record = _run("train", day)
    if "sha256" in record:
        console.print(f"policy {record['version']}, sha256 {record['sha256']}, {record['steps']} steps")


@app.command()
def evaluate(day: OptionalDay = None) -> None:
    """Estimate the day's challenger, the champion and the static weights off-policy."""
    record = _run("evaluate", day)
    if "estimates" in record:
        console.print(_estimates(record))


@app.command()
def promote(day: OptionalDay = None) -> None:
    """Put the day's challenger through the gate, and promote it when every rule holds."""
    record = _run("gate", day)
    for rule in record.get("rules", []):
        console.print(f"{'pass' if rule['passed'] else 'FAIL'}  {rule['rule']}: {rule['reason']}")
    if record.get("decision") == "promote":
        console.print(f"champion: {_run('promote', day)['version']}")


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="kept in the history")] = "asked for by hand",
) -> None:
    """Serve the champion before the present one again; the running service follows within a second."""
    from training import promotion

    record = promotion.rollback(load_settings(), reason=reason)
    console.print(f"champion: {record['version']} (was {record['from_version']})")


ArmShare = Annotated[float | None, typer.Option(min=0.0, max=1.0)]


@app.command()
def arms(
    static: ArmShare = None,
    random: ArmShare = None,
    noise: ArmShare = None,
    box: ArmShare = None,
    mixed: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="half of it random, half of it noise")
    ] = None,
    challenger: ArmShare = None,
    shadow: ArmShare = None,
    reason: Annotated[str, typer.Option(help="kept in the history")] = "asked for by hand",
) -> None:
    """Change the shares of the arms while the service runs, or show them when no share is given.

    Shares that are not named stay; the champion has what is left. The service follows within
    `serving.follow_seconds`. Running sessions keep their arm, unless its share becomes 0.
    """
    from training.contract import history
    from training.contract.log import CHAMPION
    from training.contract.shares import change_shares, read_shares

    settings = load_settings()
    if mixed is not None:
        if random is not None or noise is not None:
            raise SettingsError("--mixed sets random and noise: give it or them")
        random = noise = mixed / 2.0
    given = {
        "static": static,
        "random": random,
        "noise": noise,
        "box": box,
        "challenger": challenger,
        "shadow": shadow,
    }
    changes = {arm: share for arm, share in given.items() if share is not None}
    if changes:
        with history.changing(settings.layout):
            shares = change_shares(settings, changes, reason)
    else:
        shares = read_shares(settings)
    table = Table("arm", "share of users")
    left = 1.0 - sum(share for arm, share in shares if arm != "shadow")
    table.add_row(CHAMPION, f"{left:.4g}")
    for arm, share in shares:
        table.add_row(f"{arm} (beside, unseen)" if arm == "shadow" else arm, f"{share:.4g}")
    console.print(table)


@app.command()
def serve() -> None:
    """Run the ranking service in the foreground (Ctrl-C stops it)."""
    settings = load_settings()
    service = next(s for s in stack.services(settings, settings_path()) if s.name == "service")
    (settings.layout.bentos).mkdir(parents=True, exist_ok=True)
    console.print(f"serving at {service.address}; the token is in $MTF_TOKEN or in the data folder")
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


@app.command()
def status() -> None:
    """Whether today ran, what is served and since when, whether it is better than static weights and by how
    much, what is in quarantine, what drifts; what runs, the guardrail, and how the last days ended.
    """
    from training.contract.pointer import read_champion
    from training.operations import report

    settings = load_settings()
    for service in stack.services(settings, settings_path()):
        pid = stack.pid_of(settings, service.name)
        state = f"running, {service.address}" if pid else "stopped"
        console.print(f"{service.name:8s} {state}")
    colours = {"good": "green", "held": "yellow", "stopped": "red", "open": "cyan"}
    for answer in report.standing(settings):
        console.print(f"[bold]{answer.question}[/] [{colours[answer.state]}]{WORDS[answer.state]}[/]")
        console.print(f"  {answer.text}", markup=False, highlight=False)
    if read_champion(settings.layout.challenger) is not None:
        console.print(f"canary   {_canary(settings)}")
    _show_guardrail(settings)
    table = Table("day", "last stage", "ended", "gate")
    for one in recorded_days(settings.layout)[-10:]:
        records = read_records(settings.layout, one)
        last = list(records)[-1]
        ended = "ok" if records[last].get("success", True) else "failed"
        table.add_row(str(one), last, ended, records.get("gate", {}).get("decision", "-"))
    console.print(table)


WORDS = {"good": "good", "held": "worth a look", "stopped": "alarm", "open": "open"}


def _canary(settings: Settings) -> str:
    if not settings.layout.canary.exists():
        return "no canary yet"
    canary = read_json(settings.layout.canary)
    since = datetime.fromtimestamp(canary["since"], UTC).isoformat(timespec="seconds")
    step = f"step {canary['step'] + 1} of {len(settings.serving.canary)}"
    return f"{step}, share {canary['share']:g}, since {since}"


def _show_guardrail(settings: Settings) -> None:
    if settings.layout.guardrail.exists():
        seen = read_json(settings.layout.guardrail)
        for arm, one in seen["arms"].items():
            console.print(
                f"guardrail of {arm} {one['version']} at {seen['checked_ts']}: "
                f"{one['verdict'] or 'nothing against it'} ({one['window']['requests']} requests, "
                f"{one['reward']['sessions']} sessions)"
            )


@app.command()
def report(day: OptionalDay = None) -> None:
    """Make a day's page again, and the index over all days; prints where they are."""
    settings = load_settings()
    console.print(str(stages.make_report(settings, _day(day, settings))))


@app.command()
def up() -> None:
    """Start Airflow, the ranking service and the MLflow UI; prints their addresses."""
    settings = load_settings()
    running = stack.services(settings, settings_path())
    for service in running:
        stack.start(settings, service)
    for service in running:
        with console.status(f"waiting for {service.name}"):
            seconds = stack.wait_ready(settings, service)
        console.print(f"{service.name:8s} {service.address}  ready after {seconds:.0f} s")
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


@app.command()
def reward(
    day: OptionalDay = None,
    days: Annotated[int, typer.Option(min=3, help="days back from it that are read")] = 28,
    horizon: Annotated[int, typer.Option(min=1, help="later days whose dwell time counts")] = 3,
    write: Annotated[bool, typer.Option(help="also print the weights as YAML for the settings file")] = False,
) -> None:
    """Estimate the reward's weights from each signal's relation to the users' later dwell time.

    Reads the transformed days up to the given one, and writes the record `reward` of that day. It changes
    no settings: `--write` prints a snippet to paste, with variants that lean to time, integrity and
    interaction.
    """
    from training.contract.records import write_record
    from training.warehouse import reward_weights as weights

    settings = load_settings()
    chosen = _day(day, settings)
    record = weights.estimate(settings, chosen, days=days, horizon=horizon)
    write_record(settings.layout, chosen, "reward", record)
    table = Table("term", "future s per unit", "95 % interval", "mean a day", "in force", "proposed")
    for name, found in record["weights"].items():
        ends = "never seen" if found["lower"] is None else f"{found['lower']:.4g} to {found['upper']:.4g}"
        numbers = [f"{found[key]:.4g}" for key in ("mean", "in_force", "proposed")]
        table.add_row(name, f"{found['per_unit']:.4g}", ends, *numbers)
    console.print(table)
    console.print(
        f"{record['user_days']} days of {record['users']} users, {record['days'][0]} to "
        f"{record['days'][-1]}; dwell time of the {horizon} days after each"
    )
    if write:
        proposed = {name: found["proposed"] for name, found in record["weights"].items()}
        typer.echo(weights.snippet(weights.with_weights(settings, proposed)))


@app.command()
def experiment(
    table: Annotated[
        str, typer.Argument(help="a table's YAML, the name of a shipped one, or `estimators`: see below")
    ],
    workers: Annotated[int, typer.Option(min=1, help="processes, of one thread each")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; build/experiments/<table> by default")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="for `estimators`: logs for the coverage")] = 60,
) -> None:
    """Measure a table of methods, seeds and worlds against the simulated world's truth.

    Shipped: `paper_table1`, `successors`, `ablations`, `formula`, `cheaper_steps`. A run that was stopped or
    killed goes on where it was when it is started again. Writes `results.json`, `results.md` and plots; see
    docs/experiments.md.

    `estimators` measures the judge instead: the rank correlation of every estimator with the true return
    over policies of very different quality, and the coverage of its intervals over many logs, with the
    world and the judge's sizes of the settings file. Writes `estimators.json`, `.md` and `.png`; see
    docs/judging.md.
    """
    from training.experiments import estimators, load_table
    from training.experiments.run import run as measure
    from training.experiments.run import units

    if table == "estimators":
        folder = out or Path("build/experiments/estimators")
        with days.progress_bar(console) as progress:
            bar = progress.add_task("estimators: units", total=None)

            def told(done: int, known: int, name: str) -> None:
                progress.update(bar, completed=done, total=known)
                progress.console.print(f"done   {name}")

            estimators.run(load_settings(), folder, told, workers=workers, draws=draws)
        console.print(f"results: {folder / 'estimators.md'}")
        return
    chosen = load_table(table)
    folder = out or Path("build/experiments") / chosen.name
    with days.progress_bar(console) as progress:
        total = progress.add_task(f"{chosen.name}: units", total=len(units(chosen)))
        cells, bars = {str(unit) for unit in units(chosen)}, {}

        def follow(job: str, share: float, what: str) -> None:
            if share >= 1.0:
                if job in bars:
                    progress.remove_task(bars.pop(job))
                progress.advance(total, job in cells)
                if what != "kept":
                    progress.console.print(f"{what:6s} {job}")
            else:
                if job not in bars:
                    bars[job] = progress.add_task(job, total=1.0)
                progress.update(bars[job], completed=share, description=f"{job}: {what}")

        measure(chosen, folder, workers, follow)
    console.print(f"results: {folder / 'results.md'}")


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


def _estimates(record: dict) -> Table:
    table = Table("policy", "lower", "value", "upper", "out of data")
    for name, estimate in record["estimates"].items():
        numbers = [f"{estimate[key]:.3f}" for key in ("lower", "value", "upper")]
        table.add_row(name, *numbers, "ALARM" if estimate["alarm"] else "no")
    return table


def _day(chosen: datetime | None, settings: Settings) -> date:
    """The day asked for, else the newest that left a record, else yesterday."""
    if chosen is not None:
        return chosen.date()
    known = [one for one in recorded_days(settings.layout) if read_record(settings.layout, one, "land")]
    if known:
        return known[-1]
    local = timezone(timedelta(hours=settings.calendar.utc_offset_hours))
    return datetime.now(local).date() - timedelta(days=1)
