"""`mtf backup` and `mtf restore`: the embedded state as one file, and back."""

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from dags.command_line import stack
from dags.command_line.console import busy, console
from training.contract.errors import MtfError
from training.contract.settings import Settings, load_settings


def backup(to: Annotated[Path, typer.Option(help="file to write, .tar.gz")]) -> None:
    """Write everything at rest (lake, warehouse, features, models, registry, pages) to one file.

    Stop the stack first (`mtf down`). The file holds the service's token and Airflow's keys, and only its
    owner may read it.
    """
    from training.operations import backup as state

    settings = stopped()
    with busy(f"backing up {settings.data}"):
        manifest = state.backup(settings, to)
    files = manifest["files"].values()
    console.print(f"{to}: {len(files)} files of {decimal(sum(file['bytes'] for file in files))}")


def restore(
    source: Annotated[Path, typer.Option("--from", help="a file that `mtf backup` wrote")],
    force: Annotated[bool, typer.Option(help="replace a data folder that is not empty")] = False,
) -> None:
    """Make the settings' data folder what a backup holds; every file is checked before anything changes.

    The folder may be another than the one backed up. Stop the stack first (`mtf down`).
    """
    from training.operations import backup as state

    settings = stopped()
    with busy(f"restoring {settings.data}"):
        manifest = state.restore(settings, source, force)
    console.print(f"{settings.data} is as {manifest['root']} was at {manifest['created']}")
    console.print("`mtf status` says what is served; `mtf up` starts it")


def stopped() -> Settings:
    """The settings; :class:`MtfError` while the stack runs over their data folder."""
    settings = load_settings()
    running = stack.running(settings)
    if running:
        raise MtfError(f"{', '.join(running)} runs over {settings.data}: stop it first with `mtf down`")
    return settings
