"""Days that no night has run, the scheduler being down: what the next night's run does of them first."""

from datetime import date, timedelta

from dags import stages
from training.contract.settings import Settings
from training.operations.missed import missing_days


def run_missed(settings: Settings, before: date) -> tuple[list[date], dict[date, Exception]]:
    """Land and validate the missing days before one, oldest first, at most ``orchestration.reopen_days``
    back; those that are good, and why the others are not."""
    oldest = before - timedelta(days=settings.orchestration.reopen_days)
    return stages.land_again(settings, [day for day in missing_days(settings, before) if day >= oldest])
