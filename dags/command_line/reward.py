"""`mtf reward`: the reward's weights as the log suggests them."""

from typing import Annotated

import typer
from rich.table import Table

from dags.command_line.console import console
from dags.command_line.days import OptionalDay, chosen_day
from training.contract.settings import load_settings


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
    chosen = chosen_day(day, settings)
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
