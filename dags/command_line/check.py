"""`mtf check`: what landing and validation would say of someone's logs, and whether they explore enough."""

import math
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from dags.command_line.console import busy, console
from training.contract.errors import DataError, SettingsError
from training.contract.settings import Settings, load_settings

if TYPE_CHECKING:
    from dags.checking import Checked

_SOON = 28  # days, of which it is said what they show
_NOT_READ = {
    "left_out": "left out, because their names begin with _ or .",
    "unread_columns": "columns that nobody asked for",
    "absent_columns": "columns that are not there, and null",
}


def check(
    source: Annotated[
        Path | None, typer.Option("--from", help="folder of the logs; that of the settings by default")
    ] = None,
) -> None:
    """Read all of your logs as landing would, and land nothing: what is read, refused and remarked.

    Shows files and columns that are not read, the mapping, nulls, times, the heaviest users, what validation
    would say of each day, and whether the logs explore enough to be learnt from. Ends with code 1 where a
    day would be refused or stopped.
    """
    from dags import checking

    settings = load_settings()
    folder = source or settings.logs.folder
    if folder is None:
        raise SettingsError("name the logs: mtf check --from FOLDER, or set logs.folder")
    with busy(f"reading {folder}") as status:
        found = checking.check(settings, folder, lambda what: status.update(Text(what)))
    _show_read(settings, folder, found)
    _show_content(settings, found)
    _show_validation(found)
    _show_exploration(settings, found)
    if not found.sound:
        bad = len(found.days) - len(set(found.landed) - found.stopped)
        raise DataError(f"{bad} of {len(found.days)} days would be refused or stopped: see above")
    console.print(
        f"All {len(found.days)} days land and pass. Next: mtf backfill"
        + ("" if settings.logs.folder else f" --from {found.days[0]} --to {found.days[-1]}"),
        soft_wrap=True,
    )


def _heading(text: str) -> None:
    console.print(Text(text, "bold"))


def _say(text: str) -> None:
    console.print(f"  {text}", soft_wrap=True)


def _show_read(settings: Settings, folder: Path, found: "Checked") -> None:
    _heading(f"Read from {folder}")
    _say(f"{len(found.days)} days, {found.days[0]} to {found.days[-1]}, cut in {settings.calendar.timezone}")
    gaps = (found.days[-1] - found.days[0]).days + 1 - len(found.days)
    if gaps:
        _say(f"{gaps} days between them have no delivery")
    for table, told in found.tables.items():
        _say(f"{table}: {told['rows']} rows in {told['files']} files")
        for name, what in _NOT_READ.items():
            if told.get(name):
                _say(f"  {what}: {', '.join(told[name])}")
        for name, what in {
            "later_rows": "rows of a later day go to quarantine",
            "set_aside": "rows break a check and go to quarantine",
            "duplicates_removed": "rows are there twice, and land once",
        }.items():
            if told[name]:
                _say(f"  {told[name]} {what}")
    if found.texts:
        told_texts = ", ".join(f"{count} by {name}" for name, count in sorted(found.texts.items()))
        _say(f"text files, all UTF-8, separated: {told_texts}")
    _show_mapping(settings, folder, found)
    for message, days in found.refusals.items():
        console.print(Text("  refused", "red"), f"({_days(days)}): {message}", soft_wrap=True)


def _show_mapping(settings: Settings, folder: Path, found: "Checked") -> None:
    from training.ingest.columns_file import COLUMNS_FILE, read_columns

    try:
        mapped = read_columns(settings, folder)
    except DataError:  # among the refusals
        return
    for table, one in mapped.items():
        pairs = [
            f"{name} is {of.column or 'not there'}" for name, of in one.sources.items() if of.column != name
        ]
        if pairs:
            _say(f"{COLUMNS_FILE}, {table}: {', '.join(pairs)}")
    for name, kinds in sorted(found.times.items()):
        of = next((m.sources[name] for m in mapped.values() if name in m.sources), None)
        said = (
            [] if of is None else [f"unit {of.unit}" * (of.unit != "ms"), f"zone {of.zone}" * bool(of.zone)]
        )
        told = "".join(f", {one}" for one in said if one)
        _say(f"{name}: {', '.join(sorted(kinds))}{told}")


def _show_content(settings: Settings, found: "Checked") -> None:
    if found.shown is None:
        return
    shown, zone = found.shown, settings.calendar.zone
    _heading("What is in it")
    first, last = (f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}" for moment in (shown.first, shown.last))
    _say(f"{shown.requests} requests of {shown.users} users, {shown.items} items, {first} to {last}")
    some = [(name, n) for name, n in shown.nulls if n < shown.rows]
    if some:
        _say(f"nulls: {', '.join(f'{name} {_percent(n, shown.rows)}' for name, n in some)}")
    heavy = ", ".join(f"{user} ({requests} requests)" for user, requests, _ in shown.heaviest)
    _say(f"heaviest users: {heavy}")
    if found.sessions is not None:
        sessions = found.sessions
        _say(
            f"{sessions.count} sessions, {sessions.requests:.1f} requests each; the reward of the settings "
            f"comes to {sessions.mean:.3g} a session (standard deviation {sessions.deviation:.3g})"
        )


def _show_validation(found: "Checked") -> None:
    if not found.landed:
        return
    _heading("What validation would say")
    if not found.remarks:
        _say("nothing: every check passes")
        return
    table = Table("", "days", "what", box=None, show_header=False)
    for remark in sorted(found.remarks, key=lambda one: one.severity != "critical"):
        critical = remark.severity == "critical"
        table.add_row(
            Text("stops the day" if critical else "warns", "red" if critical else "yellow"),
            _days(remark.days),
            remark.text,
        )
    console.print(table)


def _show_exploration(settings: Settings, found: "Checked") -> None:
    """Whether the logs explore enough to learn from, and how long the service's own exploring would take."""
    from training.ingest import facts

    if found.explored is None:
        return
    _heading("Is there enough exploration to learn from?")
    explored, sessions, serving = found.explored, found.sessions, settings.serving
    if not explored.decisions:
        _say(
            "No: the logs hold no decisions (which weights ranked a request, and how they were drawn), so "
            "nothing can be learnt of other weights. They give users their histories and sessions."
        )
    elif not explored.drawn:
        _say(
            f"No: none of {explored.decisions} decisions was drawn by an exploring arm with its log_density."
        )
    elif not explored.with_state:
        _say(
            f"No: none of the {explored.drawn} drawn decisions has a state of {settings.state_spec.version}, "
            "the specification of these settings; only the service writes these."
        )
    else:
        _say(f"{explored.with_state} of {explored.decisions} decisions were drawn and can be learnt from")
    effect, window = serving.canary_effect, settings.learner.window_days
    need = None if sessions is None else facts.needed(sessions, effect)
    if sessions is None or need is None:
        _say("How much it takes is not known: the sessions in the logs have no reward that varies.")
        return
    if explored.information:
        has = explored.information / need
        _say(
            f"that is {has:.0%} of what it takes to see a weight that is worth {effect:.0%} of the return"
            + (": enough" if has >= 1.0 else "")
        )
        if has >= 1.0:
            return
    shares = serving.shares
    exploring = shares.random + shares.noise + shares.box
    days = facts.days_for(need, sessions.a_day, serving)
    _say(
        f"Served, the exploring arms draw weights for {exploring:.0%} of the users (serving.shares); the "
        "other users get your static weights until a policy has passed the gate."
    )
    if math.isinf(days):
        _say("With these shares nothing is explored: set serving.shares.random.")
        return
    _say(
        f"At {sessions.a_day:.0f} sessions a day, about {_about(days)} of all your traffic show a weight "
        f"that is worth {effect:.0%} of the return (serving.canary_effect); a better one shows sooner."
    )
    most = shares.model_copy(update={"random": serving.max_exploration, "noise": 0.0, "box": 0.0})
    fewer = facts.days_for(need, sessions.a_day, serving.model_copy(update={"shares": most}))
    _say(
        f"In {_SOON} days, one worth {effect * math.sqrt(days / _SOON):.1%} shows; with "
        f"serving.shares.random {serving.max_exploration:g} and no other arm, one worth "
        f"{effect * math.sqrt(fewer / _SOON):.1%}."
    )
    if days > window:
        _say(f"A retrain reads {window} days (learner.window_days): make them as many as you wait for.")


def _about(days: float) -> str:
    if days <= 1.0:
        return "a day"
    return f"{days:.0f} days" if days < 1000 else f"{float(f'{days:.1g}'):,.0f} days"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part / whole >= 0.001 else f"{part} rows"


def _days(days: "list[date] | tuple[date, ...]") -> str:
    return str(days[0]) if len(days) == 1 else f"{len(days)} days from {days[0]}"
