"""`mtf forget`: a user leaves everything at rest."""

from typing import Annotated

import typer

from dags.command_line.backup import stopped
from dags.command_line.console import busy, console
from training.contract.errors import SettingsError
from training.contract.log import Id
from training.contract.settings import Settings


def forget(
    user: Annotated[str, typer.Option(help="their user_id, as the log has it")],
) -> None:
    """Take a user out of everything at rest: log, lake, corrections, tables, features, records, pages.

    Stop the stack first (`mtf down`), and a service that was started by hand: it would write again what it
    knows. Landing again, also from files that still hold them, brings no row of theirs from before now.
    Killed half-way, run it again.
    """
    from serving.log import forgetting as log
    from training.operations import forgetting

    settings = stopped()
    chosen = _as_logged(settings, user)
    with busy(f"forgetting a user in {settings.data}"):
        found = forgetting.forget(settings, chosen, lambda: log.forget(settings, chosen))
    told = {
        "lines": "lines of the service's log",
        "lake": "rows of the lake",
        "tables": "rows of tables",
        "features": "entries of the online store",
        "texts": "records and pages that named them",
    }
    for name, what in told.items():
        console.print(f"{found[name]} {what}")
    with busy("making the tables anew without them"):
        forgetting.made_anew(settings)
    if settings.serving.ship.to is not None:
        console.print(
            f"{settings.serving.ship.to} holds them no more, unless the bucket keeps versions. Replicas keep "
            f"on their disks what they shipped for {settings.serving.ship.keep_days} days: run it there, too",
            soft_wrap=True,
        )
    console.print(
        "Not changed: files of `mtf backup`, which hold the user until they are deleted or written anew; "
        "policies that were learnt with their days, until retention deletes them; your own source files"
        f"{'' if settings.logs.folder is None else f' in {settings.logs.folder}'}, whose rows of theirs are "
        "not landed again",
        soft_wrap=True,
    )


def _as_logged(settings: Settings, user: str) -> Id:
    kind = settings.ids.users
    if kind == "string":
        return user
    try:
        number = int(user)
    except ValueError:
        raise SettingsError(f"--user {user!r} is no {kind}, which ids.users says that ids are") from None
    return number if kind == "int64" else str(number)
