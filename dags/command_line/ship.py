"""`mtf ship`: what a replica's log holds goes to the object store now, and a replica leaves for good."""

from datetime import datetime
from typing import Annotated

import typer

from dags.command_line.console import busy, console
from training.contract.errors import MtfError, SettingsError
from training.contract.settings import load_settings


def ship(
    again: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="put all of a day's files there anew")
    ] = None,
    retire: Annotated[
        str | None, typer.Option(help="this replica is out of service: no more is expected of it")
    ] = None,
) -> None:
    """Ship the log of this machine's replica to `serving.ship.to`: what no service holds and is not there.

    A running service does so by itself; this is for one that was stopped. A day that is over is then
    whole. `--retire NAME` is for any replica: days from its first that is not whole are landed with what is
    there. It is in service again when it starts.
    """
    from serving.log import shipping
    from training.contract.object_store import object_store

    settings = load_settings()
    if settings.serving.ship.to is None:
        raise SettingsError("serving.ship.to: names no object store, so there is nowhere to ship to")
    if retire is None or retire == settings.serving.replica:
        shipper = shipping.Shipper(settings)
        try:
            with busy(f"shipping to {settings.serving.ship.to}"):
                files = shipper.ship(None if again is None else again.date())
        except BlockingIOError as error:
            raise MtfError(f"a service of replica {shipper.replica!r} ships just now: try again") from error
        console.print(f"{files} files shipped")
        if (behind := shipper.behind()).written:
            console.print(f"{behind.written} files are held by a service that runs, which ships them")
    if retire is not None:
        day = shipping.retire(object_store(settings.serving.ship), retire)
        console.print(
            f"replica {retire}: its log is whole before {day}; of later days there is what there is"
        )
