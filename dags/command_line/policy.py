"""A policy by hand: trained, judged, promoted, rolled back, and the share of users that it serves."""

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from dags.command_line.console import busy, console
from dags.command_line.days import OptionalDay, chosen_day
from training.contract.errors import SettingsError
from training.contract.settings import load_settings


def _run(stage: str, chosen: datetime | None) -> dict[str, Any]:
    from dags import stages

    settings = load_settings()
    target = chosen_day(chosen, settings)
    with busy(f"{stage} {target}"):
        record = stages.run_stage(settings, target, stage, force=True)
    if "skipped" in record:
        console.print(f"{stage} of {target} skipped: {record['skipped']}")
    return record


def train(day: OptionalDay = None) -> None:
    """Train the pool of challengers on the last days' trajectories, up to the given day."""
    record = _run("train", day)
    for name, one in record.get("pool", {}).items():
        console.print(f"{name}: policy {one['version']}, sha256 {one['sha256']}")


def evaluate(day: OptionalDay = None) -> None:
    """Estimate the day's challenger, the champion and the static weights off-policy."""
    record = _run("evaluate", day)
    if "estimates" in record:
        console.print(_estimates(record))
        console.print(f"challenger: {record['chosen']}, {record['version']}")


def _estimates(record: dict[str, Any]) -> Table:
    table = Table("policy", "lower", "value", "upper", "out of data")
    for name, estimate in record["estimates"].items():
        numbers = [f"{estimate[key]:.3f}" for key in ("lower", "value", "upper")]
        table.add_row(name, *numbers, "ALARM" if estimate["alarm"] else "no")
    return table


def promote(day: OptionalDay = None) -> None:
    """Put the day's challenger through the gate, and promote it when every rule holds."""
    record = _run("gate", day)
    for rule in record.get("rules", []):
        console.print(f"{'pass' if rule['passed'] else 'FAIL'}  {rule['rule']}: {rule['reason']}")
    if record.get("decision") == "promote":
        console.print(f"champion: {_run('promote', day)['version']}")


def rollback(
    reason: Annotated[str, typer.Option(help="kept in the history")] = "asked for by hand",
) -> None:
    """Serve the champion before the present one again; the running service follows within a second."""
    from training import promotion

    record = promotion.rollback(load_settings(), reason=reason)
    console.print(f"champion: {record['version']} (was {record['from_version']})")


def canary(
    go_on: Annotated[bool, typer.Option("--go-on", help="lift what holds it")] = False,
    reason: Annotated[str, typer.Option(help="kept in the history")] = "asked for by hand",
) -> None:
    """Show what is tried, what it brought so far and what holds it; or let it go on.

    What is lifted does not hold this canary again. `mtf rollback` takes the policy out instead.
    """
    from training.contract import in_service, rollout
    from training.operations.report import trying

    settings = load_settings()
    if go_on:
        with in_service.changing(settings) as row:
            rule = rollout.lift_pause(row, reason)
        console.print(f"{rule} holds the canary no longer")
    for sentence in trying.told(settings) or ["Nothing is tried."]:
        console.print(sentence)
    if paused := trying.held(settings):
        console.print(f"{paused}. `mtf canary --go-on` lifts it, `mtf rollback` takes the policy out.")


ArmShare = Annotated[float | None, typer.Option(min=0.0, max=1.0)]


def arms(
    static: ArmShare = None,
    random: ArmShare = None,
    noise: ArmShare = None,
    box: ArmShare = None,
    mixed: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="half of it random, half of it noise")
    ] = None,
    challenger: ArmShare = None,
    shadow: ArmShare = None,
    reason: Annotated[str, typer.Option(help="kept in the history")] = "asked for by hand",
) -> None:
    """Change the shares of the arms while the service runs, or show them when no share is given.

    Shares that are not named stay; the champion has what is left. The service follows within
    `serving.follow_seconds`. Running sessions keep their arm, unless its share becomes 0.
    """
    from training.contract import in_service
    from training.contract.log import CHAMPION

    settings = load_settings()
    if mixed is not None:
        if random is not None or noise is not None:
            raise SettingsError("--mixed sets random and noise: give it or them")
        random = noise = mixed / 2.0
    given = {
        "static": static,
        "random": random,
        "noise": noise,
        "box": box,
        "challenger": challenger,
        "shadow": shadow,
    }
    changes = {arm: share for arm, share in given.items() if share is not None}
    if changes:
        with in_service.changing(settings) as row:
            shares = row.change_shares(changes, reason)
    else:
        shares = in_service.read(settings).shares
    table = Table("arm", "share of users")
    left = 1.0 - sum(share for arm, share in shares if arm != "shadow")
    table.add_row(CHAMPION, f"{left:.4g}")
    for arm, share in shares:
        table.add_row(f"{arm} (beside, unseen)" if arm == "shadow" else arm, f"{share:.4g}")
    console.print(table)
