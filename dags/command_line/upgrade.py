"""`mtf upgrade`: a data folder of an earlier release, carried over."""

from dags.command_line import stack
from dags.command_line.backup import stopped
from dags.command_line.console import console
from training.contract import version
from training.contract.errors import SettingsError
from training.contract.settings import load_settings, settings_path

# what touches no data folder, or is there for one that is of another release
LET_THROUGH = ("down", "experiment", "init", "restore", "sample", "upgrade")


def upgrade() -> None:
    """Carry a data folder of an earlier release over: databases, records, tables and features.

    Stop the stack first (`mtf down`), and keep a copy of the folder until you have seen the result. Settings
    that have other names by now are refused with their new ones: change these first. Killed half-way, run it
    again; of a folder that is of this release it changes nothing.
    """
    from training.operations import upgrade as carrying

    settings = stopped()
    done = carrying.upgrade(
        settings,
        stack.airflow_environment(settings, settings_path()),
        lambda part: console.print(f"carrying over: {part}"),
    )
    if done:
        console.print(
            f"{settings.data} is of this release: `mtf status` says what is served, `mtf up` starts it"
        )
    else:
        console.print(f"{settings.data} is of this release already: nothing was to be done")


def refuse_other(command: str | None) -> None:
    """Refuse a command on a data folder of another release; what is wrong with settings it says itself."""
    if command in (None, *LET_THROUGH):
        return
    try:
        settings = load_settings()
    except SettingsError:
        return
    version.refuse_other(settings.layout)
