"""`mtf pareto`: the day's operating points between time and interaction, and the choice of one."""

from typing import Annotated, Any

import typer
from rich.table import Table

from dags.command_line.console import busy, console
from dags.command_line.days import OptionalDay, chosen_day
from training.contract.log import STATIC_VERSION
from training.contract.settings import load_settings

PARTS = ("time", "interaction")


def pareto(
    day: OptionalDay = None,
    choose: Annotated[float | None, typer.Option(help="promote the policy of this factor")] = None,
    reason: Annotated[str, typer.Option(help="kept in the history")] = "asked for by hand",
) -> None:
    """Show what policies for rewards that lean to or from interaction bring; or choose one of them.

    Each point is a policy of the day's night, whose reward counts all signals (the interaction part) the
    factor times, against play time and integrity (the time part). `--choose` puts it through the gate, which
    asks for a gain in one part at least, and promotes it as any other; then it prints the settings that make
    later nights aim for the same.
    """

    from dags import choosing
    from training import promotion
    from training.warehouse import reward_weights

    settings = load_settings()
    chosen = chosen_day(day, settings)
    if choose is None:
        console.print(_table(promotion.swept(settings, chosen)))
        console.print("More than static weights bring; the intervals of a part hold for all factors at once.")
        return
    with busy(f"interaction x{choose:g} of {chosen}"):
        record = choosing.choose(settings, chosen, choose, reason)
    for rule in record["rules"]:
        console.print(f"pass  {rule['rule']}: {rule['reason']}")
    console.print(record["outcome"])
    if choose != 1.0:
        typer.echo(
            "\nLater nights aim for the reward in the settings. In the settings file this weighs all signals "
            f"{choose:g} times (restart the service, then):\n"
        )
        typer.echo(reward_weights.sections(reward_weights.with_interaction(settings, choose)))


def _table(swept: dict[str, Any]) -> Table:
    table = Table("interaction x", *PARTS)
    rows = {f"{point['factor']:g}": point["over"][STATIC_VERSION] for point in swept["points"]}
    if swept["champion"]:
        rows[f"champion {swept['champion']['version']}"] = swept["champion"]
    for name, found in rows.items():
        table.add_row(name, *(_told(found[part], swept["static"][part]) for part in PARTS))
    return table


def _told(found: dict[str, float], static: float) -> str:
    """A difference with its interval, in percent of what static weights bring; of nothing, as it is."""
    scale, unit = (100.0 / abs(static), " %") if static else (1.0, "")
    value, lower, upper = (scale * found[end] for end in ("value", "lower", "upper"))
    return f"{value:+.1f}{unit} ({lower:.1f} to {upper:.1f})"
