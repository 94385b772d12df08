"""`mtf quarantine`: what is held back, why, and how mended rows come back."""

import getpass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dags.command_line.console import console
from training.contract.settings import load_settings

app = typer.Typer(
    name="quarantine",
    no_args_is_help=True,
    help="""Look at rows that broke a check, mend them, and land them in their own day.

    `list` says what is held, `show` shows rows, `export` writes them to a file to mend, `land` puts the
    mended rows in place of the bad ones. Then run the day again: `mtf day --date …`.
    """,
)

TableName = Annotated[str, typer.Option("--table", "-t", help="impressions, decisions or users")]
Day = Annotated[datetime, typer.Option("--date", "-d", formats=["%Y-%m-%d"], help="the local day")]
OptionalDay = Annotated[
    datetime | None, typer.Option("--date", "-d", formats=["%Y-%m-%d"], help="of this day only")
]
CELL = 24  # characters of a value that are shown


@app.command("list")
def list_(day: OptionalDay = None) -> None:
    """What is in quarantine by day, table and reason, and which rows were mended, by whom and when."""

    from training.validation import quarantine

    settings = load_settings()
    one = None if day is None else day.date()
    table = Table("day", "table", "rows", "reason")
    for entry in quarantine.held(settings, one):
        for reason, count in entry.reasons.items():
            table.add_row(str(entry.day), entry.table, str(count), reason)
    console.print(table if table.row_count else "nothing is in quarantine")
    mended = quarantine.mended(settings.layout, one)
    if mended:
        table = Table("day", "table", "mended", "dropped", "by", "when", "why")
        for record in mended:
            numbers = [str(record[name]) for name in ("mended", "dropped")]
            table.add_row(record["day"], record["table"], *numbers, record["by"], record["ts"], record["why"])
        console.print(table)


@app.command()
def show(
    day: Day,
    table: TableName,
    reason: Annotated[str | None, typer.Option(help="only rows whose reason holds this text")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="most rows shown")] = 20,
) -> None:
    """Rows in quarantine, with the columns that their reasons name first, and what they break."""

    from training.validation import quarantine

    held = quarantine.rows(load_settings(), table, day.date(), reason)
    shown = held.slice(0, limit).to_pylist()
    reasons = " ".join(row[quarantine.REASON] for row in shown)
    named = [name for name in held.column_names if name in reasons]
    others = [name for name in held.column_names if name not in (*named, quarantine.ROW, quarantine.REASON)]
    columns = [quarantine.ROW, *named, *others][: max(8, len(named) + 1)]
    grid = Table(*columns, quarantine.REASON)
    for row in shown:
        grid.add_row(*(_cell(row[name]) for name in columns), row[quarantine.REASON])
    console.print(grid)
    console.print(f"{len(shown)} of {held.num_rows} rows; `mtf quarantine export` writes all of every column")


def _cell(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


@app.command()
def export(
    day: Day,
    table: TableName,
    to: Annotated[Path, typer.Option(help="file to write, .parquet or .csv")],
) -> None:
    """Write the quarantined rows to a file to mend: change values, keep the column `quarantine_row`.

    Lists (actions, states) need Parquet. The column `reason` is for you; it is not read back.
    """

    from training.validation import quarantine

    count = quarantine.export(load_settings(), table, day.date(), to)
    console.print(f"{to}: {count} rows of {table} of {day.date()}")


@app.command()
def land(
    day: Day,
    table: TableName,
    source: Annotated[Path, typer.Option("--from", help="the mended file, .parquet or .csv")],
    why: Annotated[str, typer.Option(help="kept in the record of the change")],
    by: Annotated[str | None, typer.Option(help="who mended it; the user of this shell by default")] = None,
    drop_missing: Annotated[
        bool, typer.Option(help="take quarantined rows that the file no longer holds out of the day")
    ] = False,
) -> None:
    """Put mended rows in place of the quarantined ones, after the same checks; then run the day again.

    The change is kept beside the lake: landing the day's source again keeps it. The same file twice
    changes nothing. Rows whose time is of another landed day go there.
    """

    from training.validation import quarantine

    record = quarantine.land(
        load_settings(),
        table,
        day.date(),
        source,
        by=by or getpass.getuser(),
        why=why,
        drop_missing=drop_missing,
    )
    if not record["changed"]:
        console.print("these rows are landed already: nothing changed")
        return
    console.print(f"{record['mended']} rows mended, {record['dropped']} dropped")
    for one in record["days"]:
        console.print(f"now run it again: mtf day --date {one}")
