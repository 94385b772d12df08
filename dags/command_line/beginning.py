"""`mtf init`: settings to begin with, of the defaults or of someone's own logs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from dags.command_line.console import busy, console
from training.contract.errors import SettingsError
from training.contract.files import write_text_atomic
from training.contract.settings import HeadSettings, Settings

if TYPE_CHECKING:
    from training.ingest.inferring import Answers, Inferred, Question


def init(
    path: Annotated[Path, typer.Argument(help="file to write")] = Path("mtf.yaml"),
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="your logs, or one file of them: the settings are made for what is in there"
        ),
    ] = None,
    heads: Annotated[
        str, typer.Option(help="your model's heads, comma-separated; the log names them p_<head>")
    ] = "",
    timezone: Annotated[
        str, typer.Option(help="IANA name of the zone in which your days are cut; this machine's by default")
    ] = "",
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="with --from, as event_ts=served_at: which column of yours is one of ours; p_NAME is a "
            "prediction, is_NAME feedback, users.NAME a profile's; can be given several times"
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="replace an existing file")] = False,
) -> None:
    """Write a commented settings file: for your own logs with --from, else with every default.

    From logs come heads, signals, profile columns, kinds of ids and the time zone into the settings, and
    what your columns are called into columns.json beside the logs. What cannot be known is asked for, and
    without a terminal refused with the option that says it. Nothing is landed.

    Example: `mtf init my.yaml --from my_logs`, or `mtf init --heads click,like,share,watch_time`.
    """
    if path.exists() and not force:
        raise SettingsError(f"{path} exists; pass --force to replace it")
    if source is None and column:
        raise SettingsError("--column is about the logs that --from names")
    from training.ingest.naming import named_heads

    chosen = named_heads(heads)
    if source is None:
        _defaults(path, chosen, timezone)
    else:
        _from_logs(path, source, chosen, timezone, column or [])


def _defaults(path: Path, heads: tuple[HeadSettings, ...], timezone: str) -> None:
    from pendulum.tz.local_timezone import get_local_timezone

    from dags.command_line.settings_file import render

    values = {"calendar": {"timezone": timezone or get_local_timezone().name}}
    settings = _checked(values | ({"heads": heads} if heads else {}))
    write_text_atomic(path, render(settings))
    whose = "" if timezone else ", the zone of this machine (--timezone names another)"
    console.print(f"wrote {path}: days are cut in {settings.calendar.timezone}{whose}", soft_wrap=True)
    console.print("edit the heads, then land logs with `mtf ingest --help`")


def _checked(values: dict[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise SettingsError(*told) from None


def _from_logs(
    path: Path, source: Path, heads: tuple[HeadSettings, ...], timezone: str, columns: list[str]
) -> None:
    from pendulum.tz.local_timezone import get_local_timezone

    from dags.command_line.settings_file import render
    from training.ingest.inferring import Answers

    if timezone:
        _checked({"calendar": {"timezone": timezone}})
    pairs = [_pair(text) for text in columns]
    for name in (said := [name for name, _ in pairs]):
        if said.count(name) > 1:
            raise SettingsError(f"--column {name} is given twice: name one column")
    answers = Answers(timezone, dict(pairs), heads, get_local_timezone().name)
    found = _asked(source, answers)
    _show(found)
    mapping = _write_columns(found)
    write_text_atomic(path, render(found.settings, leave_out=("world", "upstream")))
    calendar = found.settings.calendar.timezone
    console.print(f"wrote {path}: days are cut in {calendar}, {found.zone.why}", soft_wrap=True)
    if mapping is not None:
        console.print(f"wrote {mapping}: what your columns are called", soft_wrap=True)
    console.print(
        "no log says these: put your ranker's present weights in as each head's `static`, and say in "
        "`signals` what each feedback is worth",
        soft_wrap=True,
    )
    if not found.profiles:
        console.print("there are no profiles (users/), so the state has none: see docs/own-logs.md")
    if found.folder is None:
        console.print(
            "for landing, put a day's files into a folder like my_logs/impressions/dt=2026-01-05/ "
            "(docs/own-logs.md), and run `mtf init --from my_logs` over all of them",
            soft_wrap=True,
        )
    else:
        console.print(f"next: export MTF_SETTINGS={path}, then mtf check --from {source}", soft_wrap=True)


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise SettingsError(f"--column {text!r}: expected NAME=COLUMN, as event_ts=served_at")
    return name, column


def _asked(source: Path, answers: "Answers") -> "Inferred":
    """Infers, and asks what cannot be known where somebody is there to be asked."""
    from training.ingest.inferring import Unknown, infer

    while True:
        try:
            with busy(f"reading a sample of {source}"):
                return infer(source, answers)
        except Unknown as unknown:
            if not (sys.stdin.isatty() and sys.stdout.isatty()):
                raise
            for question in unknown.questions:
                answers = _answered(question, answers)


def _answered(question: "Question", answers: "Answers") -> "Answers":
    console.print(question.text, soft_wrap=True)
    if question.choices:
        console.print(f"  perhaps {', '.join(question.choices)}", soft_wrap=True)
    name = question.option.partition(" ")[2]
    if name:
        return replace(answers, columns={**answers.columns, name: typer.prompt("column").strip()})
    while True:
        zone = typer.prompt("time zone", default=(*question.choices, answers.machine)[0]).strip()
        try:
            _checked({"calendar": {"timezone": zone}})
        except SettingsError as error:
            console.print(str(error), soft_wrap=True)
            continue
        return replace(answers, timezone=zone)


def _show(found: "Inferred") -> None:
    table = Table("table", "your column", "is", "seen in the sample", box=None)
    for row in found.read:
        table.add_row(*row)
    console.print(table)
    for name, column, why in found.left_out:
        console.print(f"left out: {column} of {name}: {why}", soft_wrap=True)


def _write_columns(found: "Inferred") -> Path | None:
    """The mapping beside the logs, where it says more than what is there."""
    from training.ingest.columns_file import COLUMNS_FILE

    if found.folder is None:
        if found.columns:
            told = json.dumps(found.columns)
            console.print(f"your columns.json, beside the deliveries: {told}", soft_wrap=True)
        return None
    path, text = found.folder / COLUMNS_FILE, json.dumps(found.columns, indent=2) + "\n"
    if not found.columns or (path.exists() and json.loads(path.read_text()) == found.columns):
        return None
    write_text_atomic(path, text)
    return path
