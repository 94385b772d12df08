"""`mtf keep`: what is older than the settings allow goes, and what is still needed stays."""

from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from dags.command_line.console import console
from training.contract.settings import load_settings

SHOWN = 40  # rows of a kind that are listed


def keep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would go, with sizes")] = False,
) -> None:
    """Delete what is older than the settings' section `retention` allows; `--dry-run` only lists it.

    Days are counted back from the newest landed one. Nothing goes that a policy which serves, or that a
    rollback can go back to, was made of, nor a day that a later run still reads. The DAG `mtf_retention` does
    the same by cron. Killed half-way, run it again.
    """

    from training.operations import retention

    settings = load_settings()
    planned = retention.plan(settings)
    table = Table("kind", "day", "what", "size")
    kinds = list(dict.fromkeys(item.kind for item in planned.items))
    for kind in kinds:
        items = [item for item in planned.items if item.kind == kind]
        for item in items[:SHOWN]:
            day = "" if item.day is None else str(item.day)
            table.add_row(kind, day, item.name, decimal(item.bytes))
        if len(items) > SHOWN:
            rest = sum(item.bytes for item in items[SHOWN:])
            table.add_row(kind, "", f"and {len(items) - SHOWN} more", decimal(rest))
    if planned.items:
        console.print(table)
    total = decimal(sum(item.bytes for item in planned.items))
    reasons = sorted({reason for reason in planned.held.values()})
    for reason in reasons:
        days = sorted(day for day, why in planned.held.items() if why == reason)
        console.print(f"kept: {len(days)} days, {days[0]} to {days[-1]}: {reason}", soft_wrap=True)
    if dry_run:
        console.print(f"{len(planned.items)} things of {total} would go; nothing was deleted")
        return
    retention.keep(settings, planned)
    console.print(f"{len(planned.items)} things of {total} deleted")
